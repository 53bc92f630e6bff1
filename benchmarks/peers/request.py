"""What every peer script is given and gives back; only the standard library, numpy and tokenizers, in any environment.

A script maps names of variants to functions. Each reads the model folder or the float32 ONNX file, calibrates on the
texts if it wants to, writes ``model.onnx`` or ``model.xml`` into the output folder, and returns the options it used.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One artifact to make.

    Attributes:
        model: Hugging Face folder of a text classifier.
        onnx: the same model in float32, exported with dynamic axes.
        calibration: CSV file with a column ``text``, training rows.
        out: existing, empty folder for ``model.onnx`` or ``model.xml``.
        reduce_range: whether this CPU needs 7-bit weights, as ONNX Runtime's documentation advises without VNNI.
    """

    model: Path
    onnx: Path
    calibration: Path
    out: Path
    reduce_range: bool

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return dict(json.loads((self.model / "config.json").read_text(encoding="utf-8")))

    def texts(self) -> list[str]:
        with self.calibration.open(encoding="utf-8", newline="") as file:
            return [row["text"] for row in csv.DictReader(file)]

    def feeds(self) -> Iterator[dict[str, Any]]:
        """Yield input name -> (1, length) int64 for each calibration text, unpadded, as the model's tokenizer gives it.

        ``token_type_ids`` is among them where the model has more than one type.
        """
        import numpy as np
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(128)
        for text in self.texts():
            encoding = tokenizer.encode(text)
            feed = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
            if int(self.config.get("type_vocab_size") or 0) > 1:
                feed["token_type_ids"] = encoding.type_ids
            yield {name: np.array([ids], dtype=np.int64) for name, ids in feed.items()}


def serve(variants: Mapping[str, Callable[[Request], dict[str, Any]]], packages: Sequence[str]) -> int:
    """Make the variant that the command line names and write ``peer.json`` beside it.

    Args:
        variants: name -> function that writes the model and returns its options, without paths.
        packages: distributions whose versions are put on record.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", required=True, choices=variants)
    for name in ("model", "onnx", "calibration", "out"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--reduce-range", action="store_true")
    given = vars(parser.parse_args())
    make = variants[given.pop("variant")]
    begun = time.monotonic()
    options = make(Request(**given))
    record = {
        "options": options,
        "packages": {name: _version(name) for name in packages},
        "python": sys.version.split()[0],
        "seconds": round(time.monotonic() - begun, 1),
        "peak_rss_bytes": _peak_rss(),
    }
    (given["out"] / "peer.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _peak_rss() -> int | None:
    """Return the larger of this process's peak and that of its largest child, in bytes; None where Linux does not tell.

    ``getrusage`` would also count the process that started this one, up to the moment when it became this program.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * max(own[0], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) if own else None
