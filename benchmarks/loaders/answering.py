"""What the scripts here share: ``FOLDER FILE TEXTS OUT`` in, answers as JSON out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER, NAME, _TEXTS, _OUT = sys.argv[1:]
"""The exported folder, and the file in it that is to be opened (empty: the folder itself)."""


def answer(ask: Callable[[str], Any] | None, labels: list[str] | None, version: str) -> None:
    """Ask for the logits of every text, and write them down; without ``ask`` only the version."""
    texts = json.loads(Path(_TEXTS).read_text(encoding="utf-8"))
    logits = None if ask is None else [[float(value) for value in ask(text)] for text in texts]
    record = {"logits": logits, "labels": labels, "version": version}
    Path(_OUT).write_text(json.dumps(record), encoding="utf-8")


def read_json(name: str) -> Any:
    return json.loads((Path(FOLDER) / name).read_text(encoding="utf-8"))


def labels_of_config() -> list[str]:
    names = read_json("config.json")["id2label"]
    return [names[str(i)] for i in range(len(names))]


def tokenize() -> Callable[[str], dict[str, Any]]:
    """Return what turns a text into arrays of one row, with the tokenizers package alone."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(read_json("tokenizer_config.json")["model_max_length"])

    def arrays(text: str) -> dict[str, Any]:
        found = tokenizer.encode(text)
        rows = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
        return {name: np.array([row], dtype=np.int64) for name, row in rows.items()}

    return arrays
