"""Stratified, seeded samples of an exact size: calibration rows, carved splits, limits."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from random import Random

from compress.data.splits import Row
from compress.errors import DataError


def stratum(row: Row) -> Hashable:
    """Return what a row is stratified by: its label or set of labels; nothing for numbers and unlabelled rows."""
    label = row.get("label")
    if isinstance(label, list | tuple):
        return "\x1f".join(sorted(map(str, label)))
    return label if isinstance(label, str) else ""


def stratified_indices(strata: Sequence[Hashable], count: int, seed: int) -> list[int]:
    """Draw ``count`` positions so that every stratum keeps its share.

    Shares are rounded by the largest remainder, so each stratum is within one row of its exact share.

    Args:
        strata: stratum of each position.
        count: positions to draw, at most ``len(strata)``.
        seed: equal seeds draw equal positions on every machine.

    Returns:
        ``count`` ascending positions.
    """
    members: dict[str, list[int]] = {}
    for index, name in enumerate(strata):
        members.setdefault(str(name), []).append(index)
    quotas = apportion({name: len(indices) for name, indices in members.items()}, count)
    rng = Random(seed)
    return sorted(index for name in sorted(members) for index in rng.sample(members[name], quotas[name]))


def apportion(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Share ``count`` seats in proportion to ``sizes``: Hamilton's largest remainder, ties by name."""
    total = sum(sizes.values())
    seats = {name: count * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(count * sizes[name] % total), name))
    for name in by_remainder[: count - sum(seats.values())]:
        seats[name] += 1
    return seats


def calibration_rows(train: Sequence[Row], samples: int, seed: int) -> list[Row]:
    """Draw the calibration sample from train.

    Raises:
        DataError: train has fewer rows than ``samples``.
    """
    if samples > len(train):
        raise DataError(
            "The calibration sample is larger than train.",
            value=f"asked for {samples} rows, train has {len(train)}",
            fix=f"Set data.calibration.samples to at most {len(train)}.",
        )
    return [train[i] for i in stratified_indices([stratum(row) for row in train], samples, seed)]
