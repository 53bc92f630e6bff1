"""``sparsify``: two of every four weights of the encoder's linear layers become zero, for sparse tensor cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compress.artifact import Artifact, Kind, create_artifact
from compress.errors import RecipeError
from compress.models.families import is_convolutional
from compress.models.sparsity import SPARSE
from compress.passes.base import Context, ModelInfo, Pass, PassConfig, Plan

if TYPE_CHECKING:
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
    exclude: tuple[str, ...] = Field((), description="globs of module paths that stay dense, e.g. `*.layer.0.*`")


class Sparsify(Pass):
    """Keeps the two largest of every four consecutive inputs' weights; later training keeps the zeros."""

    name: ClassVar[str] = "sparsify"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    Config: ClassVar[type[PassConfig]] = SparsifyConfig
    consumes: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    produces: ClassVar[Kind] = "torch"
    forbids: ClassVar[frozenset[str]] = frozenset({SPARSE})
    adds: ClassVar[frozenset[str]] = frozenset({SPARSE})
    preserves: ClassVar[Literal["exact", "close", "task"]] = "task"

    def plan(self, inputs: Mapping[str, ModelInfo], config: SparsifyConfig) -> Plan:
        info = inputs["model"]
        if is_convolutional(info.config):
            raise RecipeError(
                "`sparsify` works on the linear layers of an encoder, and this network has none.",
                value=info.config.get("model_type", ""),
                fix="Leave the step out; `prune` makes convolutional networks smaller.",
            )
        left = f", {', '.join(config.exclude)} apart" if config.exclude else ""
        summary = f"zero two of every four weights of the encoder's linear layers (2:4){left}"
        return Plan(summary, replace(info, traits=info.traits | self.adds))

    def apply(self, inputs: Mapping[str, Artifact], config: SparsifyConfig, context: Context) -> Artifact:
        from compress.models.counting import count_macs, count_parameters
        from compress.models.golden import golden_torch
        from compress.models.loading import load_torch, save_torch
        from compress.models.signature import torch_graph
        from compress.models.sparsity import require_sparse
        from compress.pruning.semi_structured import share_of_zeros, sparsify

        source = inputs["model"]
        model = load_torch(source.path, context.task)
        context.emit("zeroing two of every four weights")
        decisions = sparsify(model, multiple=config.multiple, exclude=config.exclude)
        save_torch(model, context.out, tokenizer_from=source.path)
        require_sparse(load_torch(context.out, context.task), [it.path for it in decisions if it.sparse])
        return create_artifact(
            context.out,
            kind="torch",
            traits=sorted(source.traits | self.adds),
            graphs={"model": torch_graph(context.out, context.task)},
            parameters=count_parameters(model),
            macs=count_macs(model),
            notes=_notes(decisions) | {"zeros": round(share_of_zeros(model), 6)},
            golden=golden_torch(context.out, context.task),
            **self.provenance(inputs, config, context),
        )


def _notes(decisions: Sequence[Decision]) -> dict[str, Any]:
    return {
        "sparse": {it.path: {"energy_kept": round(it.energy, 6)} for it in decisions if it.sparse},
        "left": {it.path: it.reason for it in decisions if not it.sparse},
        "speed": _SPEED,
    }
