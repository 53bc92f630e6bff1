"""What TensorRT takes but runs slowly, or not in INT8: warnings and notes.

The limits are those of its developer guide (fused attention, channels) and of what NVIDIA's own quantizer leaves out
(thin products); ``tensorrt.yaml`` holds them.
"""

from __future__ import annotations

from collections.abc import Iterator

from compress.checks.finding import Finding
from compress.checks.products import Product, before, behind, operand, products
from compress.checks.tables import Table
from compress.checks.view import View

_FLOATS = {1: "FP32", 10: "FP16", 16: "BF16"}
_ACTIVATIONS = ("Relu", "Gelu", "Erf", "Tanh", "Sigmoid", "LeakyRelu", "HardSwish", "Clip", "BatchNormalization")


def thin_products(view: View, table: Table) -> Iterator[Finding]:
    """A product with few inputs or outputs costs less than quantizing its input."""
    for product in products(view):
        sizes = {"K": product.depth, "N": product.width}
        thin = [f"{name} = {size}" for name, size in sizes.items() if size is not None and size < table.limits.thin]
        if product.family == "linear" and product.quantized and thin:
            yield Finding(
                "thin-product",
                "warning",
                view.label(product.node),
                f"quantized, with {' and '.join(thin)}: below {table.limits.thin}, INT8 costs more than it saves",
                "Leave this product in FP16.",
            )


def vectors(view: View, table: Table) -> Iterator[Finding]:
    """A matrix times one vector is bound by memory, whatever its precision."""
    found = list(products(view))
    stacked = any(it.family == "conv" or len(view.shapes.get(it.left.name, ())) > 2 for it in found)
    for product in found:
        if product.family != "linear" or not product.quantized:
            continue
        pooled = stacked and product.rows is None and len(view.shapes.get(product.left.name, ())) == 2
        if product.rows == 1 or product.width == 1 or pooled:
            which = "one row for each input, so M = 1 at batch 1" if pooled else "M = 1 or N = 1"
            yield Finding(
                "matrix-vector",
                "warning",
                view.label(product.node),
                f"quantized, and a matrix times a vector ({which}): bound by memory, INT8 does not pay",
                "Leave this product in FP16.",
            )


def int8_attention(view: View, table: Table) -> Iterator[Finding]:
    """Quantized attention products outside the limits of the fused kernel run as three kernels."""
    limits = table.limits
    for scores, context in attentions(view):
        sides = [scores.quantized, context.quantized]
        if not any(sides):
            continue
        head, length = scores.depth or context.width, scores.width or context.depth
        reasons = []
        if not all(sides):
            reasons.append("one product of the attention is quantized and the other is not")
        if head is not None and head not in limits.int8_head_sizes:
            reasons.append(f"head size {head}, not one of {', '.join(map(str, limits.int8_head_sizes))}")
        if length is not None and length > limits.int8_length:
            reasons.append(f"{length} positions, more than {limits.int8_length}")
        for reason in reasons:
            yield Finding(
                "int8-attention",
                "warning",
                view.label(scores.node),
                f"{reason}: TensorRT does not fuse this attention in INT8",
                "Leave both products of this attention in FP16, whose fused kernel has other limits.",
            )


def float_attention(view: View, table: Table) -> Iterator[Finding]:
    """FP16 attention outside the limits of the fused kernel runs as three kernels."""
    low, high = table.limits.float_head_sizes
    for scores, context in attentions(view):
        if scores.quantized or context.quantized or view.types.get(scores.left.name) not in (10, 16):
            continue
        head = scores.depth or context.width
        if head is not None and (head % table.limits.float_head_multiple or not low <= head <= high):
            yield Finding(
                "float-attention",
                "warning",
                view.label(scores.node),
                f"head size {head}; TensorRT fuses attention with multiples of {table.limits.float_head_multiple} "
                f"from {low} to {high}",
                "Keep heads of such a size: prune whole heads, not parts of them.",
            )


