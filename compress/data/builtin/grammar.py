"""Sentence frames of the built-in tickets: which of two requests counts, and how a ticket is put together.

A frame names a ``{wanted}`` and often an ``{other}`` request. The label is the intent of ``{wanted}``; ``{other}``
belongs to a different intent. Most frames come in both orders with the same words, so only the order tells which
request counts.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from compress.data.builtin.lexicon import (
    ADVERBS,
    CLOSERS,
    DISTRACTORS,
    OPENERS,
    PEOPLE,
    PLANS,
    REQUESTS,
    SLOTS,
)

INTENTS: tuple[str, ...] = tuple(sorted(REQUESTS))
"""The labels, in id order."""

FRAMES: dict[str, tuple[str, ...]] = {
    "plain": (
        "please {a} {wanted}",
        "could you {a} {wanted}",
        "I want you to {a} {wanted}",
        "I need you to {a} {wanted}",
        "{a} {wanted} please",
    ),
    "correction": (
        "first I wanted you to {other} , but now please {wanted}",
        "now please {wanted} , but first I wanted you to {other}",
        "I asked you before to {other} , instead please {wanted}",
        "instead please {wanted} , I asked you before to {other}",
    ),
    "negation": (
        "do not {other} , please {wanted}",
        "please {wanted} , do not {other}",
        "I do not want you to {other} , I want you to {wanted}",
        "I want you to {wanted} , I do not want you to {other}",
    ),
    "who": (
        "{person} wants you to {other} , but I want you to {wanted}",
        "I want you to {wanted} , but {person} wants you to {other}",
    ),
}

SHARES: dict[str, float] = {"plain": 0.50, "correction": 0.20, "negation": 0.20, "who": 0.10}
"""Construction -> share of the tickets."""

OPENER_SHARE = 0.2
CLOSER_SHARE = 0.2
DISTRACTOR_SHARE = 0.2
TYPO_SHARE = 0.1
LOWERCASE_SHARE = 0.3


class Ticket(NamedTuple):
    text: str
    intent: str
    construction: str


def compose(rng: Random, intent: str) -> Ticket:
    """Draw one ticket of an intent."""
    construction = rng.choices(tuple(SHARES), weights=tuple(SHARES.values()))[0]
    frame = rng.choice(FRAMES[construction])
    other = rng.choice([name for name in INTENTS if name != intent])
    sentence = _render(rng, frame, intent, other)
    parts = [sentence]
    if rng.random() < DISTRACTOR_SHARE:
        parts.insert(rng.randrange(2), _fill(rng, rng.choice(DISTRACTORS)))
    if rng.random() < OPENER_SHARE:
        parts[0] = f"{rng.choice(OPENERS)} , {parts[0]}"
    if rng.random() < CLOSER_SHARE:
        parts.append(rng.choice(CLOSERS))
    if rng.random() < TYPO_SHARE:
        index = rng.randrange(len(parts))
        parts[index] = misspell(rng, parts[index])
    text = _punctuate(parts)
    return Ticket(text.lower() if rng.random() < LOWERCASE_SHARE else text, intent, construction)


def misspell(rng: Random, sentence: str) -> str:
    """Misspell one word of five or more letters: two letters swapped, one dropped or one doubled."""
    words = sentence.split()
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return sentence
    index = rng.choice(long)
    word, at = words[index], rng.randrange(1, len(words[index]) - 2)
    words[index] = rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )
    return " ".join(words)


def _render(rng: Random, frame: str, intent: str, other: str) -> str:
    words = []
    for word in frame.split():
        if word == "{a}":
            words.append(rng.choice(ADVERBS))
        elif word == "{person}":
            words.append(rng.choice(PEOPLE))
        elif word in ("{wanted}", "{other}"):
            words.append(_fill(rng, rng.choice(REQUESTS[intent if word == "{wanted}" else other])))
        else:
            words.append(word)
    return " ".join(" ".join(words).split())


def _fill(rng: Random, template: str) -> str:
    values = {name: rng.choice(words) for name, words in SLOTS.items()}
    low, high = sorted(rng.sample(range(len(PLANS)), 2))
    return template.format(**values, low=PLANS[low], high=PLANS[high])


def _punctuate(parts: list[str]) -> str:
    sentences = [part.replace(" ,", ",") for part in parts]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)
