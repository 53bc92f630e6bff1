"""Text classification: one label, several labels, or a number for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np

from compress.artifact import TensorSpec
from compress.data.encoded import Encoded
from compress.errors import ModelError
from compress.reading import read_json
from compress.tasks.base import Row, Score, Task
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

Problem = Literal["single_label", "multi_label", "regression"]

_HF_PROBLEMS: Mapping[Problem, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_METRICS: Mapping[Problem, str] = {"single_label": "accuracy", "multi_label": "exact_match", "regression": "mae"}

GOLDEN_TEXTS: tuple[str, ...] = (
    "It works.",
    "The second half was slower than the first, but I enjoyed it anyway.",
    "Why was my card charged twice for the same order?",
    "A dull, overlong film with nothing new to say.",
    "Please cancel the order, not the subscription.",
    "The train to Geneva leaves at 07:45 from platform 3.",
    "She never said that the parcel had arrived; she asked where it was.",
    "Charming, well acted and short: one of the best evenings I have had at the cinema in years, and I would go again.",
)


@dataclass(frozen=True)
class TextClassification(Task):
    """Labels in id order (empty for regression), the kind of problem, and the longest input in tokens.

    Metrics: accuracy for a single label; exact match (every label right) with micro F1 beside it for
    several labels; mean absolute error with Pearson's correlation beside it for regression.
    """

    labels: tuple[str, ...]
    problem: Problem = "single_label"
    max_length: int = 128

    name: ClassVar[str] = "text-classification"
    columns: ClassVar[tuple[str, ...]] = ("text", "text_pair")

    def dump(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "labels": list(self.labels),
            "problem": self.problem,
            "max_length": self.max_length,
        }

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        return cls(
            labels=tuple(options["labels"]),
            problem=options.get("problem", "single_label"),
            max_length=int(options["max_length"]),
        )

    @property
    def metric(self) -> str:
        return _METRICS[self.problem]

    @property
    def direction(self) -> Literal["higher", "lower"]:
        return "lower" if self.problem == "regression" else "higher"

    @property
    def outputs(self) -> int:
        """Width of the logits."""
        return len(self.labels) or 1

    @property
    def preprocessing(self) -> str:
        return f"the model's own tokenizer; cut to {self.max_length} tokens, the longer text of a pair first"

    def encode(self, tokenizer_folder: Path, rows: Sequence[Row]) -> Encoded:
        """Tokenize rows at their real lengths, cut to ``max_length`` (the longer text of a pair first)."""
        return self.encoder(tokenizer_folder)(rows)

    def encoder(self, folder: Path) -> Callable[[Sequence[Row]], Encoded]:
        tokenizer, names, padding = _open_tokenizer(folder)
        tokenizer.enable_truncation(self.max_length, strategy="longest_first")
        tokenizer.no_padding()
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}

        def encode(rows: Sequence[Row]) -> Encoded:
            texts = [row["text"] if row.get("text_pair") is None else (row["text"], row["text_pair"]) for row in rows]
            with tokenizing(folder):
                encodings = tokenizer.encode_batch(texts)
            inputs = {
                name: [np.array(getattr(encoding, columns[name]), dtype=np.int64) for encoding in encodings]
                for name in names
            }
            targets = self._targets(rows) if rows and all(row.get("label") is not None for row in rows) else None
            return Encoded(inputs, {name: padding if name == "input_ids" else 0 for name in names}, targets)

        return encode

    def inputs(self, folder: Path) -> tuple[TensorSpec, ...]:
        """Return the token inputs of the model in a folder: int64 (batch, sequence) each."""
        return tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in input_names(folder))

    def golden_rows(self, folder: Path) -> list[Row]:
        """Return eight built-in sentences."""
        return [{"text": text, "text_pair": None} for text in GOLDEN_TEXTS]

    def score(self, outputs: np.ndarray, targets: np.ndarray) -> Score:
        if self.problem == "single_label":
            outcomes = right(outputs, targets)
            return Score(self.metric, float(outcomes.mean()), "higher", outcomes, {})
        if self.problem == "multi_label":
            chosen = outputs > 0
            wanted = targets > 0.5
            outcomes = (chosen == wanted).all(axis=1).astype(np.float64)
            hits = float((chosen & wanted).sum())
            f1 = 2 * hits / max(float(chosen.sum() + wanted.sum()), 1.0)
            return Score(self.metric, float(outcomes.mean()), "higher", outcomes, {"micro_f1": f1})
        values = outputs.reshape(-1).astype(np.float64)
        errors = np.abs(values - targets)
        spread = values.std() * targets.std()
        pearson = float(((values - values.mean()) * (targets - targets.mean())).mean() / spread) if spread else 0.0
        return Score(self.metric, float(errors.mean()), "lower", errors, {"pearson": pearson})

    def agree(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Same label; same set of labels; for regression within 1 % of the first model's spread."""
        if self.problem == "single_label":
            return same_label(first, second)
        if self.problem == "multi_label":
            return np.asarray(((first > 0) == (second > 0)).all(axis=1))
        return np.asarray(np.abs(first - second).reshape(-1) <= 0.01 * first.std())

    def predictions(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        if self.problem == "regression":
            return [{"label": None, "score": float(value)} for value in outputs.reshape(-1)]
        if self.problem == "multi_label":
            chances = 1.0 / (1.0 + np.exp(-outputs.astype(np.float64)))
            return [
                {
                    "label": [self.labels[i] for i in np.flatnonzero(row > 0.5)],
                    "score": {label: float(chance) for label, chance in zip(self.labels, row, strict=True)},
                }
                for row in chances
            ]
        return best_labels(outputs, self.labels)

    def label_scores(self, outputs: np.ndarray) -> list[Any]:
        if self.problem == "single_label":
            return every_label(outputs, self.labels)
        return super().label_scores(outputs)

    def load_model(self, folder: Path, **options: Any) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForSequenceClassification

        settings = {
            "dtype": torch.float32,
            "local_files_only": True,
            "trust_remote_code": False,
            "use_safetensors": True,
            **options,
        }
        return cast("PreTrainedModel", AutoModelForSequenceClassification.from_pretrained(folder, **settings))

    def config_options(self) -> dict[str, Any]:
        """Return what a Hugging Face config must say so that a fresh head fits this task."""
        options: dict[str, Any] = {"problem_type": _HF_PROBLEMS[self.problem], "num_labels": self.outputs}
        return options | (head_options(self.labels) if self.labels else {})

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        if self.problem == "single_label":
            return functional.cross_entropy(logits, targets)
        if self.problem == "multi_label":
            return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
        return functional.mse_loss(logits.reshape(-1), targets.to(logits.dtype))

    def divergence(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        from torch.nn import functional

        if self.problem == "regression":
            return functional.mse_loss(student, teacher)
        if self.problem == "single_label":
            return divergence(student, teacher, temperature)
        square = temperature * temperature
        chances = (teacher / temperature).sigmoid()
        cross = functional.binary_cross_entropy_with_logits(student / temperature, chances, reduction="none")
        entropy = functional.binary_cross_entropy_with_logits(teacher / temperature, chances, reduction="none")
        return square * (cross - entropy).sum(dim=-1).mean()

    def _targets(self, rows: Sequence[Row]) -> np.ndarray:
        if self.problem == "regression":
            return np.array([float(row["label"]) for row in rows], dtype=np.float32)
        ids = {label: i for i, label in enumerate(self.labels)}
        wanted = [row["label"] if self.problem == "multi_label" else [row["label"]] for row in rows]
        refuse_unknown([str(label) for labels in wanted for label in labels], self.labels)
        if self.problem == "single_label":
            return np.array([ids[row["label"]] for row in rows], dtype=np.int64)
        hot = np.zeros((len(rows), len(self.labels)), dtype=np.float32)
        for i, labels in enumerate(wanted):
            hot[i, [ids[label] for label in labels]] = 1.0
        return hot


@contextmanager
def tokenizing(folder: Path) -> Iterator[None]:
    """Turn what tokenizers raise about a broken file into a ModelError.

    Their parsers raise bare exceptions, and a panic of their Rust code is no ``Exception`` at all.
    """
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            "The tokenizer cannot be opened or does not work.",
            value=f"{folder.name}: {(str(error).splitlines() or [type(error).__name__])[0][:200]}",
            fix="Save it again: AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        ) from error


def input_names(folder: Path) -> list[str]:
    """Return the inputs of the model in a folder, as its config and tokenizer say."""
    model = _read_json(folder / "config.json")
    names = ["input_ids", "attention_mask"]
    if model:
        types = model.get("type_vocab_size")
        typed = type(types) is int and types > 1
    else:
        typed = "token_type_ids" in _read_json(folder / "tokenizer_config.json").get("model_input_names", ())
    return [*names, "token_type_ids"] if typed else names


def _open_tokenizer(folder: Path) -> tuple[Any, list[str], int]:
    """Open ``tokenizer.json``; return it, the model's input names, and the padding id."""
    from tokenizers import Tokenizer

    source = folder / "tokenizer.json"
    if not source.is_file():
        raise ModelError(
            "The model folder has no tokenizer.json.",
            value=folder.name,
            fix="Save a fast tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        )
    with tokenizing(folder):
        tokenizer = Tokenizer.from_file(str(source))
    config = _read_json(folder / "tokenizer_config.json")
    padding = config.get("pad_token", "[PAD]")
    padding = padding.get("content") if isinstance(padding, dict) else padding
    return tokenizer, input_names(folder), tokenizer.token_to_id(str(padding)) or 0


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(read_json(path))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{path.name} cannot be read.", value=f"{path.parent.name}: {error}", fix="Save the tokenizer again."
        ) from error
