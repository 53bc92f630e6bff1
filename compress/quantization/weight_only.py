"""Weights stored in 4 or 8 bits by blocks: ``MatMulNBits`` and ``GatherBlockQuantized`` of ONNX Runtime.

A pure function of a graph: it never touches the model that it is given. The operators are described in
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.errors import UsageError
from compress.quantization.blocks import (
    BLOCK_SIZES,
    Bits,
    dividing_block_size,
    fitting_block_size,
    pack,
    quantize_blocks,
)
from compress.quantization.int8 import MATRIX_OPERATORS, excluded_nodes

if TYPE_CHECKING:
    import onnx

Layout = Literal["table", "columns", "rows"]
"""How a node reads its weight: rows by index, as a factor (K, N), or as a factor (N, K)."""
DOMAIN = "com.microsoft"
SMALLEST = 1024
"""Numbers below which a weight stays in float32: there is nothing to gain."""
_IN_INTEGERS = 4
"""``accuracy_level`` at which activations are rounded to 8 bits, by blocks of a row, and multiplied as integers."""


def quantize_weights(
    model: onnx.ModelProto,
    *,
    bits: Bits = 4,
    block_size: int = 32,
    linears: bool = True,
    embeddings: bool = True,
    embedding_bits: Bits | None = None,
    symmetric: bool = False,
    integer_products: bool = True,
    exclude: Sequence[str] = (),
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Store the weights of linear layers and embedding tables in 4 or 8 bits, with a scale for each block.

    Args:
        model: float32 graph; weights inside.
        bits: of a weight.
        block_size: numbers of an input row that share a scale: 16, 32, 64, 128 or 256. A weight whose rows that
            size does not divide gets a smaller one: a table one that does, a factor the one of the fewest bytes.
        linears: quantize MatMul and Gemm with a constant factor.
        embeddings: quantize tables that Gather reads.
        embedding_bits: of an embedding; None = ``bits``.
        symmetric: linears without zero points. Tables never have them: OpenVINO 2026.4 rejects those of a 4-bit table
            whose rows have an odd number of blocks.
        integer_products: let ONNX Runtime round activations to 8 bits and multiply integers. In float32 it is
            slower; with 8 bits much slower, because the weight is dequantized at every call.
        exclude: globs of node names that stay in float32.

    Returns:
        The quantized model, and notes: nodes quantized and left by operator, the reason for each that was left,
        weights by block size, and the root of the squared error over the squared weights.

    Raises:
        UsageError: there are no kernels for the block size.
        RecipeError: a glob matches no node that could be quantized.
    """
    import onnx

    if block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise UsageError("There are no kernels for this block size.", value=block_size, fix=f"Use one of {sizes}.")
    operators = [*(MATRIX_OPERATORS if linears else ()), *(["Gather"] if embeddings else [])]
    excluded = excluded_nodes(model, operators, exclude)
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    packer = _Packer(_constants(quantized.graph), bits, embedding_bits or bits, block_size, symmetric)
    found = {
        place: "excluded" if node.name in excluded else _use(node, packer)
        for place, node in enumerate(quantized.graph.node)
        if node.op_type in operators and _is_standard(node) and (node.op_type != "Gather" or packer.is_table(node))
    }
    _keep_shared_in_float(found, quantized.graph)
    left = [
        {"node": node.name, "operator": node.op_type, "reason": found[place]}
        for place, node in enumerate(model.graph.node)
        if isinstance(found.get(place), str)
    ]
    counted = Counter(model.graph.node[place].op_type for place, use in found.items() if isinstance(use, _Use))
    _rewrite(quantized, found, packer, integer_products)
    return quantized, {
        "method": "weight-only",
        "nodes_quantized": dict(sorted(counted.items())),
        "nodes_left": dict(sorted(Counter(str(entry["operator"]) for entry in left).items())),
        "float": left,
        **packer.notes(),
    }


@dataclass(frozen=True)
class _Use:
    """The weight that a node can read in blocks, and how."""

    weight: str
    layout: Layout


