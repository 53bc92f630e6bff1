"""Which precision each node of a graph gets on a runtime and an instruction set; the rules are data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from compress.errors import UsageError
from compress.quantization.attention import Attention, find_attention
from compress.quantization.graph import Graph
from compress.quantization.products import Family, Product, find_products, find_residuals

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
    one_row: bool = Field(False, description="a linear layer that multiplies one row of each example")
    recognised: bool | None = Field(None, description="whether an attention product is part of softmax(Q K^T) V")
    head_size_except: tuple[int, ...] = Field((), description="of a recognised attention product: any but these")
    length_above: int | None = Field(None, description="most tokens of an example, for attention products")
    vanishing_above: float | None = Field(
        None, description="share of an activation's values that 8 bits over its whole range round to 0"
    )

    def holds(self, product: Product, head_size: int, seen: Seen) -> bool:
        """Say whether the rule keeps a product in float; ``head_size`` is 0 where no attention was recognised."""
        return (
            self.family == product.family
            and (self.depth_below is None or product.depth < self.depth_below)
            and (self.width_below is None or product.width < self.width_below)
            and (not self.one_row or product.one_row)
            and (self.recognised is None or self.recognised == (head_size > 0))
            and (not self.head_size_except or head_size not in self.head_size_except)
            and (self.length_above is None or (seen.length or 0) > self.length_above)
            and (self.vanishing_above is None or seen.vanishing_of(product) > self.vanishing_above)
        )


class IsaRules(_Strict):
    """How one instruction set multiplies 8-bit integers."""

    weight_bits: Literal[7, 8] = Field(description="7 where pairs of products are added in 16 bits")
    reason: str


class Rules(_Strict):
    """The rules of one runtime."""

    runtime: str
    device: Literal["cpu", "cuda"] = Field("cpu", description="where it runs; forms are timed on a CPU only")
    activation: Literal["uint8", "int8"] = Field(description="uint8 has a zero point, int8 is symmetric")
    methods: tuple[Method, ...] = Field(description="ways to quantize activations that its kernels have")
    fused: bool = Field(description="whether it has QAttention")
    residual: bool = Field(False, description="whether residual sums read 8 bits, unless a rule keeps them in float")
    float: tuple[FloatRule, ...]
    isa: Mapping[str, IsaRules]


@dataclass(frozen=True)
class Seen:
    """What is known of the inputs, besides the graph.

    Attributes:
        length: most tokens of an example; None = unknown, and no rule about it holds.
        vanishing: activation -> share of its values that 8 bits over its whole range round to 0, see
            ``compress.quantization.ranges.vanishing_share``; none is known before calibration.
    """

    length: int | None = None
    vanishing: Mapping[str, float] = field(default_factory=dict)

    def vanishing_of(self, product: Product) -> float:
        """Return the larger share of the activations that a product reads."""
        return max((self.vanishing.get(name, 0.0) for name in product.activations), default=0.0)


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
    model: onnx.ModelProto,
    rules: Rules,
    *,
    excluded: Mapping[str, str] | None = None,
    tables: bool = True,
    seen: Seen | None = None,
) -> list[Placement]:
    """Decide for every node that computes on floats whether it runs on 8-bit integers.

    Args:
        model: float32 graph.
        rules: of the runtime.
        excluded: node name -> reason: what stays in float32 besides (a glob of the user, a sensitivity).
        tables: whether embedding tables are stored in 8 bits.
        seen: of the inputs; None = nothing.

    Returns:
        One placement per node, in the graph's order; arithmetic on shapes is left out.
    """
    graph, excluded, seen = Graph(model), excluded or {}, seen or Seen()
    attentions = find_attention(graph)
    sizes = {node.name: it.head_size for it in attentions for node in (it.scores, it.context)}
    found = [*find_products(graph), *(find_residuals(graph) if rules.residual else ())]
    products = {product.node: product for product in found}
    by_operator = {name: rule.reason for rule in rules.float for name in rule.operators}
    out = []
    for node in graph.nodes:
        product = products.get(node.name)
        if product is not None:
            reason = excluded.get(node.name) or _reason(product, rules, tables, sizes.get(node.name, 0), seen)
            precision: Literal["int8", "float32"] = "float32" if reason else "int8"
            out.append(Placement(node.name, node.op_type, precision, reason, product.macs, product))
        elif node.op_type in by_operator:
            out.append(Placement(node.name, node.op_type, "float32", by_operator[node.op_type]))
    return _whole_attention(graph, out, attentions)


def quantized_inputs(placements: Iterable[Placement]) -> list[str]:
    """Return the activations that what is placed in int8 reads: the tensors to calibrate."""
    products = [it.product for it in placements if it.precision == "int8" and it.product is not None]
    return [name for product in products for name in product.activations]


def _reason(product: Product, rules: Rules, tables: bool, head_size: int, seen: Seen) -> str:
    if product.family == "table" and not tables:
        return "embedding tables were not asked for"
    for rule in rules.float:
        if rule.family is not None and rule.holds(product, head_size, seen):
            return rule.reason.format(
                depth=product.depth,
                width=product.width,
                head_size=head_size,
                length=seen.length,
                vanishing=seen.vanishing_of(product),
            )
    return ""


def _whole_attention(graph: Graph, placements: list[Placement], attentions: Iterable[Attention]) -> list[Placement]:
    """Keep both products of an attention in float unless both are 8-bit and so is the layer that reads the result.

    A fused kernel takes integers for queries, keys, probabilities and values, and gives integers.
    """
    precision = {it.node: it.precision for it in placements}
    broken: dict[str, str] = {}
    for attention in attentions:
        reader = graph.only_consumer(attention.merge.output[0])
        names = [attention.scores.name, attention.context.name, reader.name if reader is not None else ""]
        why = next((name for name in names if precision.get(name) != "int8"), None)
        if why is not None:
            reason = f"attention product: fused 8-bit attention needs {why or 'what reads it'} in 8 bits too"
            broken |= dict.fromkeys(names[:2], reason)
    return [
        replace(it, precision="float32", reason=broken[it.node]) if it.precision == "int8" and it.node in broken else it
        for it in placements
    ]