def channels(view: View, table: Table) -> Iterator[Finding]:
    """Tensor cores work on blocks of channels; what does not fill them is padded."""
    for product in products(view):
        if product.family == "attention" or product.depth is None or product.width is None:
            continue
        kind = view.types.get(product.left.name)
        if product.quantized:
            multiple, precision = table.limits.int8_channels, "INT8"
        elif kind in (10, 16):
            multiple, precision = table.limits.float_channels, _FLOATS[kind]
        else:
            continue
        if product.family == "linear" and min(product.depth, product.width) < table.limits.thin:
            continue
        picture = product.family == "conv" and product.depth <= table.limits.picture_channels
        odd = [size for size in (0 if picture else product.depth, product.width) if size % multiple]
        if odd:
            yield Finding(
                "channels",
                "warning",
                view.label(product.node),
                f"{product.depth} inputs and {product.width} outputs in {precision}: {' and '.join(map(str, odd))} "
                f"{'is' if len(odd) == 1 else 'are'} no multiple of {multiple}, so tensor cores work on padding",
                f"Prune to multiples of {multiple}.",
            )


def float32_sea(view: View, table: Table) -> Iterator[Finding]:
    """INT8 products between FP32 operators: each border converts, and FP32 runs without tensor cores."""
    scales = [node for node in view.of("DequantizeLinear") if view.types.get(node.output[0]) == 1]
    if scales and any(product.quantized for product in products(view)):
        yield Finding(
            "float32-sea",
            "warning",
            view.label(scales[0]),
            f"{len(scales)} DequantizeLinear give FP32: what is not INT8 runs in FP32, without tensor cores",
            "Cast the rest to FP16, scales included.",
        )


def quantized_outputs(view: View, table: Table) -> Iterator[Finding]:
    """A pair between a product and its activation function keeps them from being one kernel."""
    for product in products(view):
        for reader in behind(view, product.node.output[0], ("Add",)):
            if reader.op_type != "QuantizeLinear":
                continue
            readers = behind(view, reader.output[0], ("DequantizeLinear", "Cast"))
            if readers and all(node.op_type in _ACTIVATIONS for node in readers):
                yield Finding(
                    "quantized-output",
                    "warning",
                    view.label(reader),
                    f"stands between {view.label(product.node)} and {view.label(readers[0])}, which could be one",
                    "Quantize the inputs of products only; the next product's QuantizeLinear does the rest.",
                )


def residuals(view: View, table: Table) -> Iterator[Finding]:
    """A sum of an INT8 product and a float branch reads and writes that branch in float."""
    made = {product.node.output[0]: product for product in products(view) if product.quantized}
    for node in view.of("Add"):
        if any(name in view.initializers for name in node.input) or len(node.input) != 2:
            continue
        sides = [_product_of(view, name, made) for name in node.input]
        if (sides[0] is None) == (sides[1] is None):
            continue
        branch, product = (node.input[1], sides[0]) if sides[0] is not None else (node.input[0], sides[1])
        if product is not None and not operand(view, branch).quantized:
            yield Finding(
                "residual",
                "warning" if product.family == "conv" else "info",
                view.label(node),
                f"adds a float branch to the INT8 product {view.label(product.node)}",
                "Quantize the branch as well: the sum then runs in the product's kernel.",
            )


def attentions(view: View) -> Iterator[tuple[Product, Product]]:
    """Yield the two products around each Softmax: scores and context."""
    found = {id(product.node): product for product in products(view) if product.family == "attention"}
    for softmax in view.of("Softmax"):
        scores = [found[id(node)] for node in before(view, softmax.input[0]) if id(node) in found]
        readers = behind(view, softmax.output[0], ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Dropout"))
        contexts = [found[id(node)] for node in readers if id(node) in found]
        if len(scores) == 1 and len(contexts) == 1:
            yield scores[0], contexts[0]


def _product_of(view: View, name: str, made: dict[str, Product]) -> Product | None:
    """Return the quantized product that makes a tensor, with or without a bias behind it."""
    node = view.producers.get(name)
    if node is not None and node.op_type == "Add" and any(it in view.initializers for it in node.input):
        name = next((it for it in node.input if it not in view.initializers), name)
    return made.get(name)