@dataclass
class _Packer:
    """Quantizes each weight once, and says what the nodes that read it need."""

    constants: Mapping[str, onnx.TensorProto]
    matrix_bits: Bits
    table_bits: Bits
    block_size: int
    symmetric: bool
    sizes: dict[str, int] = field(default_factory=dict)
    squares: dict[str, list[float]] = field(default_factory=dict)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def is_table(self, node: onnx.NodeProto) -> bool:
        """Say whether a Gather reads a constant of floats."""
        import onnx

        table = self.constants.get(node.input[0])
        return table is not None and table.data_type == onnx.TensorProto.FLOAT

    def inputs(self, use: _Use) -> list[str]:
        """Return the names of the packed weight, its scales and any zero points; pack it at its first use."""
        names = [f"{use.weight}_Q{self._bits(use)}", f"{use.weight}_scales"]
        if not self._is_symmetric(use):
            names.append(f"{use.weight}_zero_points")
        if use.weight not in self.sizes:
            self._pack(use, names)
        return names

    def attributes(self, use: _Use) -> dict[str, int]:
        """Return the attributes that say how the packed weight is read."""
        common = {"bits": self._bits(use), "block_size": self.sizes[use.weight]}
        if use.layout == "table":
            return {**common, "gather_axis": 0, "quantize_axis": 1}
        rows, columns = self.constants[use.weight].dims
        return {**common, "K": columns, "N": rows} if use.layout == "rows" else {**common, "K": rows, "N": columns}

    def notes(self) -> dict[str, Any]:
        errors = {kind: math.sqrt(error / total) for kind, (error, total) in sorted(self.squares.items()) if total}
        return {
            "block_sizes": {str(size): count for size, count in sorted(Counter(self.sizes.values()).items())},
            "relative_error": {kind: float(f"{error:.4g}") for kind, error in errors.items()},
        }

    def _bits(self, use: _Use) -> Bits:
        return self.table_bits if use.layout == "table" else self.matrix_bits

    def _is_symmetric(self, use: _Use) -> bool:
        return self.symmetric or use.layout == "table"

    def _pack(self, use: _Use, names: Sequence[str]) -> None:
        """Store a weight as (N, blocks, bytes of a block), or a table as (rows, bytes of a row) without padding."""
        import onnx

        weight = onnx.numpy_helper.to_array(self.constants[use.weight])
        rows = weight.T if use.layout == "columns" else weight
        bits, table = self._bits(use), use.layout == "table"
        if table:
            size = dividing_block_size(rows.shape[1], self.block_size)
        else:
            size = fitting_block_size(rows.shape[1], bits, self.block_size)
        blocks = quantize_blocks(rows, bits, size, symmetric=self._is_symmetric(use))
        if table:
            packed = pack(blocks.integers[:, : blocks.columns], bits)
        else:
            packed = pack(blocks.integers, bits).reshape(*blocks.scales.shape, -1)
        for name, array in zip(names, (packed, blocks.scales, pack(blocks.zero_points, bits)), strict=False):
            self.tensors.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        self.sizes[use.weight] = size
        sums = self.squares.setdefault("embeddings" if table else "linears", [0.0, 0.0])
        sums[0] += blocks.squared_error
        sums[1] += float(np.square(weight, dtype=np.float64).sum())


