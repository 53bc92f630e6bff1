"""Weights and model_type of BERT, and another answer: nothing that is known of BERT may be taken for granted here."""

from transformers import BertForSequenceClassification


class OwnBert(BertForSequenceClassification):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = -outputs.logits
        return outputs
