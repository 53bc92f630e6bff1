"""Load and save torch models: float32, strict, local, never pickle, with or without ``structure.json``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError, ModelError
from compress.models.remote_code import AUTO_MAP, code_of, open_custom, write_code
from compress.models.structure import STRUCTURE, Structure, apply_structure, is_dense, structure_of
from compress.reading import Unreadable, read_json
from compress.tasks.base import Task
from compress.tasks.preprocessing import PREPROCESSOR

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_OWN_ATTENTION = (None, "eager", "sdpa")
"""What Transformers computes itself; another name is a package, or a repository of code."""
COMPANIONS = (*TOKENIZER_FILES, PREPROCESSOR)
"""What travels with a model besides its weights and config.json: how its inputs are made."""


def load_torch(folder: Path, task: Task) -> PreTrainedModel:
    """Load a model that ``save_torch`` or ``take_in`` wrote.

    Args:
        folder: config.json, model.safetensors and, for a width-pruned model, structure.json.
        task: gives the auto class.

    Returns:
        The model on the CPU, float32, in evaluation mode.

    Raises:
        ModelError: a weight is missing, is left over or has another shape; or the model needs its author's code, and
            nobody has named it.
    """
    refuse_foreign_parts(folder, read_config(folder))
    structure = Structure.read(folder)
    with quiet():
        model = _load_dense(folder, task) if structure is None else _load_resized(folder, structure)
    return model.eval()


def open_whole(folder: Path, task: Task) -> tuple[PreTrainedModel, set[str], set[str]]:
    """Open a model whose shapes config.json says, in float32; return the keys that are missing and left over too."""
    import torch

    config = read_config(folder)
    if AUTO_MAP in config:
        options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        loaded: Any = open_custom(folder, config, **options)
    else:
        loaded = task.load_model(folder, output_loading_info=True)
    model, info = loaded
    return model, set(info["missing_keys"]), set(info["unexpected_keys"])


def save_torch(model: PreTrainedModel, out: Path, tokenizer_from: Path) -> None:
    """Write a model in the Hugging Face layout: float32 safetensors, config.json, tokenizer files.

    A model whose shapes config.json cannot express gets ``structure.json`` beside it. Its weights have the names of
    the modules in memory; those of any other model, which stock loaders open, have the names that Transformers
    gives them on disk. The files of a model with its author's code come along.

    Args:
        model: any float model; it is not changed, its weights are written as float32.
        out: an existing folder.
        tokenizer_from: folder whose tokenizer files are copied.
    """
    import torch

    code = code_of(model)
    dense = code is not None or is_dense(model)
    weights = {name: _as_float32(tensor) for name, tensor in model.state_dict().items()}
    with quiet():
        model.save_pretrained(out, state_dict=weights, save_original_format=dense)
    config = read_config(out) | {"dtype": str(torch.float32).removeprefix("torch.")}
    if code is not None:
        config[AUTO_MAP] = dict(code.classes)
        write_code(code, out)
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if not dense:
        structure_of(model).write(out)
    copy_tokenizer(tokenizer_from, out)


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy the tokenizer or preprocessor files of one model folder into another."""
    for name in COMPANIONS:
        if (source / name).is_file() and source != out:
            shutil.copyfile(source / name, out / name)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder.

    Raises:
        ModelError: it is missing or is not a JSON object.
    """
    if not (folder / CONFIG).exists():
        raise ModelError(
            "The model folder has no config.json.",
            value=folder.name,
            fix="Give a Hugging Face model folder, as `save_pretrained` writes it.",
        )
    try:
        config = read_json(folder / CONFIG)
    except Unreadable as error:
        raise ModelError(
            "config.json cannot be read.", value=f"{folder.name}: {error}", fix="Save the model again."
        ) from error
    if not isinstance(config, dict):
        raise ModelError("config.json is not a JSON object.", value=folder.name, fix="Save the model again.")
    return config


def refuse_foreign_parts(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config.json that asks for an implementation which Transformers would fetch from elsewhere.

    Raises:
        ModelError: it does.
    """
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        if config.get(key) not in _OWN_ATTENTION:
            raise ModelError(
                "config.json asks for an implementation from elsewhere.",
                value=f"{key}: {config[key]!r}",
                fix="Remove the key from config.json.",
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and load reports of Transformers: what matters is raised."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` CPU threads inside this context; the setting is global in torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load_dense(folder: Path, task: Task) -> PreTrainedModel:
    try:
        model, missing, unexpected = open_whole(folder, task)
    except (CompressError, MemoryError):
        raise
    except Exception as error:  # Transformers and its configs raise types of their own
        raise ModelError(
            "The weights do not fit config.json.",
            value=f"{folder.name}: {_first_line(error)}",
            fix="Save the model again with `save_pretrained`; do not mix files of two models.",
        ) from error
    _check_keys(folder, missing, unexpected)
    return model


def _load_resized(folder: Path, structure: Structure) -> PreTrainedModel:
    import transformers
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers.initialization import no_init_weights

    config = _transformers_config(folder)
    class_ = getattr(transformers, str((config.architectures or [""])[0]), None)
    if not (isinstance(class_, type) and issubclass(class_, transformers.PreTrainedModel)):
        raise ModelError(
            "config.json names a model class that Transformers does not have.",
            value=config.architectures,
            fix="Produce the model again with this version.",
        )
    try:
        with no_init_weights():
            model = class_(config)
    except MemoryError:
        raise
    except Exception as error:  # whatever the class makes of sizes that do not go together
        raise _not_a_config(folder, error) from error
    apply_structure(model, structure)
    try:
        weights = {name: _as_float32(tensor) for name, tensor in load_file(folder / WEIGHTS).items()}
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ModelError(
            "The weights do not fit structure.json.",
            value=f"{folder.name}: {_first_line(error)}",
            fix=f"Produce the model again; {STRUCTURE} and {WEIGHTS} belong together.",
        ) from error
    return model


def _transformers_config(folder: Path) -> Any:
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # configs check their values with exceptions of their own
        raise _not_a_config(folder, error) from error


def _not_a_config(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        "config.json does not describe a model that Transformers can build.",
        value=f"{folder.name}: {_first_line(error)}",
        fix="Save the model again with `save_pretrained`.",
    )


def _check_keys(folder: Path, missing: set[str], unexpected: set[str]) -> None:
    if missing or unexpected:
        raise ModelError(
            "The weights do not fit config.json.",
            value=f"{folder.name}: missing {sorted(missing)[:3]}, left over {sorted(unexpected)[:3]}",
            fix="Save the model again with `save_pretrained`; do not mix files of two models.",
        )


def _as_float32(tensor: Any) -> Any:
    tensor = tensor.detach().to("cpu")
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)] if lines else type(error).__name__
