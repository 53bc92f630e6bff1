"""Take a user's ONNX file in: a text classifier with its tokenizer becomes a normalised payload, or a clear refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import TensorSpec
from compress.errors import ModelError
from compress.export.onnx_clean import clean, write_onnx
from compress.export.onnx_export import INPUTS
from compress.export.signature import tensor_spec
from compress.models.families import FAMILIES
from compress.models.loading import CONFIG, TOKENIZER_FILES
from compress.models.source import DEFAULT_MAX_LENGTH, label_names, problem_of
from compress.tasks.base import tasks

if TYPE_CHECKING:
    import onnx

MINIMUM_OPSET = 13
"""The first operator set with per-channel QuantizeLinear."""
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Operators that ONNX Runtime brings with it."""


def take_in_onnx(
    path: Path | str,
    out: Path,
    task_name: str,
    labels: Mapping[str, str] | None = None,
    max_length: int | None = None,
    problem: str | None = None,
) -> dict[str, Any]:
    """Write a user's ONNX file into ``out`` as ``model.onnx`` (weights inside) with config.json and tokenizer.

    Args:
        path: the ``.onnx`` file; ``tokenizer.json``, and config.json if there is one, lie beside it or one
            folder up.
        out: an empty folder.
        task_name: registered task.
        labels: the model's label names -> the names to use. Without a config.json the model's names are
            LABEL_0, LABEL_1, ...
        max_length: longest input in tokens; at most what config.json allows.
        problem: single_label, multi_label or regression; default: what config.json says.

    Returns:
        The task's options, as ``Task.dump()`` gives them.

    Raises:
        ModelError: the file cannot be taken in; the message says why and what to do.
    """
    path = Path(path).expanduser()
    model = read_onnx(path)
    inputs = _check_inputs(model.graph)
    width = _check_output(model.graph)
    tokenizer = _find(path, "tokenizer.json")
    if tokenizer is None:
        raise ModelError(
            "There is no tokenizer.json beside the ONNX file.",
            value=path.name,
            fix="Save the model's fast tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        )
    config = _config(path, width, inputs)
    problem = problem or problem_of(config)
    names = [] if problem == "regression" else label_names(config, labels)
    _check_width(config, names, width)
    length = _length(config, max_length or _recorded_length(model))
    options = {"name": task_name, "labels": names, "problem": problem, "max_length": length}
    task = tasks.get(task_name).parse(options)
    write_onnx(clean(model), out / "model.onnx")
    for file in _tokenizer_files(tokenizer.parent):
        shutil.copyfile(file, out / file.name)
    if names:
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return task.dump()


def files_read(path: Path) -> list[Path]:
    """Return every file that ``take_in_onnx`` reads: the model, its external weights, config.json and tokenizer.

    Raises:
        ModelError: weights lie outside the model's own folder.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    _check_external(model, path.parent)
    config, tokenizer = _find(path, CONFIG), _find(path, "tokenizer.json")
    return [
        path,
        *(path.parent / location for location in sorted({location for _, location in _locations(model)})),
        *([config] if config else []),
        *(_tokenizer_files(tokenizer.parent) if tokenizer else []),
    ]


def read_onnx(path: Path) -> onnx.ModelProto:
    """Load and check a model with its external weights, which must lie in its own folder."""
    import onnx

    if not path.is_file():
        raise ModelError("The ONNX file does not exist.", value=path.name, fix="Give the path of an .onnx file.")
    try:
        model = onnx.load(path, load_external_data=False)
        _check_operators(model)
        _check_external(model, path.parent)
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except ModelError:
        raise
    except Exception as error:  # protobuf, the checker and the file system raise types of their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            "This is not a valid ONNX model.", value=f"{path.name}: {lines[0]}", fix="Export the model again."
        ) from error
    return model


def _check_external(model: onnx.ModelProto, folder: Path) -> None:
    """Refuse weights outside the model's own folder: opening a model must not read other files."""
    for tensor, location in _locations(model):
        if not (folder / location).resolve().is_relative_to(folder.resolve()):
            raise ModelError(
                "The ONNX file keeps weights outside its folder.",
                value=f"{tensor}: {location}",
                fix="Save it with its weights inside, or in a file beside it.",
            )


def _locations(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Yield (tensor, file relative to the model's folder) of all external weights."""
    for tensor in _tensors(model.graph):
        yield from ((tensor.name, entry.value) for entry in tensor.external_data if entry.key == "location")


def _check_operators(model: onnx.ModelProto) -> None:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < MINIMUM_OPSET:
        raise ModelError(
            f"The ONNX operator set is older than {MINIMUM_OPSET}.",
            value=opset,
            fix="Export the model again with a newer opset, or run onnx.version_converter.",
        )
    local = {function.domain for function in model.functions}
    for node in _nodes(model.graph):
        if node.domain not in DOMAINS or node.domain in local - {""}:
            raise ModelError(
                "The ONNX file has an operator that only its author's runtime knows.",
                value=f"{node.domain}::{node.op_type}",
                fix="Export it with standard ONNX operators only (com.microsoft is fine).",
            )


def _check_inputs(graph: onnx.GraphProto) -> list[TensorSpec]:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [tensor_spec(value) for value in graph.input if value.name not in weights]
    names = [spec.name for spec in inputs]
    if not {"input_ids", "attention_mask"} <= set(names) <= set(INPUTS):
        raise ModelError(
            "The inputs of the ONNX file are not those of a text encoder.",
            value=", ".join(names),
            fix="Name them input_ids, attention_mask and, if the model uses it, token_type_ids.",
        )
    for spec in inputs:
        if spec.dtype != "int64" or len(spec.shape) != 2 or any(isinstance(size, int) for size in spec.shape):
            raise ModelError(
                "An input of the ONNX file is not int64 with two dynamic axes.",
                value=f"{spec.name}: {spec.dtype} {spec.shape}",
                fix="Export it with int64 inputs and dynamic axes (batch, sequence).",
            )
    return inputs


def _check_output(graph: onnx.GraphProto) -> int | None:
    """Return the width of the logits, or None if it is dynamic."""
    outputs = [tensor_spec(value) for value in graph.output]
    if [spec.name for spec in outputs] != ["logits"] or not outputs[0].dtype.startswith("float"):
        raise ModelError(
            "The ONNX file must have one floating-point output named 'logits'.",
            value=", ".join(f"{spec.name} ({spec.dtype})" for spec in outputs),
            fix="Export the classifier with output_names=['logits'] and no other output.",
        )
    width = outputs[0].shape[-1] if len(outputs[0].shape) == 2 else None
    return width if isinstance(width, int) else None


def _check_width(config: Mapping[str, Any], names: list[str], width: int | None) -> None:
    expected = len(names) or 1
    if width is not None and width != expected:
        raise ModelError(
            "config.json and the ONNX file disagree about the number of labels.",
            value=f"{len(config.get('id2label') or ())} labels, logits of width {width}",
            fix="Put the model's own config.json beside it.",
        )


def _config(path: Path, width: int | None, inputs: list[TensorSpec]) -> dict[str, Any]:
    """Return the config.json of the model, or the least that the task needs to know."""
    source = _find(path, CONFIG)
    if source is not None:
        config = json.loads(source.read_text(encoding="utf-8"))
        return {key: value for key, value in config.items() if key != "_name_or_path"}
    if width is None:
        raise ModelError(
            "The number of labels is unknown: the logits have a dynamic width and there is no config.json.",
            value=path.name,
            fix="Put the model's config.json beside it.",
        )
    typed = any(spec.name == "token_type_ids" for spec in inputs)
    labels = {str(i): f"LABEL_{i}" for i in range(width)}
    return {"id2label": labels, "type_vocab_size": 2 if typed else 1}


def _length(config: Mapping[str, Any], wanted: int | None) -> int:
    """Return the wanted length, cut to the rows of the position table where config.json tells."""
    wanted = wanted or DEFAULT_MAX_LENGTH
    positions = config.get("max_position_embeddings")
    if positions is None:
        return wanted
    kind = config.get("model_type")
    offset = next((family.position_offset for family in FAMILIES if kind in family.model_types), 0)
    return min(wanted, int(positions) - offset)


def _recorded_length(model: onnx.ModelProto) -> int | None:
    """Return the ``max_length`` that our own export writes into the file's metadata."""
    return next((int(entry.value) for entry in model.metadata_props if entry.key == "max_length"), None)


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _find(path: Path, name: str) -> Path | None:
    folders = (path.parent, path.parent.parent)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of every graph inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the weights of a graph, of its attributes, and of every graph inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(inner)
