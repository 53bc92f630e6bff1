"""Control characters made visible: a text from a dataset or a label must not steer what shows it."""

from __future__ import annotations

import unicodedata

_JOINERS = {"\u200c", "\u200d"}
"""Part of the spelling of Persian words and of emoji: they steer nothing."""


def visible(text: str, *, breaks: bool = False) -> str:
    """Return text in which no character is invisible or turns the writing around.

    Args:
        text: from anywhere.
        breaks: whether line breaks and tabs are shown as marks too; otherwise they stay.

    Returns:
        Controls as ``⟨U+202E⟩``.
    """
    if text.isprintable() and not breaks:
        return text
    return "".join(_shown(c, breaks) for c in text)


def _shown(character: str, breaks: bool) -> str:
    if character in "\n\r\t":
        return {"\n": "↵ ", "\r": "⟨U+000D⟩", "\t": "⇥ "}[character] if breaks else character
    code = ord(character)
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS:
        return f"⟨U+{code:04X}⟩"
    return character