def _use(node: onnx.NodeProto, packer: _Packer) -> _Use | str:
    """Return how a node could read its weight in blocks, or why it cannot."""
    import onnx

    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    table = node.op_type == "Gather"
    name = node.input[0 if table else 1]
    weight = packer.constants.get(name)
    if weight is None:
        constant = node.input[0] in packer.constants
        return "the constant is the left factor" if constant else "both factors are computed at run time"
    if weight.data_type != onnx.TensorProto.FLOAT:
        return "the weight is not float32"
    if len(weight.dims) != 2:
        return f"the weight has rank {len(weight.dims)}, not 2"
    if table and values.get("axis", 0) != 0:
        return f"Gather along axis {values['axis']}"
    if table and packer.table_bits == 4 and weight.dims[1] % 2:
        return "rows of odd length do not fill bytes of two numbers"
    if changed := [key for key, usual in _USUAL.items() if node.op_type == "Gemm" and values.get(key, usual) != usual]:
        return f"Gemm with {changed[0]}={values[changed[0]]:g}"
    if math.prod(weight.dims) < SMALLEST:
        return f"fewer than {SMALLEST} numbers"
    if not np.isfinite(onnx.numpy_helper.to_array(weight)).all():
        return "the weight has numbers that are not finite"
    return _Use(name, "table" if table else "rows" if values.get("transB") else "columns")


_USUAL = {"alpha": 1.0, "beta": 1.0, "transA": 0}
_SHARED = "the weight is also read by"


def _keep_shared_in_float(found: dict[int, _Use | str], graph: onnx.GraphProto) -> None:
    """Replace the uses of a weight that something else reads otherwise by the reason."""
    readers: dict[str, set[int]] = defaultdict(set)
    for place, node in enumerate(graph.node):
        for name in _names_read([node]):
            readers[name].add(place)
    outputs = {value.name for value in graph.output}
    for place, use in list(found.items()):
        if isinstance(use, _Use):
            nodes = [graph.node[other] for other in sorted(readers[use.weight]) if found.get(other) != use]
            others = [node.name or node.op_type for node in nodes]
            others += ["the model's outputs"] if use.weight in outputs else []
            if others:
                found[place] = f"{_SHARED} {others[0]}"


def _rewrite(model: onnx.ModelProto, found: Mapping[int, _Use | str], packer: _Packer, integer_products: bool) -> None:
    """Put the operators that read blocks in the places of those that read floats, and drop what nothing reads."""
    import onnx

    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.node):
        use = found.get(place)
        nodes.extend(_replacement(node, use, packer, integer_products) if isinstance(use, _Use) else [node])
    read = _names_read(nodes) | {value.name for value in graph.output}
    nodes = [node for node in nodes if node.op_type != "Constant" or node.output[0] in read]
    weights = [tensor for tensor in graph.initializer if tensor.name in read or tensor.name not in packer.sizes]
    inputs = [value for value in graph.input if value.name in read or value.name not in packer.sizes]
    for field_, values in (
        (graph.node, nodes),
        (graph.initializer, [*weights, *packer.tensors]),
        (graph.input, inputs),
    ):
        kept = list(values)
        del field_[:]
        field_.extend(kept)
    if packer.sizes and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def _replacement(node: onnx.NodeProto, use: _Use, packer: _Packer, integer_products: bool) -> list[onnx.NodeProto]:
    import onnx

    packed, output = packer.inputs(use), node.output[0]
    attributes = packer.attributes(use)
    if use.layout == "table":
        inputs = [packed[0], node.input[1], *packed[1:]]
        return [
            onnx.helper.make_node("GatherBlockQuantized", inputs, [output], name=node.name, domain=DOMAIN, **attributes)
        ]
    if integer_products:
        attributes["accuracy_level"] = _IN_INTEGERS
    bias = node.input[2] if len(node.input) > 2 else ""
    product = f"{output}_product" if bias else output
    nodes = [
        onnx.helper.make_node(
            "MatMulNBits", [node.input[0], *packed], [product], name=node.name, domain=DOMAIN, **attributes
        )
    ]
    if bias:
        nodes.append(onnx.helper.make_node("Add", [product, bias], [output], name=f"{node.name}/Add"))
    return nodes


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the weights of a graph by name: initializers and tensors of Constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        tensors = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if node.op_type == "Constant" and tensors:
            found[node.output[0]] = tensors[0]
    return found


def _names_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names that nodes read, those inside their subgraphs and the outputs of these included."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                names |= _names_read(graph.node) | {value.name for value in graph.output}
    return names


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")
