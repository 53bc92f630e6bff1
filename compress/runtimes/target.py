"""Targets: where a variant is measured. Data, not code; the built-in ones lie in ``compress/targets``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compress.errors import RecipeError, did_you_mean

Evidence = Literal["measured", "proxy", "emulated", "modelled", "ingested"]


Isa = Literal["avx2", "avx512"]
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


class Target(BaseModel):
    """One place to run: a runtime on a device under limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    runtime: str = Field(description="torch | onnxruntime | openvino | tensorrt")
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = Field(None, ge=1, description="intra-op threads; null = every core")
    memory_bytes: int | None = Field(None, ge=1, description="limit for the measuring process")
    isa: Isa | None = Field(
        None, description="highest x86 level that kernels may use; avx512 is without VNNI; null = all that the CPU has"
    )
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

    @property
    def group(self) -> Group:
        """Device, threads and instructions: speed-ups are stated among targets that share them."""
        return self.device, self.threads, self.isa


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
        path = Path(name)
        if not path.is_file():
            raise RecipeError("The target file does not exist.", value=path, fix="Give the path of a target YAML.")
        return parse_target(path.read_text(encoding="utf-8"), name)
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
        return Target.model_validate(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        raise RecipeError(
            "This is not a target.",
            value=f"{origin}: {str(error).splitlines()[0]}",
            fix="A target has: name, runtime, device, threads, memory_bytes, isa, grid, evidence.",
        ) from error
