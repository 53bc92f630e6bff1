"""Graphs that do not hold together: names without a maker, cycles, sizes that do not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import zip_longest
from typing import TYPE_CHECKING

from compress.checks.finding import Finding
from compress.checks.tables import Table
from compress.checks.view import View
from compress.quantization.products import attribute

if TYPE_CHECKING:
    import onnx

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Equal", "Greater", "Less", "Where", "Mod")
_AGAIN = "Export the model again; `onnx.checker.check_model(path, full_check=True)` shows the same."


def names(view: View, table: Table) -> Iterator[Finding]:
    """Every tensor that is read has one maker."""
    for graph in view.graphs:
        made = Counter(name for node in graph.node for name in node.output if name)
        for name, times in made.items():
            if times > 1:
                yield Finding("structure", "error", name, f"{times} nodes make this tensor", _AGAIN)
    for node in view.nodes:
        for name in node.input:
            if name and not view.has(name):
                yield Finding("structure", "error", view.label(node), f"nothing makes its input {name}", _AGAIN)
    for name in view.outputs:
        if not view.has(name):
            yield Finding("structure", "error", name, "nothing makes this output", _AGAIN)


def cycles(view: View, table: Table) -> Iterator[Finding]:
    """The nodes of the graph can be put in an order."""
    nodes = view.model.graph.node
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    order = TopologicalSorter({i: {makers[it] for it in node.input if it in makers} for i, node in enumerate(nodes)})
    try:
        order.prepare()
    except CycleError as error:
        yield Finding("structure", "error", view.label(nodes[error.args[1][0]]), "depends on its own output", _AGAIN)


def ranks(view: View, table: Table) -> Iterator[Finding]:
    """A tensor has at most eight axes."""
    for name in sorted(view.inputs):
        shape = view.shapes.get(name, ())
        if len(shape) > table.limits.axes:
            reason = f"{len(shape)} axes; TensorRT has at most {table.limits.axes}"
            yield Finding("rank", "error", name, reason, "Join axes before the export.")


def sizes(view: View, table: Table) -> Iterator[Finding]:
    """Operands of products and sums fit together."""
    for node in view.nodes:
        reason = _misfit(view, node)
        if reason:
            yield Finding("structure", "error", view.label(node), reason, _AGAIN)


def branches(view: View, table: Table) -> Iterator[Finding]:
    """Both branches of an If give equally many outputs, of the same types."""
    for node in view.of("If"):
        sides = [list(attribute(node, name, None).output) for name in ("then_branch", "else_branch")]
        if len(sides[0]) != len(sides[1]):
            reason = f"branches with {len(sides[0])} and {len(sides[1])} outputs"
            yield Finding("structure", "error", view.label(node), reason, _AGAIN)
            continue
        for first, second in zip(*sides, strict=True):
            kinds = [view.kind(first.name), view.kind(second.name)]
            if None not in kinds and kinds[0] != kinds[1] and not view.stored(node.input[0]):
                yield Finding(
                    "mixed-types",
                    "error",
                    view.label(node),
                    f"its branches give {kinds[0]} and {kinds[1]}",
                    "Put a Cast at the end of one branch.",
                )


def _misfit(view: View, node: onnx.NodeProto) -> str:
    shapes = [view.shapes.get(name) for name in node.input]
    if node.op_type == "MatMul" and all(shape is not None and len(shape) > 1 for shape in shapes):
        depth, other = view.size(node.input[0], -1), view.size(node.input[1], -2)
        return f"multiplies {depth} columns with {other} rows" if None not in (depth, other) and depth != other else ""
    if node.op_type == "Conv" and shapes[0] is not None and shapes[1] is not None:
        found, per_group = view.size(node.input[0], 1), view.size(node.input[1], 1)
        wanted = None if per_group is None else per_group * attribute(node, "group", 1)
        if len(shapes[0]) > 5:
            return "Conv of more than three dimensions"
        return f"{found} channels for a kernel of {wanted}" if None not in (found, wanted) and found != wanted else ""
    if node.op_type in _ELEMENTWISE and view.opset >= 7 and None not in shapes:
        for column in zip_longest(*(reversed(shape or ()) for shape in shapes), fillvalue=1):
            fixed = {size for size in column if isinstance(size, int) and size != 1}
            if len(fixed) > 1:
                return f"sizes {' and '.join(map(str, sorted(fixed)))} on one axis"
    return ""
