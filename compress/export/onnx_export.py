"""PyTorch to ONNX through ``transformers.exporters``: the one module that knows that young interface."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import TensorSpec
from compress.errors import RunError
from compress.export.onnx_clean import clean, write_onnx

if TYPE_CHECKING:
    import onnx
    import torch
    from transformers import PreTrainedModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Every input that a text encoder may have, in the order of the graph's signature."""
_EXAMPLE = (2, 7)
"""(batch, sequence) of the traced example: no size is 0 or 1, which tracing would take for constants."""
PIXELS = "pixel_values"
"""The input of an image model."""


def export_onnx(
    model: PreTrainedModel,
    out_file: Path,
    *,
    inputs: Sequence[str | TensorSpec] | None = None,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write a classifier as ONNX with one output, ``logits``; axes ``batch`` and, for texts, ``sequence`` are dynamic.

    Images have a fixed size, which the specification of ``pixel_values`` says.

    Attention is traced in its plain form (``eager``): the fused operator that Transformers uses by default
    decomposes into a third more nodes, which cost about 8 % of the latency of a short sentence on one core.
    Width-pruned models with unequal layers export the same way. The same model gives the same bytes.

    Args:
        model: in float32 on the CPU; left as it was.
        out_file: the ``.onnx`` file to write, weights inside.
        inputs: which of ``INPUTS`` the graph takes, names or specifications; None = what a text model accepts.
        opset: ONNX operator set; None = the exporter's default.
        metadata: entries of the file's ``metadata_props``.

    Returns:
        Notes for the manifest: opset, ONNX IR version, number of nodes, inputs.

    Raises:
        RunError: the exporter failed, or fixed an axis that must stay dynamic.
        ModelError: the file would exceed 2 GiB.
    """
    example = _example(model, inputs)
    proto = _trace(model, example, opset)
    clean(proto, metadata)
    _check_axes(proto)
    write_onnx(proto, out_file)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    return {"opset": opsets, "ir_version": proto.ir_version, "nodes": len(proto.graph.node), "inputs": [*example]}


def _example(model: PreTrainedModel, inputs: Sequence[str | TensorSpec] | None) -> dict[str, torch.Tensor]:
    specs = {spec.name: spec for spec in inputs or () if isinstance(spec, TensorSpec)}
    if PIXELS in specs:
        return {PIXELS: example_images([size for size in specs[PIXELS].shape if isinstance(size, int)])}
    wanted = [*specs, *(name for name in inputs or () if isinstance(name, str))] or model_inputs(model)
    return example_inputs([name for name in INPUTS if name in wanted], model.config.vocab_size)


def model_inputs(model: PreTrainedModel) -> list[str]:
    """Return which of ``INPUTS`` a model's ``forward`` takes and makes use of."""
    parameters = inspect.signature(model.forward).parameters
    used = [name for name in INPUTS if name in parameters]
    if getattr(model.config, "type_vocab_size", 0) < 2 and "token_type_ids" in used:
        used.remove("token_type_ids")
    return used


def example_inputs(names: Sequence[str], vocabulary: int) -> dict[str, torch.Tensor]:
    """Return fixed int64 inputs of shape (2, 7) for tracing, the last two tokens of the second row masked."""
    import torch

    ids = torch.arange(1, 1 + _EXAMPLE[0] * _EXAMPLE[1]).reshape(_EXAMPLE) % vocabulary
    mask = torch.ones(_EXAMPLE, dtype=torch.int64)
    mask[1, -2:] = 0
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros(_EXAMPLE, dtype=torch.int64)}
    return {name: every[name] for name in names}


def example_images(shape: Sequence[int]) -> torch.Tensor:
    """Return two fixed images for tracing: (2, channels, height, width) float32."""
    import torch

    return torch.linspace(-1.0, 1.0, 2 * math.prod(shape)).reshape(2, *shape)


def _trace(model: PreTrainedModel, example: Mapping[str, torch.Tensor], opset: int | None) -> onnx.ModelProto:
    """Return the exporter's graph for ``model``, with ``logits`` as its only output."""
    import onnx_ir
    import torch
    from transformers.exporters import OnnxConfig, OnnxExporter

    dynamic = torch.export.Dim.DYNAMIC
    shapes = {name: {0: dynamic} if name == PIXELS else {0: dynamic, 1: dynamic} for name in example}
    config = OnnxConfig(dynamic_shapes=shapes, opset_version=opset)
    try:
        with _traceable(model), _quiet(), torch.no_grad():
            exported = OnnxExporter().export(model, dict(example), config=config)
            proto = onnx_ir.to_proto(exported.program)
    except Exception as error:
        raise RunError(
            "The model could not be exported to ONNX.",
            value=f"{type(model).__name__}: {type(error).__name__}: {str(error).strip().splitlines()[0]}",
            fix="Use the versions in constraints.txt; if it still fails, report it with the model's config.json.",
        ) from error
    if "logits" not in [value.name for value in proto.graph.output]:
        raise RunError(
            "The exported graph has no output named 'logits'.",
            value=", ".join(value.name for value in proto.graph.output),
            fix="Export a model with a classification head.",
        )
    return _keep_only_logits(proto)


def _keep_only_logits(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop every other output (hidden states of a model that is configured to return them) and what only it needs."""
    import onnx

    if len(proto.graph.output) == 1:
        return proto
    extractor = onnx.utils.Extractor(proto)
    return extractor.extract_model([value.name for value in proto.graph.input], ["logits"])


@contextlib.contextmanager
def _traceable(model: PreTrainedModel) -> Iterator[None]:
    """Put a model in evaluation mode with plain attention; restore both afterwards."""
    training, attention = model.training, model.config._attn_implementation
    model.eval()
    if attention is not None:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if attention is not None:
            model.set_attn_implementation(attention)
        model.train(training)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow the exporter's progress prints, log lines and deprecation warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check_axes(proto: onnx.ModelProto) -> None:
    for value in proto.graph.input:
        axes = [size.dim_param for size in value.type.tensor_type.shape.dim]
        if axes != (["batch", "", "", ""] if value.name == PIXELS else ["batch", "sequence"]):
            raise RunError(
                f"The exporter fixed an axis of the input {value.name!r}.",
                value=axes,
                fix="The model's code branches on a size; report it with the model's config.json.",
            )
