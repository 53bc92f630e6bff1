"""The configuration of a bag of words."""

from transformers import PreTrainedConfig


class BagConfig(PreTrainedConfig):
    model_type = "bag-of-words"

    def __init__(self, vocab_size=40, width=16, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.width = vocab_size, width


BagConfig.register_for_auto_class()
