"""``trim``: remove the rows of the embedding tables that the data does not use: tokens and positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import DataError, RecipeError, RunError
from compress.models.families import dimensions, family_of
from compress.models.remote_code import CUSTOM_CODE
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.pruning.vocabulary import Vocabulary

_PROOF = 64
"""Training texts on which a trimmed model must give the outputs of the whole one."""


class TrimConfig(PassConfig):
    """Which tokens and positions stay. ``trim: {}`` keeps what training and transfer texts use, and a margin."""

    vocabulary: Literal["corpus", "all"] = Field("corpus", description="keep the tokens that `texts` use, or all")
    texts: tuple[Literal["train", "transfer"], ...] = Field(
        ("train", "transfer"), min_length=1, description="splits whose tokens stay, those of them that there are"
    )
    min_count: int = Field(1, ge=1, description="tokens that `texts` use less often than this go")
    margin: int = Field(1000, ge=0, description="further tokens that stay for other texts, the most common ones")
    alphabet: Literal["all", "corpus"] = Field(
        "all", description="single characters that stay: all, or those of kept tokens and ASCII (others read unknown)"
    )
    positions: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        "auto", description="longest input in tokens; auto = the task's; null = as it is"
    )

    @model_validator(mode="after")
    def _does_something(self) -> TrimConfig:
        if self.vocabulary == "all" and self.positions is None:
            raise ValueError("nothing to trim: give `vocabulary: corpus`, `positions`, or both")
        return self


class Trim(Pass):
    """Keeps the tokens that a corpus uses and the positions that inputs reach; covered text gets equal outputs."""

    name: ClassVar[str] = "trim"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("tokenizers", "torch", "transformers")
    Config: ClassVar[type[PassConfig]] = TrimConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "torch"
    forbids: ClassVar[frozenset[str]] = frozenset({CUSTOM_CODE})
    adds: ClassVar[frozenset[str]] = frozenset({"trimmed"})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("train", "validation", "transfer")

    def plan(self, inputs: Mapping[str, ModelInfo], config: TrimConfig) -> Plan:
        info = inputs["model"]
        require_text(info, self.name)
        parts = []
        if config.vocabulary == "corpus":
            parts.append(f"tokens of {' and '.join(config.texts)} and {config.margin} more")
        if config.positions is not None:
            parts.append("the task's positions" if config.positions == "auto" else f"{config.positions} positions")
        changed, gone = dict(info.config), None
        if isinstance(config.positions, int) and info.config:
            rows, width = _position_rows(info.config, config.positions)
            gone = (int(info.config["max_position_embeddings"]) - rows) * width
            changed["max_position_embeddings"] = rows
        known = config.vocabulary == "all" and gone is not None and info.parameters is not None
        parameters = info.parameters - gone if known and info.parameters is not None and gone is not None else None
        traits = info.traits | self.adds
        return Plan(f"keep {', '.join(parts)}", replace(info, traits=traits, config=changed, parameters=parameters))

    def reads(self, config: TrimConfig) -> tuple[str, ...]:
        return ("train", "validation", *(set(config.texts) - {"train"}))

    def apply(self, inputs: Mapping[str, Artifact], config: TrimConfig, context: Context) -> Artifact:
        from compress.models.counting import count_macs, count_parameters
        from compress.models.golden import golden_torch
        from compress.models.loading import limit_threads, load_torch, save_torch
        from compress.models.signature import torch_graph
        from compress.pruning.vocabulary import trim_positions, trim_rows, write_tokenizer

        source = inputs["model"]
        model = load_torch(source.path, context.task)
        vocabulary = _choose(source.path, config, context) if config.vocabulary == "corpus" else None
        positions = _positions(model, config, context)
        if vocabulary is not None:
            trim_rows(model, vocabulary)
        if positions is not None:
            trim_positions(model, positions)
        write_tokenizer(source.path, context.out, vocabulary=vocabulary, positions=positions)
        save_torch(model, context.out, tokenizer_from=context.out)
        with limit_threads(context.threads):
            notes = _report(source.path, model, config, context)
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(source.traits | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(model),
            macs=count_macs(model),
            notes=_summary(vocabulary, positions) | notes,
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def require_text(info: ModelInfo, name: str) -> None:
    """Check that a model reads tokens, as far as its config.json is known.

    Raises:
        RecipeError: it reads images.
    """
    if info.config and "vocab_size" not in info.config:
        raise RecipeError(
            f"`{name}` works on the tokens of a text model, and this one has none.",
            value=info.config.get("model_type", ""),
            fix="Leave the step out; `prune` makes encoders of images smaller.",
        )


def _choose(folder: Path, config: TrimConfig, context: Context) -> Vocabulary:
    from compress.pruning.vocabulary import choose_vocabulary, count_tokens

    texts = _texts(config.texts, context)
    if not texts:
        raise DataError(
            "There is no text whose tokens could be kept.",
            value=f"texts: {', '.join(config.texts)}",
            fix="Give the recipe that data, or name another split in `texts`.",
        )
    counts = count_tokens(folder, texts)
    return choose_vocabulary(
        folder,
        counts,
        min_count=config.min_count,
        margin=config.margin,
        whole_alphabet=config.alphabet == "all",
    )


def _texts(splits: tuple[str, ...], context: Context) -> list[str]:
    from compress.pruning.vocabulary import text_columns

    return [
        text
        for name in splits
        if name in context.data
        for text in text_columns(context.data[name].rows, context.task.columns)
    ]


def _positions(model: PreTrainedModel, config: TrimConfig, context: Context) -> int | None:
    """Return the longest input that stays, at least the task's; None where nothing is to be cut.

    Raises:
        RecipeError: the task's inputs are longer than asked for.
    """
    present = dimensions(model.config.to_dict()).positions
    if config.positions is None:
        return None
    if config.positions != "auto" and config.positions < context.task.max_length:
        raise RecipeError(
            "The task's inputs are longer than the positions that `trim` is to keep.",
            value=f"positions {config.positions}, max_length {context.task.max_length}",
            fix="Use `positions: auto`, or lower the recipe's max_length.",
        )
    return min(present, context.task.max_length if config.positions == "auto" else config.positions)


def _position_rows(config: Mapping[str, Any], positions: int) -> tuple[int, int]:
    """Return (rows of the position table that stay, its width)."""
    rows = min(positions + family_of(config["model_type"]).position_offset, int(config["max_position_embeddings"]))
    return rows, int(config.get("embedding_size") or dimensions(config).hidden)


def _summary(vocabulary: Vocabulary | None, positions: int | None) -> dict[str, Any]:
    notes: dict[str, Any] = {} if positions is None else {"positions": positions}
    if vocabulary is not None:
        notes |= {"tokens_before": vocabulary.total, "tokens": len(vocabulary.tokens), "tokens_used": vocabulary.used}
    return notes


def _report(before: Path, model: PreTrainedModel, config: TrimConfig, context: Context) -> dict[str, Any]:
    """Prove equal outputs on training texts that are cut as before; tell the rates on every split that is read."""
    from compress.pruning.coverage import compare_tokenizers

    proved = _prove(before, model, context)
    if config.vocabulary == "all":
        return {"proved_on": proved}
    rates = {}
    for split in ("train", "validation", "transfer"):
        texts = _texts((split,), context)
        if texts and (split != "transfer" or split in config.texts):
            rates[split] = compare_tokenizers(before, context.out, texts)[1]
    return {"proved_on": proved, "rates": rates}


def _prove(before: Path, model: PreTrainedModel, context: Context) -> int:
    """Compare the outputs of both models on training texts with the same tokens; return how many there were.

    Raises:
        RunError: an output differs.
    """
    import numpy as np

    from compress.distillation.internals import predict
    from compress.models.loading import load_torch
    from compress.pruning.coverage import compare_tokenizers
    from compress.pruning.vocabulary import text_columns

    columns = context.task.columns
    rows = [{**row, "label": None} for row in context.data["train"].rows[:_PROOF]]
    owners = [i for i, row in enumerate(rows) for name in columns if row.get(name) is not None]
    same, _ = compare_tokenizers(before, context.out, text_columns(rows, columns))
    cut_otherwise = {owner for owner, unchanged in zip(owners, same, strict=True) if not unchanged}
    chosen = [row for i, row in enumerate(rows) if i not in cut_otherwise]
    if not chosen:
        return 0
    whole = predict(load_torch(before, context.task), context.task.encode(before, chosen))
    gap = float(np.abs(predict(model, context.task.encode(context.out, chosen)) - whole).max())
    if gap > 1e-5:
        raise RunError(
            "The trimmed model gives other outputs for text that it cuts as before.",
            value=f"difference {gap:.3g} on {len(chosen)} training texts",
            fix="Report this with the model's config.json and the type of its tokenizer.",
        )
    return len(chosen)
