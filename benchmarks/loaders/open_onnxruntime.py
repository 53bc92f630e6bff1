"""ONNX Runtime and tokenizers open one ONNX file."""

import onnxruntime
from answering import FOLDER, NAME, answer, labels_of_config, tokenize

session = onnxruntime.InferenceSession(f"{FOLDER}/{NAME}", providers=["CPUExecutionProvider"])
names, tokens = [value.name for value in session.get_inputs()], tokenize()


def ask(text):
    arrays = tokens(text)
    return session.run(["logits"], {name: arrays[name] for name in names})[0][0]


answer(ask, labels_of_config(), f"onnxruntime {onnxruntime.__version__}")
