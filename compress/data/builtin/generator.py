"""The built-in data set "support-tickets": unique rows from the grammar, cut into stratified splits."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from compress.data.builtin.grammar import INTENTS, Ticket, compose
from compress.data.overlap import content_key
from compress.data.splits import Row
from compress.errors import DataError

NAME = "support-tickets"
MIN_ROWS = 160
MAX_ROWS = 10_000
TRAIN_SHARE = 0.70
VALIDATION_SHARE = 0.12


def generate(rows: int = 6000, seed: int = 0) -> dict[str, list[Row]]:
    """Write the tickets.

    Args:
        rows: tickets in all three splits together, 160 to 10,000.
        seed: the only source of chance; equal arguments give equal rows on every machine.

    Returns:
        ``train`` (70 %), ``validation`` (12 %) and ``test`` (18 %): rows of ``text`` and ``label``, as balanced over
        the intents as the counts allow; no two rows of any split have the same normalised text.

    Raises:
        DataError: ``rows`` is out of range.
    """
    splits = split_tickets(tickets(rows, seed), seed)
    return {
        name: [{"text": ticket.text, "label": ticket.intent} for ticket in members] for name, members in splits.items()
    }


def tickets(rows: int, seed: int) -> list[Ticket]:
    """Return ``rows`` tickets of distinct normalised text, intents in turn."""
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise DataError(
            "The built-in data set does not have that many rows.",
            value=f"rows: {rows}",
            fix=f"Ask for {MIN_ROWS} to {MAX_ROWS:,} rows.",
        )
    rng = Random(seed)
    seen: set[str] = set()
    return [_fresh(rng, intent, seen) for intent in _in_turn(rows)]


def split_tickets(members: list[Ticket], seed: int) -> dict[str, list[Ticket]]:
    """Cut tickets into train, validation and test within each intent, then shuffle each split."""
    splits: dict[str, list[Ticket]] = {"train": [], "validation": [], "test": []}
    for intent in INTENTS:
        own = [ticket for ticket in members if ticket.intent == intent]
        first, second = round(len(own) * TRAIN_SHARE), round(len(own) * (TRAIN_SHARE + VALIDATION_SHARE))
        splits["train"] += own[:first]
        splits["validation"] += own[first:second]
        splits["test"] += own[second:]
    rng = Random(seed)
    for split in splits.values():
        rng.shuffle(split)
    return splits


def _in_turn(rows: int) -> Iterator[str]:
    return (INTENTS[i % len(INTENTS)] for i in range(rows))


def _fresh(rng: Random, intent: str, seen: set[str]) -> Ticket:
    while True:
        ticket = compose(rng, intent)
        key = content_key(ticket.text)
        if key not in seen:
            seen.add(key)
            return ticket
