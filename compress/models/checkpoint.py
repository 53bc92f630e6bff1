"""A user's model folder, looked through before anything opens it: links, code, pickles, headers that do not hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from compress.errors import ModelError
from compress.models.counting import planned_counts
from compress.models.families import is_convolutional
from compress.models.files import model_files
from compress.models.loading import CONFIG, WEIGHTS, read_config, refuse_foreign_parts
from compress.models.remote_code import AUTO_MAP, read_code, refuse_code
from compress.models.structure import STRUCTURE
from compress.reading import Unreadable, parse_json, read_json

INDEX = f"{WEIGHTS}.index.json"
LARGEST_HEADER = 16 * 2**20
"""Bytes of the header of a safetensors file; a large model of a thousand tensors has a hundred thousand."""

_SAVE_AGAIN = "Save the model again with `save_pretrained`; do not mix files of two models."
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_WIDTHS = ("embedding_size", "hidden_size", "intermediate_size")
"""Keys of an image model's config.json: some product of two of them is a weight."""
_SLACK = 1_000_000
"""Weights that may be missing from a checkpoint (a pooler, a head), beside as many as it has."""
_DENSEST = 100
"""How much larger the dense model may be that a pruned one's config.json still describes."""


@dataclass(frozen=True)
class Stored:
    """What the headers of a checkpoint say: tensors, and the elements of all of them."""

    tensors: int
    elements: int


def look_through(folder: Path, *, own_code: bool = False) -> dict[str, Any]:
    """Check a model folder without opening its weights, and return its config.json.

    Args:
        folder: of the model.
        own_code: whether the user asked for the code of the model's author; it is read, not run.

    Raises:
        ModelError: a file leads outside, is a pickle, or lies about itself; the model needs code that does not ship
            with Transformers and was not asked for, or that is not as it should be; or config.json describes another
            size of model than the files hold.
    """
    model_files(folder)
    config = read_config(folder)
    if AUTO_MAP in config and not own_code:
        raise refuse_code(folder)
    code = read_code(folder, config)
    if code is not None and (folder / STRUCTURE).exists():
        raise ModelError(
            f"The model has code of its own and a {STRUCTURE}, which says what was taken from a known family.",
            value=folder.name,
            fix="Give the model as its author has it.",
        )
    refuse_foreign_parts(folder, config)
    _refuse_what_is_no_float_model(folder, config)
    stored = _read_headers(folder, _weight_files(folder))
    if code is None:
        _refuse_sizes(folder, config, stored)
    return config


def _refuse_what_is_no_float_model(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        raise ModelError(
            "The checkpoint is quantized already.",
            value=f"quantization_config in {folder.name}/{CONFIG}",
            fix="Give the float checkpoint that it was made from.",
        )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            "The folder holds an adapter, not a whole model.",
            value=f"{folder.name}/adapter_config.json",
            fix="Merge it into its model first, with PEFT: model.merge_and_unload().save_pretrained(new_folder).",
        )


def _weight_files(folder: Path) -> list[Path]:
    """Return ``model.safetensors``, or the shards that its index names."""
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        files = _shards(folder)
    else:
        _refuse_pickles(folder)
        raise ModelError(
            "The model folder has no weights.", value=folder.name, fix=f"It needs {WEIGHTS} beside config.json."
        )
    if other := sorted(path.name for path in folder.glob("shard-*.safetensors")):
        raise ModelError(
            "The folder holds a distributed checkpoint beside the model.",
            value=f"{folder.name}/{other[0]}",
            fix=f"Keep {WEIGHTS} alone, or the shards that {INDEX} names.",
        )
    return files


def _shards(folder: Path) -> list[Path]:
    try:
        index = read_json(folder / INDEX)
        names = sorted(set(index["weight_map"].values()))
        wrong = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        missing = [name for name in names if not (folder / name).is_file()]
    except (Unreadable, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ModelError(
            "The index of the weights cannot be read.", value=f"{folder.name}/{INDEX}: {error}", fix=_SAVE_AGAIN
        ) from error
    if wrong or missing or not names:
        raise ModelError(
            "The index of the weights names a file that is not there, or that is no safetensors file of its folder.",
            value=f"{folder.name}/{INDEX}: {(wrong or missing or ['nothing'])[0]}",
            fix=_SAVE_AGAIN,
        )
    return [folder / name for name in names]


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            "This is a pickle checkpoint: opening it can run any code, so mcompress never does.",
            value=f"{folder.name}/{pickles[0]}",
            fix="Convert it where you trust it: AutoModelForSequenceClassification.from_pretrained(folder)"
            ".save_pretrained(new_folder) writes the same weights, exactly, as safetensors.",
        )


