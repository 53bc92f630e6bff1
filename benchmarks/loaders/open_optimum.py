"""Optimum opens one ONNX file of a folder."""

from importlib.metadata import version

from answering import FOLDER, NAME, answer
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer

model = ORTModelForSequenceClassification.from_pretrained(FOLDER, file_name=NAME)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
answer(
    lambda text: model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0],
    [model.config.id2label[i] for i in range(model.config.num_labels)],
    f"optimum-onnx {version('optimum-onnx')}, transformers {version('transformers')}",
)
