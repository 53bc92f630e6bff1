"""``model.py`` of the tokenizer in Triton's Python backend: texts in, the model's token inputs out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from compress.shipping.serving.server.encoding import PAIR, TEXT, BadRequest, Encoder

os.environ["TOKENIZERS_PARALLELISM"] = "false"


class TritonPythonModel:
    """Tokenizes each request by itself; its rows are padded to the longest of them."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the tokenizer beside this file."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._names = [output["name"] for output in config["output"]]
        task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        self._padding = {name: int(task["padding"]) if name == "input_ids" else 0 for name in self._names}
        self._encoder = Encoder(folder, task, [{"name": name} for name in self._names])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, a bad one with its reason."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tensors = {name: triton.get_input_tensor_by_name(request, name) for name in (TEXT, PAIR)}
        try:
            arrays = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
            examples = self._encoder.examples(arrays)
        except BadRequest as error:
            return triton.InferenceResponse([], error=triton.TritonError(str(error), triton.TritonError.INVALID_ARG))
        longest = max(len(example["input_ids"]) for example in examples)
        outputs = []
        for name in self._names:
            values = np.full((len(examples), longest), self._padding[name], dtype=np.int64)
            for row, example in zip(values, examples, strict=True):
                row[: len(example[name])] = example[name]
            outputs.append(triton.Tensor(name, values))
        return triton.InferenceResponse(outputs)
