"""Regenerate the built-in data set and check what its data card promises.

    python calibration/verify_builtin.py [--rows 6000] [--seed 0]

Checks digests (of the default arguments), balance, disjoint splits, unique rows and shared vocabulary; prints one
line per check and exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

from compress.data.builtin import INTENTS, MAX_ROWS, generate
from compress.data.builtin.generator import TRAIN_SHARE, VALIDATION_SHARE
from compress.data.digest import rows_digest
from compress.data.overlap import content_key
from compress.data.splits import Row

DIGESTS = {
    "train": "8f5e0fd7c459e01b80eaf3c044c14984d2822944783b77aab63be5da1e00f6cf",
    "validation": "587ab93f008f20a7d405e8ce5cc1102e2a345fe5fa07e005122cc72ae85a803f",
    "test": "380a31e86a5c8adfc0634591b15e4ac3bbd1c22c05ffe8f1fba942127d1fc679",
}
"""sha256 of the splits of ``generate(6000, 0)``; a change of the grammar changes them and every figure in the card."""

Check = tuple[str, bool, str]


def check(rows: int, seed: int) -> Iterator[Check]:
    """Yield (promise, kept, detail) for each promise of the data card."""
    splits = generate(rows, seed)
    if (rows, seed) == (6000, 0):
        digests = {name: rows_digest(members) for name, members in splits.items()}
        yield "digests are the published ones", digests == DIGESTS, str(digests)
    yield "equal seeds give equal rows", generate(rows, seed) == splits, ""
    yield from _check_counts(splits, rows)
    yield from _check_texts(splits)
    shared = _vocabulary_overlap(splits["train"])
    yield "intents share their vocabulary", shared >= 0.5, f"mean Jaccard index of two intents' words: {shared:.2f}"


def _check_counts(splits: dict[str, list[Row]], rows: int) -> Iterator[Check]:
    sizes = {name: len(members) for name, members in splits.items()}
    shares = {"train": TRAIN_SHARE, "validation": VALIDATION_SHARE, "test": 1 - TRAIN_SHARE - VALIDATION_SHARE}
    close = all(abs(sizes[name] - share * rows) <= len(INTENTS) for name, share in shares.items())
    yield "splits have their shares", close and sum(sizes.values()) == rows, str(sizes)
    for name, members in splits.items():
        counts = Counter(row["label"] for row in members)
        even = max(counts.values()) - min(counts.values()) <= 1 and set(counts) == set(INTENTS)
        yield f"{name} is balanced", even, f"{min(counts.values())} to {max(counts.values())} rows per intent"


def _check_texts(splits: dict[str, list[Row]]) -> Iterator[Check]:
    keys = {name: {content_key(row["text"]) for row in members} for name, members in splits.items()}
    unique = all(len(keys[name]) == len(splits[name]) for name in splits)
    yield "no text occurs twice in a split", unique, ""
    shared = {f"{a}/{b}": len(keys[a] & keys[b]) for a, b in combinations(splits, 2)}
    yield "splits are disjoint", not any(shared.values()), str(shared)
    lengths = sorted(len(_words(row["text"])) for row in splits["train"])
    middle = lengths[len(lengths) // 2]
    yield "tickets are short", middle <= 24 and lengths[-1] <= 60, f"median {middle}, longest {lengths[-1]} words"


def _vocabulary_overlap(rows: Sequence[Row]) -> float:
    """Mean Jaccard index of the word sets of two intents."""
    words: dict[str, set[str]] = {intent: set() for intent in INTENTS}
    for row in rows:
        words[row["label"]].update(_words(row["text"]))
    pairs = list(combinations(words.values(), 2))
    return sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the built-in data set against its card.")
    parser.add_argument("--rows", type=int, default=6000, help=f"rows, at most {MAX_ROWS} (default: 6000)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    options = parser.parse_args(arguments)
    failed = False
    for promise, kept, detail in check(options.rows, options.seed):
        failed |= not kept
        print(f"{'ok  ' if kept else 'FAIL'} {promise}{f': {detail}' if detail else ''}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
