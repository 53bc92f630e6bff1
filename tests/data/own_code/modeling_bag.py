"""A classifier that Transformers does not have: the mean of the words' vectors, one hidden layer, logits."""

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration_bag import BagConfig
from .pooling import Mean


class Bag(PreTrainedModel):
    config_class = BagConfig
    base_model_prefix = "bag"

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.mean = Mean()
        self.post_init()

    def forward(self, input_ids, attention_mask):
        return self.mean(self.words(input_ids), attention_mask)


class BagForSequenceClassification(PreTrainedModel):
    config_class = BagConfig
    base_model_prefix = "bag"

    def __init__(self, config):
        super().__init__(config)
        self.bag = Bag(config)
        self.hidden = nn.Linear(config.width, config.width)
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask, **kwargs):
        states = self.hidden(self.bag(input_ids, attention_mask)).relu()
        return SequenceClassifierOutput(logits=self.classifier(states))


BagForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
