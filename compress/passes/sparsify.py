"""``sparsify``: two of every four weights of the encoder's linear layers become zero, for sparse tensor cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import RecipeError
from compress.models.families import is_convolutional
from compress.models.remote_code import CUSTOM_CODE
from compress.models.sparsity import SPARSE
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan
from compress.passes.trim import require_text

if TYPE_CHECKING:
    from compress.data.encoded import Encoded
    from compress.pruning.semi_structured import Decision

_SPEED = (
    "no speed-up is claimed: 2:4 gains only on sparse tensor cores (NVIDIA Ampere and later) through TensorRT, "
    "and only where that picks sparse kernels; not measured by this step"
)


class SparsifyConfig(PassConfig):
    """Which linear layers. ``sparsify: {}`` takes all that sparse kernels can multiply; distil afterwards."""

    multiple: int = Field(
        32,
        ge=4,
        multiple_of=4,
        description="layers whose inputs or outputs are no multiple of this stay dense; sparse kernels take "
        "multiples of 32 in INT8, of 16 in FP16",
    )
    by: Literal["magnitude", "inputs"] = Field(
        "magnitude",
        description="what a weight is worth: its magnitude, or that times the size of its input on training texts, "
        "which loses less before training",
    )
    samples: int = Field(256, ge=1, description="by inputs: training texts that are looked at, drawn by seed")
    exclude: tuple[str, ...] = Field((), description="globs of module paths that stay dense, e.g. `*.layer.0.*`")


class Sparsify(Pass):
    """Keeps the two largest of every four consecutive inputs' weights; later training keeps the zeros."""

    name: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    Config: ClassVar[type[PassConfig]] = SparsifyConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "torch"
    forbids: ClassVar[frozenset[str]] = frozenset({SPARSE, CUSTOM_CODE})
    adds: ClassVar[frozenset[str]] = frozenset({SPARSE})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"
    uses: ClassVar[tuple[str, ...]] = ("train",)

    def reads(self, config: SparsifyConfig) -> tuple[str, ...]:
        return self.uses if config.by == "inputs" else ()

    def plan(self, inputs: Mapping[str, ModelInfo], config: SparsifyConfig) -> Plan:
        info = inputs["model"]
        if is_convolutional(info.config):
            raise RecipeError(
                "`sparsify` works on the linear layers of an encoder, and this network has none.",
                value=info.config.get("model_type", ""),
                fix="Leave the step out; `prune` makes convolutional networks smaller.",
            )
        if config.by == "inputs":
            require_text(info, "sparsify: {by: inputs}")
        left = f", {', '.join(config.exclude)} apart" if config.exclude else ""
        summary = f"zero two of every four weights of the encoder's linear layers (2:4), by {config.by}{left}"
        return Plan(summary, replace(info, traits=info.traits | self.adds))

    def apply(self, inputs: Mapping[str, Artifact], config: SparsifyConfig, context: Context) -> Artifact:
        from compress.models.counting import count_macs, count_parameters
        from compress.models.golden import golden_torch
        from compress.models.loading import limit_threads, load_torch, save_torch
        from compress.models.signature import torch_graph
        from compress.models.sparsity import require_sparse
        from compress.pruning.semi_structured import input_sizes, share_of_zeros, sparsify

        source = inputs["model"]
        model = load_torch(source.path, context.task)
        context.emit("zeroing two of every four weights")
        with limit_threads(context.threads):
            sizes = None if config.by == "magnitude" else input_sizes(model, _sample(source, config, context))
            decisions = sparsify(model, multiple=config.multiple, exclude=config.exclude, sizes=sizes)
        save_torch(model, context.out, tokenizer_from=source.path)
        require_sparse(load_torch(context.out, context.task), [it.path for it in decisions if it.sparse])
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(source.traits | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(model),
            macs=count_macs(model),
            notes=_notes(decisions) | {"by": config.by, "zeros": round(share_of_zeros(model), 6)},
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def _sample(source: Artifact, config: SparsifyConfig, context: Context) -> Encoded:
    rows = context.data["train"].rows
    count = min(config.samples, len(rows))
    chosen = np.random.default_rng(context.seed).choice(len(rows), count, replace=False)
    return context.task.encode(source.path, [rows[i] for i in sorted(chosen)])


def _notes(decisions: Sequence[Decision]) -> dict[str, Any]:
    return {
        "sparse": {it.path: {"energy_kept": round(it.energy, 6)} for it in decisions if it.sparse},
        "left": {it.path: it.reason for it in decisions if not it.sparse},
        "speed": _SPEED,
    }
