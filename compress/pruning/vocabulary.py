"""Choose the tokens that stay, rewrite the tokenizer's files, and slice the embedding rows that belong to them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import UsageError
from compress.models.families import family_of
from compress.models.loading import copy_tokenizer, read_config
from compress.pruning.pieces import Pieces, pieces_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that stay.

    Attributes:
        tokens: in the order of their new ids, which keeps the order of the old ones.
        rows: (kept,) int64, the old id of each: the embedding rows that stay.
        total: tokens that there were.
        used: tokens that the texts use often enough.
    """

    tokens: tuple[str, ...]
    rows: np.ndarray
    total: int
    used: int

    @property
    def moved(self) -> dict[int, int]:
        """Old id -> new id."""
        return {int(row): i for i, row in enumerate(self.rows)}


def count_tokens(folder: Path, texts: Iterable[str]) -> Counter[str]:
    """Count the tokens of whole texts, without special tokens, by the tokenizer of a folder."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return Counter(token for encoding in encodings for token in encoding.tokens)


def choose_vocabulary(
    folder: Path, counts: Mapping[str, int], *, min_count: int = 1, margin: int = 1000, whole_alphabet: bool = True
) -> Vocabulary:
    """Choose the tokens that stay.

    Always kept are added and special tokens, those that config.json names, single characters in every form,
    and what the kind of model needs so that covered text is cut as before (see ``compress.pruning.pieces``).

    Args:
        folder: a model folder with tokenizer.json and config.json.
        counts: token -> how often the texts use it.
        min_count: tokens used less often go.
        margin: further tokens that stay for other text, the most generally useful ones.
        whole_alphabet: keep all single characters; otherwise those of the kept tokens and of ASCII.

    Raises:
        ModelError: this kind of tokenizer cannot be trimmed.
    """
    document = _read(folder / TOKENIZER)
    pieces = pieces_of(document["model"])
    ids = pieces.ids
    added = {entry["content"]: int(entry["id"]) for entry in document.get("added_tokens", ())}
    used = {token for token, count in counts.items() if count >= min_count} & ids.keys()
    kept = used | pieces.needed() | _named(read_config(folder), ids) | (added.keys() & ids.keys())
    letters = None if whole_alphabet else set(map(chr, range(128))).union(*kept)
    kept = pieces.close(kept | pieces.alphabet(letters))
    spare = [token for token in pieces.by_usefulness() if token not in kept]
    kept = pieces.close(kept.union(spare[:margin]))
    extra = sorted(added.keys() - ids.keys(), key=added.__getitem__)
    tokens = (*sorted(kept, key=ids.__getitem__), *extra)
    rows = np.array([ids[token] if token in ids else added[token] for token in tokens], dtype=np.int64)
    return Vocabulary(tokens, rows, len(ids) + len(extra), len(used))


def write_tokenizer(source: Path, out: Path, *, vocabulary: Vocabulary | None, positions: int | None) -> None:
    """Write the tokenizer files of ``source`` into ``out`` with fewer tokens, or with a shorter longest text.

    Ids change wherever they stand: in the model, added tokens, post-processor, padding and
    tokenizer_config.json. Normalizer, pre-tokenizer and decoder know no ids and stay as they are.

    Args:
        source: a folder with tokenizer.json.
        out: another folder.
        vocabulary: the tokens that stay; None: all.
        positions: longest text in tokens; None: as before.
    """
    copy_tokenizer(source, out)
    document = _read(source / TOKENIZER)
    settings = _read(source / TOKENIZER_CONFIG) if (source / TOKENIZER_CONFIG).is_file() else {}
    if vocabulary is not None:
        ids = {token: i for i, token in enumerate(vocabulary.tokens)}
        document = _renumber(document, pieces_of(document["model"]), ids)
        decoder = settings.get("added_tokens_decoder", {})
        if decoder:
            settings["added_tokens_decoder"] = {str(ids[entry["content"]]): entry for entry in decoder.values()}
    if positions is not None:
        settings["model_max_length"] = min(positions, int(settings.get("model_max_length", positions)))
        if document.get("truncation"):
            cut = min(positions, int(document["truncation"]["max_length"]))
            document["truncation"] = {**document["truncation"], "max_length": cut}
    _write(out / TOKENIZER, document, indent=None)
    _write(out / TOKENIZER_CONFIG, settings, indent=2)


def trim_rows(model: PreTrainedModel, vocabulary: Vocabulary) -> None:
    """Keep the rows of the word embedding, and of an output head over the vocabulary, that have a token; in place.

    config.json's ``vocab_size`` and every ``*_token_id`` follow.

    Raises:
        UsageError: a family that derives positions from the padding id would lose its padding id.
    """
    import torch

    _check_padding(model, vocabulary)
    rows = torch.from_numpy(vocabulary.rows)
    table = model.get_input_embeddings()
    table = getattr(table, "table", table)
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    table.weight = torch.nn.Parameter(table.weight.detach()[rows].clone())
    table.num_embeddings = len(rows)
    if table.padding_idx is not None:
        table.padding_idx = vocabulary.moved.get(table.padding_idx)
    if head is not None:
        head.weight = table.weight if tied else torch.nn.Parameter(head.weight.detach()[rows].clone())
        head.out_features = len(rows)
        if head.bias is not None:
            head.bias = torch.nn.Parameter(head.bias.detach()[rows].clone())
    model.config.vocab_size = len(rows)
    for key, value in model.config.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int):
            setattr(model.config, key, vocabulary.moved.get(value))


def trim_positions(model: PreTrainedModel, positions: int) -> None:
    """Keep the first rows of the position table, and those before them that the family uses for no token; in place.

    Args:
        model: a supported encoder.
        positions: longest input in tokens.

    Raises:
        UsageError: the table is shorter.
    """
    import torch

    count = positions + family_of(model.config.model_type).position_offset
    table = model.base_model.embeddings.position_embeddings
    if count > table.num_embeddings:
        raise UsageError(
            "The position table is shorter than asked for.",
            value=f"{positions} tokens of {table.num_embeddings - count + positions}",
            fix="Give fewer `positions`, or `auto` for the longest input of the task.",
        )
    table.weight = torch.nn.Parameter(table.weight.detach()[:count].clone())
    table.num_embeddings = count
    for name, buffer in model.base_model.embeddings.named_buffers(recurse=False):
        setattr(model.base_model.embeddings, name, buffer[:, :count].clone())
    model.config.max_position_embeddings = count


def _named(config: Mapping[str, Any], ids: Mapping[str, int]) -> set[str]:
    """Return the tokens whose ids config.json names, and for RoBERTa all up to the padding id, which must not move."""
    wanted = {value for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int)}
    if family_of(config["model_type"]).position_offset:
        wanted |= set(range(int(config.get("pad_token_id") or 0) + 1))
    return {token for token, i in ids.items() if i in wanted}


def _check_padding(model: PreTrainedModel, vocabulary: Vocabulary) -> None:
    """RoBERTa numbers positions from the padding id on."""
    padding = model.config.pad_token_id
    derived = family_of(model.config.model_type).position_offset and padding is not None
    if derived and vocabulary.moved.get(padding) != padding:
        raise UsageError(
            "The padding token would get another id, and this family numbers positions from it on.",
            value=f"pad_token_id {padding}",
            fix="Keep all tokens up to the padding token.",
        )


def _renumber(document: Mapping[str, Any], pieces: Pieces, ids: Mapping[str, int]) -> dict[str, Any]:
    own = pieces.ids.keys()
    changed = {**document, "model": pieces.rewrite({token: i for token, i in ids.items() if token in own})}
    changed["added_tokens"] = [{**entry, "id": ids[entry["content"]]} for entry in document.get("added_tokens", ())]
    changed["post_processor"] = _renumber_processor(document.get("post_processor"), ids)
    padding = document.get("padding")
    if padding:
        changed["padding"] = {**padding, "pad_id": ids[padding["pad_token"]]}
    return changed


def _renumber_processor(processor: Mapping[str, Any] | None, ids: Mapping[str, int]) -> dict[str, Any] | None:
    if processor is None:
        return None
    changed = dict(processor)
    for name in ("sep", "cls"):
        if name in processor:
            changed[name] = [processor[name][0], ids[processor[name][0]]]
    if "special_tokens" in processor:
        entries = processor["special_tokens"].items()
        changed["special_tokens"] = {name: {**e, "ids": [ids[token] for token in e["tokens"]]} for name, e in entries}
    if "processors" in processor:
        changed["processors"] = [_renumber_processor(inner, ids) for inner in processor["processors"]]
    return changed


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write(path: Path, document: Mapping[str, Any], indent: int | None) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=False, sort_keys=indent is not None)
    path.write_text(text + "\n", encoding="utf-8")


def text_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return every text of rows, one after the other."""
    return [str(row[name]) for row in rows for name in columns if row.get(name) is not None]
