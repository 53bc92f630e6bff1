"""What a linter knows of a target: data, read from YAML."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Strict):
    """Sizes beyond which a fast kernel is not taken."""

    axes: int = Field(description="most axes of a tensor")
    thin: int = Field(description="a product with a smaller K or N is not worth quantizing")
    int8_head_sizes: tuple[int, ...] = Field(description="of fused INT8 attention")
    int8_length: int = Field(description="most positions of fused INT8 attention")
    float_head_sizes: tuple[int, int] = Field(description="smallest and largest head of fused FP16 attention")
    float_head_multiple: int
    int8_channels: int = Field(description="multiple that fills the blocks of INT8 tensor cores")
    float_channels: int
    picture_channels: int = Field(description="most input channels of a convolution that reads a picture")


class RefusedTypes(_Strict):
    operators: tuple[str, ...]
    inputs: tuple[int, ...]
    types: tuple[str, ...]


class Attribute(_Strict):
    operators: tuple[str, ...]
    name: str
    values: tuple[int | float | str, ...] = Field(description="what is taken; of a list, for each element")


class Outputs(_Strict):
    operators: tuple[str, ...]
    most: int


class Constants(_Strict):
    operators: tuple[str, ...]
    inputs: tuple[int, ...]
    level: Literal["stored", "known"] = Field(description="an initializer, or computed of initializers and fixed sizes")


class Inputs(_Strict):
    operators: tuple[str, ...]
    inputs: tuple[int, ...]


class Ranks(_Strict):
    operators: tuple[str, ...]
    input: int
    ranks: tuple[int, ...]


class Table(_Strict):
    """What the parser of one target takes, and what its kernels like."""

    knowledge: str = Field(description="the parser and version that it was found with")
    types: tuple[str, ...] = Field(description="ONNX element types that a tensor may have")
    computed_as: dict[str, str] = Field(description="types that the parser replaces by another")
    uint8_operators: tuple[str, ...] = Field(description="operators that take UINT8")
    limits: Limits
    operators: frozenset[str]
    plugins: frozenset[str] = Field(description="operators that need a plugin which is not there")
    onnxruntime_operators: frozenset[str] = Field(description="operators of ONNX Runtime that are taken")
    refused_types: tuple[RefusedTypes, ...]
    mixing: frozenset[str] = Field(description="operators whose inputs may have different float types")
    equal: tuple[Inputs, ...] = Field(description="inputs of one type, although their schema types differ")
    attributes: tuple[Attribute, ...]
    outputs: tuple[Outputs, ...]
    constants: tuple[Constants, ...]
    shape_inputs: tuple[Inputs, ...]
    ranks: tuple[Ranks, ...]


@cache
def load_table(target: str) -> Table:
    """Return the table of a target that has a linter."""
    file = resources.files("compress") / "checks" / f"{target}.yaml"
    return Table.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
