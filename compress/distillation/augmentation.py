"""More text to imitate a teacher on: small changes to training texts, without labels, in any language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compress.tasks.base import Row

_SHARE = 0.15
"""Share of the units that one change touches."""
_TRIES = 4
"""Attempts to find a variant that is new; a text of one word has none."""


def augment(rows: Sequence[Row], columns: Sequence[str], count: int, seed: int) -> list[Row]:
    """Return up to ``count`` new texts for every row; they carry no label, for the teacher to give one.

    Each is one change of one text: words dropped, neighbours swapped, a span cut out, or the beginning of it
    joined with the end of another text of the same label. A text without white space is changed by characters.
    The texts that come out are not always grammatical: TinyBERT (arXiv:1909.10351, section 4) gains most of its
    accuracy from such text, because only the teacher's answer to it matters.

    Args:
        rows: the examples.
        columns: which of their columns hold text; of a pair, one is changed.
        count: variants per row.
        seed: the same rows and seed give the same variants.

    Returns:
        Rows with ``label`` None, in the order of the originals; none repeats an original or another one.
    """
    rng = np.random.default_rng(seed)
    fellows = _by_label(rows)
    known = {_key(row, columns) for row in rows}
    out: list[Row] = []
    for row in rows:
        for _ in range(count):
            for _ in range(_TRIES):
                variant = _vary(row, rows, fellows[str(row.get("label"))], columns, rng)
                if variant is not None and _key(variant, columns) not in known:
                    known.add(_key(variant, columns))
                    out.append(variant)
                    break
    return out


def drop_units(units: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Leave each unit out with a chance of 15 %, at least one of them."""
    gone = rng.random(len(units)) < _SHARE
    gone[rng.integers(len(units))] = True
    return [unit for unit, leave in zip(units, gone, strict=True) if not leave]


def swap_neighbours(units: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Swap 15 % of the units with the next one, at least one."""
    out = list(units)
    if len(out) > 1:
        for place in rng.integers(0, len(out) - 1, max(1, round(_SHARE * len(out)))):
            out[place], out[place + 1] = out[place + 1], out[place]
    return out


def cut_span(units: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Keep a span of 40 to 90 % of the units."""
    length = max(1, int(len(units) * rng.uniform(0.4, 0.9)))
    start = int(rng.integers(0, len(units) - length + 1))
    return list(units[start : start + length])


_CHANGES: tuple[Callable[[Sequence[str], np.random.Generator], list[str]], ...] = (
    drop_units,
    swap_neighbours,
    cut_span,
)


def _vary(
    row: Row, rows: Sequence[Row], fellows: Sequence[int], columns: Sequence[str], rng: np.random.Generator
) -> Row | None:
    texts = [name for name in columns if isinstance(row.get(name), str) and row[name].strip()]
    if not texts:
        return None
    name = texts[int(rng.integers(len(texts)))]
    change = int(rng.integers(len(_CHANGES) + (len(texts) == 1)))
    if change < len(_CHANGES):
        units, space = _units(row[name])
        text = space.join(_CHANGES[change](units, rng))
    else:
        text = _splice(row[name], str(rows[fellows[int(rng.integers(len(fellows)))]].get(name) or ""))
    return {**row, name: text, "label": None} if text else None


def _splice(first: str, second: str) -> str:
    """Return the first half of one text and the second half of another."""
    (head, space), (tail, other_space) = _units(first), _units(second)
    middle = space or other_space
    return space.join(head[: (len(head) + 1) // 2]) + middle + other_space.join(tail[len(tail) // 2 :])


def _units(text: str) -> tuple[list[str], str]:
    """Return words and what joins them; characters where the text has no white space."""
    words = text.split()
    return (words, " ") if len(words) > 1 else (list(text.strip()), "")


def _by_label(rows: Sequence[Row]) -> Mapping[str, list[int]]:
    out: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        out.setdefault(str(row.get("label")), []).append(index)
    return out


def _key(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(str(row.get(name) or "").split()) for name in columns)
