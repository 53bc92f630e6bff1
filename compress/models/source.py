"""Take a user's model in: a folder or a hub id becomes a normalised torch payload, or a clear refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from compress.data.pictures import IMAGE
from compress.errors import CompressError, ModelError, did_you_mean
from compress.models.checkpoint import look_through
from compress.models.families import dimensions
from compress.models.loading import CONFIG, TOKENIZER_FILES, load_torch, open_whole, quiet, save_torch
from compress.models.remote_code import AUTO_MAP, code_of
from compress.models.structure import STRUCTURE
from compress.tasks.base import Task, tasks
from compress.tasks.preprocessing import PREPROCESSOR, read_preprocessor
from compress.tasks.text_classification import tokenizing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MAX_LENGTH = 128
SHORTEST_INPUT = 4
"""Tokens: a word between two special tokens, and one to spare."""
MOST_LABELS = 100_000
MOST_POSITIONS = 2**20
"""Of a model with code of its own that does not say."""
_OWN_CODE_TASK = "text-classification"
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]
_HF_PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_LOCAL_KEYS = (
    "is_local",
    "local_files_only",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "vocab_file",
)
_IGNORABLE = re.compile(r"(^|\.)(position_ids|token_type_ids|pooler\.dense\.(weight|bias))$")
"""Left-over keys without effect: buffers of older releases, and a pooler that the model class does not use."""


def take_in(
    source: str,
    out: Path,
    task_name: str,
    labels: Mapping[str, str] | None = None,
    max_length: int | None = None,
    problem: str | None = None,
    *,
    own_code: bool = False,
) -> dict[str, Any]:
    """Write a user's model into ``out`` as float32 safetensors, config.json and a fast tokenizer or a preprocessor.

    A pretrained encoder without a head for the task gets an untrained one, and its task has no labels, so
    that only ``finetune``, which makes a head for the data's labels, can take it further.

    Args:
        source: folder, or hub id.
        out: an empty folder.
        task_name: registered task.
        labels: the model's label names -> the names to use; needed when the model only says LABEL_0.
        max_length: longest input in tokens; at most what the tokenizer and the position table allow.
        problem: single_label, multi_label or regression; default: what the config says. Images: single_label.
        own_code: whether the user asked for the model's own code; it runs only inside ``trusting`` its digest.

    Returns:
        The task's options, as ``Task.dump()`` gives them.

    Raises:
        ModelError: the model cannot be taken in; the message says why and what to do.
    """
    folder = Path(source).expanduser()
    folder = folder if folder.is_dir() else fetch(source, own_code=own_code)
    config = look_through(folder, own_code=own_code)
    if AUTO_MAP in config and task_name != _OWN_CODE_TASK:
        raise ModelError(
            "A model with code of its author is taken in for texts with one answer each, not for this task.",
            value=f"{folder.name}: task {task_name!r}",
            fix="Use a model whose class ships with Transformers, or an ONNX file of it.",
        )
    if IMAGE in tasks.get(task_name).columns:
        return _take_in_images(folder, out, task_name, label_names(config, labels))
    positions = _positions(config)
    _refuse_without_tokenizer(folder)
    problem = problem or problem_of(config)
    tokenizer = _open_tokenizer(folder)
    length = _longest(folder, tokenizer, positions, max_length)
    names = [] if problem == "regression" else label_names(config, labels)
    options = {"name": task_name, "labels": names, "problem": problem, "max_length": length}
    model, trained = _load(folder, tasks.get(task_name).parse(options))
    _refuse_broken_weights(folder, model)
    _write_tokenizer(tokenizer, out, model)
    model.config.problem_type = _HF_PROBLEMS[problem]
    if names and trained:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}
    save_torch(model, out, tokenizer_from=out)
    return options if trained else options | {"labels": []}


def _take_in_images(folder: Path, out: Path, task_name: str, names: list[str]) -> dict[str, Any]:
    """Take an image classifier in; its config.json says the size of the images afterwards."""
    task = tasks.get(task_name).parse({"labels": names})
    model, trained = _load(folder, task)
    _refuse_broken_weights(folder, model)
    _, height, width = read_preprocessor(folder, int(model.config.num_channels)).shape
    size = getattr(model.config, "image_size", None)
    if size is not None and (size if isinstance(size, int) else tuple(size)) not in (height, (height, width)):
        raise ModelError(
            "The preprocessor gives images of another size than the model takes.",
            value=f"{folder.name}: {PREPROCESSOR} {height} x {width}, {CONFIG} {size}",
            fix="Put the model's own preprocessor beside it.",
        )
    model.config.image_size = height if height == width else [height, width]
    if trained:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}
    save_torch(model, out, tokenizer_from=folder)
    _drop_local_traces(out / PREPROCESSOR)
    return task.dump() if trained else task.dump() | {"labels": []}


def fetch(source: str, *, own_code: bool = False) -> Path:
    """Download a model from the Hugging Face hub, without any pickle file, and return its folder.

    Args:
        source: hub id.
        own_code: whether its Python files are wanted too; all files are of one commit, the folder's name.

    Raises:
        ModelError: ``source`` looks like a local path that does not exist, or the hub does not give it.
    """
    if Path(source).exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelError(
            "There is no model folder here.",
            value=source,
            fix="Give a folder that `save_pretrained` wrote, or a hub id.",
        )
    from huggingface_hub import snapshot_download

    try:
        wanted = [*_WANTED, "*.py"] if own_code else _WANTED
        return Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # offline, unknown, gated, rate limit: the hub has a type for each
        raise ModelError(
            "The model is neither a folder here nor a hub id that can be downloaded.",
            value=f"{source}: {type(error).__name__}",
            fix="Check the spelling and the network, or give a local folder.",
        ) from error


def problem_of(config: Mapping[str, Any]) -> str:
    """Return single_label, multi_label or regression, from ``problem_type`` or the width of the head."""
    named = {name: problem for problem, name in _HF_PROBLEMS.items()}.get(str(config.get("problem_type")))
    return named or ("regression" if len(_id2label(config)) == 1 else "single_label")


def label_names(config: Mapping[str, Any], mapping: Mapping[str, str] | None = None) -> list[str]:
    """Return the label names of a model in id order, renamed by ``mapping``.

    Raises:
        ModelError: the mapping names a label that the model does not have, or gives two labels one name.
    """
    names = _id2label(config)
    unknown = sorted(set(mapping or ()) - set(names))
    if unknown:
        raise ModelError(
            "`labels` renames a label that the model does not have.",
            value=", ".join(unknown),
            fix=did_you_mean(unknown[0], names),
        )
    renamed = [str((mapping or {}).get(name, name)) for name in names]
    if len(set(renamed)) < len(renamed):
        raise ModelError(
            "Two labels of the model would have the same name.",
            value=", ".join(sorted({name for name in renamed if renamed.count(name) > 1})),
            fix="Give each label a name of its own in `labels: {LABEL_0: ..., LABEL_1: ...}`.",
        )
    return renamed


def _id2label(config: Mapping[str, Any]) -> list[str]:
    """Return the label names of a config.json in id order; the two of Transformers where it names none."""
    found = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        ids = {int(key): str(name) for key, name in found.items()}
    except (AttributeError, ValueError):
        ids = {}
    if len(ids) != len(found) or not 0 < len(ids) <= MOST_LABELS or min(ids) < 0:
        raise ModelError(
            "config.json names its labels in a way that cannot be read.",
            value=f"id2label: {str(found)[:200]}",
            fix='Write `"id2label": {"0": "...", "1": "..."}`: one name for each output of the model.',
        )
    return [ids[key] for key in sorted(ids)]


def _longest(folder: Path, tokenizer: PreTrainedTokenizerBase, positions: int, wanted: int | None) -> int:
    """Return the longest input in tokens: what is wanted, cut to what tokenizer and position table allow."""
    limit: Any = tokenizer.model_max_length
    room = min(limit, positions) if isinstance(limit, int | float) else 0
    if not room >= SHORTEST_INPUT:
        raise ModelError(
            f"The model takes less than {SHORTEST_INPUT} tokens.",
            value=f"{folder.name}: model_max_length {limit!r}, {positions} positions",
            fix="Correct model_max_length in tokenizer_config.json, or max_position_embeddings in config.json.",
        )
    return int(min(room, wanted or DEFAULT_MAX_LENGTH))


def _positions(config: Mapping[str, Any]) -> int:
    """Return the longest input that the position table takes; of a model with code of its own, what it says itself."""
    if AUTO_MAP not in config:
        return dimensions(config).positions
    said = config.get("max_position_embeddings")
    return said if type(said) is int else MOST_POSITIONS


def _refuse_without_tokenizer(folder: Path) -> None:
    if not any(path for pattern in _VOCABULARIES for path in folder.glob(pattern)):
        raise ModelError(
            "The model folder has no tokenizer.",
            value=folder.name,
            fix="Save it beside the model: AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        )


def _load(folder: Path, task: Task) -> tuple[PreTrainedModel, bool]:
    """Return the model, and whether its head was trained."""
    if (folder / STRUCTURE).is_file():
        return load_torch(folder, task), True
    model, missing, unexpected = _load_leniently(folder, task)
    encoder = f"{model.base_model_prefix}."
    if (
        missing
        and model.base_model_prefix
        and not any(key.startswith(encoder) and ".pooler." not in key for key in missing)
    ):
        return model.eval(), False
    if missing or unexpected:
        raise ModelError(
            "The weights do not fit config.json.",
            value=f"{folder.name}: missing {sorted(missing)[:3]}, left over {sorted(unexpected)[:3]}",
            fix="Save the model again with `save_pretrained`; do not mix files of two models.",
        )
    return model.eval(), True


def _load_leniently(folder: Path, task: Task) -> tuple[PreTrainedModel, set[str], set[str]]:
    """Load a model and return the keys that are missing and left over; new weights come from seed 0."""
    import torch

    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, missing, unexpected = open_whole(folder, task)
    except (CompressError, MemoryError):
        raise
    except Exception as error:  # Transformers, its configs and safetensors raise types of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelError(
            "The weights do not fit config.json, or the file is damaged.",
            value=f"{folder.name}: {lines[min(1, len(lines) - 1)]}",
            fix="Save the model again with `save_pretrained`; do not mix files of two models.",
        ) from error
    return model, missing, {key for key in unexpected if not _IGNORABLE.search(key)}


def _refuse_broken_weights(folder: Path, model: PreTrainedModel) -> None:
    import torch

    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelError(
            "The model has weights that are not finite (NaN or infinity).",
            value=f"{folder.name}: {broken[0]} and {len(broken) - 1} more"
            if broken[1:]
            else f"{folder.name}: {broken[0]}",
            fix="Take an earlier checkpoint; training diverged, or a cast to float16 overflowed.",
        )


def _open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with tokenizing(folder), quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ModelError(
            "The model has only a slow tokenizer.",
            value=type(tokenizer).__name__,
            fix="Convert it to a fast one (tokenizer.json) with Transformers, then save it beside the model.",
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, out: Path, model: PreTrainedModel) -> None:
    rows = _embeddings(model)
    highest = max(tokenizer.get_vocab().values(), default=0)
    if rows is not None and highest >= rows:
        raise ModelError(
            "The tokenizer has more tokens than the model has embeddings.",
            value=f"token id {highest}, {rows} embeddings",
            fix="Put the model's own tokenizer beside it.",
        )
    tokenizer.save_pretrained(out)
    for path in out.iterdir():
        if path.name not in TOKENIZER_FILES:
            path.unlink()
    _drop_local_traces(out / "tokenizer_config.json")


def _embeddings(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model knows; None where the author's class does not tell."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except Exception:  # the author's class answers in a way of its own
        if code_of(model) is None:
            raise
        return None


def _drop_local_traces(path: Path) -> None:
    """Remove what depends on where the tokenizer was read from, so that equal inputs give equal bytes."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in _LOCAL_KEYS:
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