def _read_headers(folder: Path, files: Iterable[Path]) -> Stored:
    shapes: dict[str, int] = {}
    for file in files:
        try:
            found = read_header(file)
        except Unreadable as error:
            raise ModelError(
                "The weights are not a whole safetensors file.",
                value=f"{folder.name}/{file.name}: {error}",
                fix=_SAVE_AGAIN,
            ) from error
        if twice := sorted(shapes.keys() & found.keys()):
            raise ModelError(
                "Two files of the weights hold the same tensor.", value=f"{folder.name}: {twice[0]}", fix=_SAVE_AGAIN
            )
        shapes |= found
    return Stored(len(shapes), sum(shapes.values()))


def read_header(file: Path) -> dict[str, int]:
    """Return tensor -> elements of a safetensors file, after comparing its header with the bytes that are there.

    The header is 8 bytes of its length, then JSON: tensor -> dtype, shape and begin and end of its bytes. Tensors
    must lie one after the other, from the end of the header to the end of the file.

    Raises:
        Unreadable: something of that does not hold.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > size - 8:
                raise Unreadable(f"the header is said to have {length:,} bytes, the file has {size:,}")
            if length > LARGEST_HEADER:
                raise Unreadable(f"a header of {length:,} bytes; at most {LARGEST_HEADER:,}")
            text = opened.read(length).decode()
    except OSError as error:
        raise Unreadable(error.strerror or type(error).__name__) from error
    except UnicodeDecodeError as error:
        raise Unreadable("the header is not UTF-8 text") from error
    header = parse_json(text)
    if not isinstance(header, dict):
        raise Unreadable("the header is not a JSON object")
    header.pop("__metadata__", None)
    spans, elements = [], {}
    for name, record in header.items():
        elements[name], begin, end = _tensor(name, record)
        spans.append((begin, end, name))
    expected = 0
    for begin, end, name in sorted(spans):
        if begin != expected:
            raise Unreadable(f"tensor {name!r} begins at byte {begin:,}, not at {expected:,}")
        expected = end
    if expected != size - 8 - length:
        raise Unreadable(f"tensors of {expected:,} bytes in a file that has {size - 8 - length:,} for them")
    return elements


def _tensor(name: str, record: Any) -> tuple[int, int, int]:
    """Return (elements, begin, end) of one entry."""
    entry: dict[str, Any] = record if isinstance(record, dict) else {}
    dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise Unreadable(f"tensor {name!r} has the unknown type {json.dumps(dtype)[:40]}")
    if not _whole(shape) or not _whole(place) or len(place) != 2:
        raise Unreadable(f"tensor {name!r} has a shape or a place that is none")
    elements, (begin, end) = math.prod(shape), place
    if (end - begin) * 8 != elements * _BITS[dtype]:
        raise Unreadable(f"tensor {name!r} has {end - begin:,} bytes for {elements:,} elements of {dtype}")
    return elements, begin, end


def _whole(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _refuse_sizes(folder: Path, config: Mapping[str, Any], stored: Stored) -> None:
    """Refuse a config.json whose model is far larger than the weights: building it would take the memory for it."""
    factor = _DENSEST if (folder / STRUCTURE).is_file() else 2
    said = f"the files hold {stored.elements:,} weights in {stored.tensors:,} tensors"
    for key, most in (
        ("num_hidden_layers", stored.tensors),
        ("n_layers", stored.tensors),
        ("num_labels", stored.elements),
    ):
        value = config.get(key, 0)
        if value is not None and (type(value) is not int or not 0 <= value <= factor * most):
            raise _too_large(f"{key} {value!r}; {said}")
    if is_convolutional(config):
        wide = [*map(config.get, _WIDTHS), *_listed(config.get("hidden_sizes"))]
        deep = sum(size for size in _listed(config.get("depths")) if type(size) is int)
        if any(
            type(size) is not int or not 0 < size**2 <= 8 * factor * (stored.elements + 1)
            for size in wide
            if size is not None
        ):
            raise _too_large(f"widths {wide}; {said}")
        if deep > factor * stored.tensors:
            raise _too_large(f"depths {config.get('depths')!r}; {said}")
        return
    parameters, _ = planned_counts(config)
    if parameters > factor * stored.elements + _SLACK:
        raise _too_large(f"about {parameters:,} weights; {said}")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _too_large(value: str) -> ModelError:
    return ModelError(
        "config.json describes a model that the weights are not of: the weights do not fit config.json.",
        value=value,
        fix=_SAVE_AGAIN,
    )
