"""Families of encoders: what is supported, what is refused and why, and the parts of a model by role."""

from __future__ import annotations

from compress.models.families.catalogue import FAMILIES, REFUSALS, Family, Refusal, family_of, is_convolutional
from compress.models.families.layers import (
    Dimensions,
    EncoderLayer,
    dimensions,
    encoder_layers,
    find_module,
    layer_list,
    pair,
    patches,
    replace_module,
    whole,
)

__all__ = [
    "FAMILIES",
    "REFUSALS",
    "Dimensions",
    "EncoderLayer",
    "Family",
    "Refusal",
    "dimensions",
    "encoder_layers",
    "family_of",
    "find_module",
    "is_convolutional",
    "layer_list",
    "pair",
    "patches",
    "replace_module",
    "whole",
]
