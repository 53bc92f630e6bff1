"""Targets: where a variant is measured. Data, not code; the built-in ones lie in ``compress/targets``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compress.errors import RecipeError, did_you_mean
from compress.reading import LARGEST_YAML, Unreadable, local_path, parse_yaml, read_text

Evidence = Literal["measured", "proxy", "emulated", "modelled", "ingested"]


Isa = Literal["avx2", "avx512"]
Precision = Literal["fp32", "tf32", "fp16", "bf16"]
Group = tuple[str, int | None, Isa | None]


class Grid(BaseModel):
    """Widths that kernels take whole: those of a pruned model are multiples of these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: int = Field(1, ge=1, description="features of an attention sub-layer: heads times head size")
    neurons: int = Field(1, ge=1, description="feed-forward neurons")
    channels: int = Field(1, ge=1, description="channels of a convolution")

    def head_step(self, head_size: int) -> int:
        """Return what the number of heads is a multiple of, so that their features lie on the grid."""
        return self.attention // math.gcd(self.attention, head_size)


class Grids(BaseModel):
    """The grid of each precision in which a pruned model may run; fp32 also where none is chosen yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fp32: Grid = Grid()
    fp16: Grid = Grid()
    int8: Grid = Grid()


_MODES: Mapping[str, frozenset[str]] = {
    "torch": frozenset({"precision", "compile", "cuda_graph"}),
    "onnxruntime": frozenset({"precision", "cuda_graph"}),
    "tensorrt": frozenset({"cuda_graph"}),
    "onnxruntime-arm64": frozenset(),
    "openvino": frozenset(),
}
"""Built-in runtime -> the fields that say how it computes. A plugin's runtime looks at them itself."""


_WHY_NOT: Mapping[str, str] = {
    "precision": "its files have their precision inside",
    "compile": "torch.compile takes PyTorch models",
    "cuda_graph": "it runs on a CPU",
}


class Target(BaseModel):
    """One place to run: a runtime on a device under limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    description: str = ""
    runtime: str = Field(description="torch | onnxruntime | openvino | tensorrt")
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = Field(None, ge=1, le=4096, description="intra-op threads; null = every core")
    memory_bytes: int | None = Field(None, ge=1, le=2**50, description="limit for the measuring process")
    isa: Isa | None = Field(
        None, description="highest x86 level that kernels may use; avx512 is without VNNI; null = all that the CPU has"
    )
    precision: Precision | None = Field(
        None,
        description="what float32 models are computed in; null = fp32, or what an engine was built for. fp32 is "
        "without TF32",
    )
    compile: bool = Field(False, description="with runtime torch: run the model through torch.compile")
    cuda_graph: bool = Field(False, description="record the kernels of each input shape once, then replay them")
    emulate: str | None = Field(None, description="CPU model that qemu emulates; such a target has no times")
    grid: Grids = Field(Grids(), description="what widths of pruned models are multiples of, for each precision")
    evidence: Evidence = Field("measured", description="the grade that every row of this target carries")

    @model_validator(mode="after")
    def _isa_is_of_a_cpu(self) -> Target:
        if self.isa is not None and self.device != "cpu":
            raise ValueError("`isa` caps the instructions of a CPU; leave it out, or set `device: cpu`")
        return self

    @model_validator(mode="after")
    def _emulated_is_said(self) -> Target:
        if self.emulate is not None and self.evidence != "emulated":
            raise ValueError("a target with `emulate` has `evidence: emulated`")
        return self

    @model_validator(mode="after")
    def _mode_is_of_the_runtime(self) -> Target:
        known = _MODES.get(self.runtime, frozenset({"precision", "compile", "cuda_graph"}))
        for name in ("precision", "compile", "cuda_graph"):
            if getattr(self, name) and name not in known:
                raise ValueError(f"`{name}` is not for the runtime {self.runtime}: {_WHY_NOT[name]}")
        if self.runtime == "onnxruntime" and self.precision in ("fp16", "bf16"):
            raise ValueError("an ONNX file has its precision inside: leave `precision` out, and use the `cast` pass")
        if self.device == "cpu" and self.cuda_graph:
            raise ValueError("`cuda_graph` is of a GPU: set `device: cuda`")
        if self.device == "cpu" and self.precision == "tf32":
            raise ValueError("`precision: tf32` is of a GPU: set `device: cuda`")
        return self

    @property
    def group(self) -> Group:
        """Device, threads and instructions: speed-ups are stated among targets that share them."""
        return self.device, self.threads, self.isa


@cache
def builtin_targets() -> dict[str, Target]:
    """Return the targets that ship with the package, by name."""
    folder = resources.files("compress") / "targets"
    found = [parse_target(f.read_text(encoding="utf-8"), f.name) for f in folder.iterdir() if f.name.endswith(".yaml")]
    return {target.name: target for target in sorted(found, key=lambda t: t.name)}


def find_target(name: str) -> Target:
    """Return a built-in target by name, or one from a YAML file by path.

    Raises:
        RecipeError: neither exists, or the file does not describe a target.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            path = local_path(name)
            text = read_text(path, LARGEST_YAML) if path.exists() else None
        except Unreadable as error:
            raise RecipeError(
                "The target file cannot be read.", value=f"{name}: {error}", fix="Give the path of a target YAML."
            ) from error
        if text is None:
            raise RecipeError("The target file does not exist.", value=path, fix="Give the path of a target YAML.")
        return parse_target(text, name)
    known = builtin_targets()
    if name not in known:
        raise RecipeError(f"Unknown target {name!r}.", fix=did_you_mean(name, known))
    return known[name]


def find_targets(names: Iterable[str]) -> list[Target]:
    """Return targets by name or path, each once, in this order.

    Raises:
        RecipeError: see ``find_target``; or two different ones have the same name, by which rows are told apart.
    """
    found: dict[str, Target] = {}
    for target in map(find_target, names):
        if found.setdefault(target.name, target) != target:
            raise RecipeError(
                "Two different targets have the same name.",
                value=target.name,
                fix="Change `name:` in one of the files.",
            )
    return list(found.values())


def parse_target(text: str, origin: str) -> Target:
    try:
        return Target.model_validate(parse_yaml(text))
    except (ValidationError, Unreadable) as error:
        raise RecipeError(
            "This is not a target.",
            value=f"{origin}: {_reason(error)}",
            fix=f"A target has: {', '.join(Target.model_fields)}.",
        ) from error


def _reason(error: ValidationError | Unreadable) -> str:
    """Return the first thing that is wrong, in one line."""
    if isinstance(error, Unreadable):
        return str(error)
    first = error.errors(include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
