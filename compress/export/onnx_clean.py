"""Clean an ONNX graph: no trace of the machine that made it, named axes, readable node names, stable bytes."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import ModelError

if TYPE_CHECKING:
    import onnx

AXES = ("batch", "sequence")
"""Names of the axes of every input: (batch, sequence)."""
PRODUCER = "mcompress"
_PROTOBUF_LIMIT = 2**31 - 1
_PATH = re.compile(r"(?<![\w./:>-])/(?:[\w.+@-]+/)+[\w.+@-]+|\b[A-Za-z]:\\[\w.+@-]+|\bfile://\S+")
_GENERATED = re.compile(r"\b[A-Za-z_]\w*\b")


def clean(model: onnx.ModelProto, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Clean a model in place and return it.

    Nodes get the name of the module they came from, axes of the inputs become ``batch`` and ``sequence``
    wherever their symbols appear, and everything that is not computation goes: stack traces, documentation
    strings, producer fields, shapes of inner values.

    Args:
        model: weights inside, not in external files.
        metadata: the only entries that ``metadata_props`` keeps.
    """
    name_nodes(model.graph)
    rename_axes(model.graph)
    strip_metadata(model)
    drop_value_info(model.graph)
    for key, value in sorted((metadata or {}).items()):
        model.metadata_props.add(key=key, value=value)
    return model


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove metadata, documentation strings and producer fields from the model and everything inside it."""
    for message in _messages(model):
        for name in ("metadata_props", "doc_string"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
    for name in ("producer_version", "domain", "model_version"):
        model.ClearField(name)
    model.producer_name = PRODUCER


def drop_value_info(graph: onnx.GraphProto) -> None:
    """Drop the recorded types and shapes of inner values; whoever needs them infers them.

    They go stale when a weight is rewritten. And they cost time: with them ONNX Runtime joins every residual sum and
    LayerNormalization to one SkipLayerNormalization, which is slower on its CPU provider than the two operators
    (1.31.1: 0.6 of 1.8 ms in a pruned MiniLM-L6 at 22 tokens, on one core).
    """
    del graph.value_info[:]


def rename_axes(graph: onnx.GraphProto, axes: Sequence[str] = AXES) -> None:
    """Give the symbolic sizes of the inputs their position's name, in every shape that mentions them."""
    names: dict[str, str] = {}
    for value in graph.input:
        for position, size in enumerate(value.type.tensor_type.shape.dim):
            if position < len(axes) and not size.HasField("dim_value"):
                if size.dim_param:
                    names[size.dim_param] = axes[position]
                else:
                    size.dim_param = axes[position]
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = _GENERATED.sub(lambda match: names.get(match[0], match[0]), size.dim_param)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Name each node ``<module>/<operator>`` after the module that it was traced in, so that globs can select it.

    Nodes of exporters that record no module keep their own name; an empty or repeated name gets a number.
    """
    seen: Counter[str] = Counter()
    for node in graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), None)
        if scopes is not None:
            modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope and not scope.startswith("_")]
            node.name = f"{modules[-1]}/{node.op_type}" if modules else node.op_type
        name = node.name or node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def find_paths(model: onnx.ModelProto) -> list[str]:
    """Return every absolute file path in the model's strings (names, metadata, attributes), sorted."""
    return sorted({match[0] for text in _strings(model) for match in _PATH.finditer(text)})


def write_onnx(model: onnx.ModelProto, out_file: Path) -> None:
    """Check a model and write it as one file; the same model gives the same bytes.

    Raises:
        ModelError: it exceeds the 2 GiB that one ONNX file can hold.
    """
    import onnx

    size = model.ByteSize()
    if size > _PROTOBUF_LIMIT:
        raise ModelError(
            "The model does not fit into one ONNX file.",
            value=f"{size} bytes, the limit is {_PROTOBUF_LIMIT}",
            fix="Prune it first, or use a smaller model.",
        )
    onnx.checker.check_model(model, full_check=True)
    out_file.write_bytes(model.SerializeToString(deterministic=True))


def _messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and every message inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if hasattr(value, "__len__") else (value,):
                yield from _messages(child)


def _strings(model: onnx.ModelProto) -> Iterator[str]:
    """Yield every text in a model; tensor contents are numbers and are left out."""
    for message in _messages(model):
        for field, value in message.ListFields():
            if field.message_type is None and field.name != "raw_data" and field.cpp_type == field.CPPTYPE_STRING:
                for item in [value] if isinstance(value, (str, bytes)) else value:
                    yield item.decode("utf-8", "replace") if isinstance(item, bytes) else item
