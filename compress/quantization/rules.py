"""Which precision each node of a graph gets on a runtime and an instruction set; the rules are data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from compress.errors import UsageError
from compress.quantization.graph import Graph
from compress.quantization.products import Family, Product, find_products

if TYPE_CHECKING:
    import onnx

Method = Literal["dynamic", "static"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FloatRule(_Strict):
    """Nodes that stay in float32, and why. Every condition that is given must hold."""

    reason: str
    family: Family | None = None
    operators: tuple[str, ...] = Field((), description="operator types, for nodes that are no products")
    depth_below: int | None = Field(None, description="K of a linear layer")
    width_below: int | None = Field(None, description="N of a linear layer")

    def holds(self, product: Product) -> bool:
        """Say whether the rule keeps a product in float."""
        return (
            self.family == product.family
            and (self.depth_below is None or product.depth < self.depth_below)
            and (self.width_below is None or product.width < self.width_below)
        )


class IsaRules(_Strict):
    """How one instruction set multiplies 8-bit integers."""

    weight_bits: Literal[7, 8] = Field(description="7 where pairs of products are added in 16 bits")
    reason: str


class Rules(_Strict):
    """The rules of one runtime."""

    runtime: str
    activation: Literal["uint8", "int8"] = Field(description="uint8 has a zero point, int8 is symmetric")
    methods: tuple[Method, ...] = Field(description="ways to quantize activations that its kernels have")
    fused: bool = Field(description="whether it has QAttention")
    float: tuple[FloatRule, ...]
    isa: Mapping[str, IsaRules]


@dataclass(frozen=True)
class Placement:
    """Where one node runs.

    Attributes:
        node, operator: which.
        precision: int8 or float32.
        reason: why it stays in float32; empty for int8.
        macs: multiply-accumulates of one token, of linear layers.
        product: what could be quantized; None for other operators.
    """

    node: str
    operator: str
    precision: Literal["int8", "float32"]
    reason: str = ""
    macs: int = 0
    product: Product | None = None


def rules_for(runtime: str) -> Rules:
    """Return the rules of a runtime.

    Raises:
        UsageError: it has none: nothing of ours quantizes for it.
    """
    known = _rules()
    if runtime not in known:
        raise UsageError(
            "There are no rules of precision for this runtime.",
            value=runtime,
            fix=f"Quantize for one of: {', '.join(sorted(known))}.",
        )
    return known[runtime]


def runtimes_with_rules() -> list[str]:
    """Return the runtimes that have rules, sorted."""
    return sorted(_rules())


@cache
def _rules() -> dict[str, Rules]:
    folder = resources.files("compress") / "quantization" / "rules"
    texts = [f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name.endswith(".yaml")]
    parsed = [Rules.model_validate(yaml.safe_load(text)) for text in texts]
    return {rules.runtime: rules for rules in parsed}


def place(
    model: onnx.ModelProto, rules: Rules, *, excluded: Mapping[str, str] | None = None, tables: bool = True
) -> list[Placement]:
    """Decide for every node that computes on floats whether it runs on 8-bit integers.

    Args:
        model: float32 graph.
        rules: of the runtime.
        excluded: node name -> reason: what stays in float32 besides (a glob of the user, a sensitivity).
        tables: whether embedding tables are stored in 8 bits.

    Returns:
        One placement per node, in the graph's order; arithmetic on shapes is left out.
    """
    graph, excluded = Graph(model), excluded or {}
    products = {product.node: product for product in find_products(graph)}
    by_operator = {name: rule.reason for rule in rules.float for name in rule.operators}
    out = []
    for node in graph.nodes:
        product = products.get(node.name)
        if product is not None:
            reason = excluded.get(node.name) or _reason(product, rules, tables)
            precision: Literal["int8", "float32"] = "float32" if reason else "int8"
            out.append(Placement(node.name, node.op_type, precision, reason, product.macs, product))
        elif node.op_type in by_operator:
            out.append(Placement(node.name, node.op_type, "float32", by_operator[node.op_type]))
    return out


def quantized_inputs(placements: Iterable[Placement]) -> list[str]:
    """Return the activations that linear layers placed in int8 read: the tensors to calibrate."""
    return [it.product.input for it in placements if it.precision == "int8" and it.product and it.product.input]


def _reason(product: Product, rules: Rules, tables: bool) -> str:
    if product.family == "table" and not tables:
        return "embedding tables were not asked for"
    for rule in rules.float:
        if rule.family is not None and rule.holds(product):
            return rule.reason.format(depth=product.depth, width=product.width)
    return ""
