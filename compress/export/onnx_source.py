"""Take a user's ONNX file in: a text classifier with its tokenizer becomes a normalised payload, or a clear refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import TensorSpec
from compress.errors import CompressError, ModelError
from compress.export.onnx_checks import (
    check_bytes,
    check_external,
    check_operators,
    check_values,
    check_weights,
    locations,
)
from compress.export.onnx_clean import clean, write_onnx
from compress.export.onnx_export import INPUTS
from compress.export.signature import tensor_spec
from compress.models.families import FAMILIES
from compress.models.files import refuse_way_out
from compress.models.loading import CONFIG, TOKENIZER_FILES, read_config
from compress.models.remote_code import AUTO_MAP
from compress.models.source import DEFAULT_MAX_LENGTH, SHORTEST_INPUT, label_names, problem_of
from compress.tasks.base import tasks

if TYPE_CHECKING:
    import onnx


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
    try:
        return _normalise(model, path, out, task_name, labels, max_length, problem)
    except (CompressError, MemoryError, OSError):  # OSError: the disk that is written to
        raise
    except Exception as error:  # protobuf, the checker and shape inference raise types of their own
        raise _invalid(path, error) from error


def _normalise(
    model: onnx.ModelProto,
    path: Path,
    out: Path,
    task_name: str,
    labels: Mapping[str, str] | None,
    max_length: int | None,
    problem: str | None,
) -> dict[str, Any]:
    check_values(model)
    inputs = _check_inputs(model.graph)
    width = _check_output(model.graph)
    tokenizer = _find(path, "tokenizer.json")
    if tokenizer is None:
        raise ModelError(
            "There is no tokenizer.json beside the ONNX file.",
            value=path.name,
            fix="Save the model's fast tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        )
    config = {key: value for key, value in _config(path, width, inputs).items() if key != AUTO_MAP}
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
        ModelError: one of them leads outside its own folder.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    check_external(model, path.parent)
    config, tokenizer = _find(path, CONFIG), _find(path, "tokenizer.json")
    return [
        path,
        *(path.parent / location for location in sorted({location for _, location in locations(model)})),
        *([config] if config else []),
        *(_tokenizer_files(tokenizer.parent) if tokenizer else []),
    ]


def read_onnx(path: Path) -> onnx.ModelProto:
    """Load and check a model with its external weights, which must lie in its own folder."""
    import onnx

    if not path.is_file():
        raise ModelError("The ONNX file does not exist.", value=path.name, fix="Give the path of an .onnx file.")
    try:
        check_bytes(path.name, path.stat().st_size)
        model = onnx.load(path, load_external_data=False)
        check_operators(model)
        check_external(model, path.parent)
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
        check_weights(model)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # protobuf, the checker and the file system raise types of their own
        raise _invalid(path, error) from error
    return model


def _invalid(path: Path, error: Exception) -> ModelError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ModelError(
        "This is not a valid ONNX model.", value=f"{path.name}: {lines[0]}", fix="Export the model again."
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
        config = read_config(source.parent)
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
    if positions is not None:
        kind = config.get("model_type")
        offset = next((family.position_offset for family in FAMILIES if kind in family.model_types), 0)
        wanted = min(wanted, positions - offset) if type(positions) is int else 0
    if wanted < SHORTEST_INPUT:
        raise ModelError(
            f"The model takes less than {SHORTEST_INPUT} tokens.",
            value=f"max_position_embeddings: {str(positions)[:80]}, max_length: {wanted}",
            fix="Put the model's own config.json beside it.",
        )
    return wanted


def _recorded_length(model: onnx.ModelProto) -> int | None:
    """Return the ``max_length`` that our own export writes into the file's metadata."""
    values = (entry.value for entry in model.metadata_props if entry.key == "max_length")
    return next((int(value) for value in values if value.isdecimal() and len(value) < 8), None)


def _tokenizer_files(folder: Path) -> list[Path]:
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    for file in files:
        refuse_way_out(file, folder)
    return files


def _find(path: Path, name: str) -> Path | None:
    found = next((folder / name for folder in (path.parent, path.parent.parent) if (folder / name).is_file()), None)
    if found is not None:
        refuse_way_out(found, found.parent)
    return found
