"""The sizes of an encoder of text that becomes narrower and keeps its head size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.errors import UsageError
from compress.models.families import dimensions, family_of


def narrow_sizes(config: Mapping[str, Any], hidden: int) -> dict[str, int]:
    """Return the keys of config.json that change when an encoder of text becomes ``hidden`` wide.

    The head size stays; heads and feed-forward neurons shrink in proportion.

    Raises:
        UsageError: the width is not a multiple of the head size, or not between it and the model's.
    """
    size, family = dimensions(config), family_of(str(config["model_type"]))
    if size.images or hidden % size.head_size or not size.head_size <= hidden <= size.hidden:
        raise UsageError(
            "The student cannot be this wide.",
            value=f"hidden {hidden}; teacher {size.hidden} in heads of {size.head_size}",
            fix=f"Give a multiple of {size.head_size} up to {size.hidden}; encoders of images keep their width.",
        )
    own_table = config.get("embedding_size") == size.hidden
    return {
        family.hidden_key: hidden,
        family.heads_key: hidden // size.head_size,
        family.neurons_key: max(1, round(size.neurons * hidden / size.hidden)),
    } | ({"embedding_size": hidden} if own_table else {})
