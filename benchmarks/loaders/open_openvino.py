"""OpenVINO and tokenizers open an IR."""

import openvino
from answering import FOLDER, NAME, answer, labels_of_config, tokenize

model = openvino.Core().compile_model(f"{FOLDER}/{NAME}", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
names, tokens = [port.any_name for port in model.inputs], tokenize()


def ask(text):
    arrays = tokens(text)
    return model({name: arrays[name] for name in names})["logits"][0]


answer(ask, labels_of_config(), f"openvino {openvino.__version__.split('-')[0]}")
