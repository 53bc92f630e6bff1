"""Optimum for Intel opens an OpenVINO IR, which it finds by its usual name."""

from importlib.metadata import version

from answering import FOLDER, answer
from optimum.intel import OVModelForSequenceClassification
from transformers import AutoTokenizer

model = OVModelForSequenceClassification.from_pretrained(FOLDER, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
answer(
    lambda text: model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0],
    [model.config.id2label[i] for i in range(model.config.num_labels)],
    f"optimum-intel {version('optimum-intel')}, transformers {version('transformers')}",
)
