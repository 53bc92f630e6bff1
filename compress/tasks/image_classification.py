"""Image classification: one label for an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np

from compress.artifact import TensorSpec
from compress.data.encoded import Encoded
from compress.data.pictures import IMAGE, Picture, read_picture
from compress.errors import DataError, ModelError, UsageError
from compress.reading import read_json
from compress.tasks.base import Row, Score, Task
from compress.tasks.preprocessing import Preprocessor, read_preprocessor
from compress.tasks.single_label import (
    best_labels,
    divergence,
    every_label,
    head_options,
    refuse_unknown,
    right,
    same_label,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PIXELS = "pixel_values"
_GOLDEN_PIXELS = 65_536
"""Numbers that golden images may put into a manifest; one image always goes in."""
_GOLDEN_IMAGES = 8


@dataclass(frozen=True)
class ImageClassification(Task):
    """Labels in id order. The size of an image is the model's, in its ``preprocessor_config.json``."""

    labels: tuple[str, ...]

    name: ClassVar[str] = "image-classification"
    columns: ClassVar[tuple[str, ...]] = (IMAGE,)
    max_length: ClassVar[int] = 1  # type: ignore[misc]
    """An image has no length that could be cut."""

    def dump(self) -> dict[str, Any]:
        return {"name": self.name, "labels": list(self.labels), "problem": "single_label", "max_length": 1}

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        if options.get("problem", "single_label") != "single_label":
            raise UsageError(
                "Images have exactly one label here.",
                value=f"problem: {options['problem']}",
                fix="Leave `problem` out, or use text-classification for texts.",
            )
        return cls(labels=tuple(options["labels"]))

    @property
    def metric(self) -> str:
        return "accuracy"

    @property
    def direction(self) -> Literal["higher", "lower"]:
        return "higher"

    def inputs(self, folder: Path) -> tuple[TensorSpec, ...]:
        """Return ``pixel_values``: float32 (batch, channels, height, width); only the batch varies."""
        return (TensorSpec(name=PIXELS, dtype="float32", shape=("batch", *_preprocessor(folder).shape)),)

    @property
    def preprocessing(self) -> str:
        return "resized, rescaled and normalised as the model's preprocessor_config.json says"

    def encode(self, tokenizer_folder: Path, rows: Sequence[Row]) -> Encoded:
        """Resize, rescale and normalise images as the folder's ``preprocessor_config.json`` says."""
        return self.encoder(tokenizer_folder)(rows)

    def encoder(self, folder: Path) -> Callable[[Sequence[Row]], Encoded]:
        prepare = _preprocessor(folder)
        patches = _patches(folder, prepare)

        def encode(rows: Sequence[Row]) -> Encoded:
            values = [prepare(_picture(row).pixels()) for row in rows]
            targets = self._targets(rows) if rows and all(row.get("label") is not None for row in rows) else None
            return Encoded({PIXELS: values}, {}, targets, tokens=patches)

        return encode

    def golden_rows(self, folder: Path) -> list[Row]:
        """Return drawn images of the model's size: a bright disc on a slope, elsewhere in each."""
        channels, height, width = _preprocessor(folder).shape
        count = max(1, min(_GOLDEN_IMAGES, _GOLDEN_PIXELS // (channels * height * width)))
        down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        rows: list[Row] = []
        for i in range(count):
            distance = np.hypot(down - (i % 3) / 2, across - (i // 3) / 2)
            levels = np.floor(127 * across + 128 * np.maximum(0.0, 1 - 2 * distance)).astype(np.uint8)
            rows.append({IMAGE: Picture.of_pixels(np.repeat(levels[..., None], channels, axis=2))})
        return rows

    def score(self, outputs: np.ndarray, targets: np.ndarray) -> Score:
        outcomes = right(outputs, targets)
        return Score(self.metric, float(outcomes.mean()), "higher", outcomes, {})

    def agree(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return same_label(first, second)

    def predictions(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        return best_labels(outputs, self.labels)

    def label_scores(self, outputs: np.ndarray) -> list[Any]:
        return every_label(outputs, self.labels)

    def load_model(self, folder: Path, **options: Any) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForImageClassification

        settings = {
            "dtype": torch.float32,
            "local_files_only": True,
            "trust_remote_code": False,
            "use_safetensors": True,
            **options,
        }
        return cast("PreTrainedModel", AutoModelForImageClassification.from_pretrained(folder, **settings))

    def config_options(self) -> dict[str, Any]:
        head = {"problem_type": "single_label_classification", "num_labels": len(self.labels) or 1}
        return head | (head_options(self.labels) if self.labels else {})

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        return functional.cross_entropy(logits, targets)

    def divergence(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        return divergence(student, teacher, temperature)

    def _targets(self, rows: Sequence[Row]) -> np.ndarray:
        refuse_unknown([str(row["label"]) for row in rows], self.labels)
        ids = {label: i for i, label in enumerate(self.labels)}
        return np.array([ids[row["label"]] for row in rows], dtype=np.int64)


def _picture(row: Row) -> Picture:
    picture = read_picture(row.get(IMAGE), None, "a row given to the task")
    if picture is None:
        raise DataError("A row has no image.", value=f"columns: {', '.join(row)}", fix=f"Give it a column {IMAGE!r}.")
    return picture


def _preprocessor(folder: Path) -> Preprocessor:
    return read_preprocessor(folder, int(_config(folder).get("num_channels", 3)))


def _patches(folder: Path, prepare: Preprocessor) -> int:
    """Return the tokens of a vision transformer: its patches and the class token; 1 for any other model."""
    patch = _config(folder).get("patch_size")
    return 1 if not isinstance(patch, int) else (prepare.height // patch) * (prepare.width // patch) + 1


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(read_json(folder / "config.json"))
    except (TypeError, ValueError) as error:
        raise ModelError(
            "config.json cannot be read.", value=f"{folder.name}: {error}", fix="Save the model again."
        ) from error
