"""How much worse a metric may get between two runs: ``accuracy=1.0``, ``speedup=5%``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn, get_args

from compress.errors import UsageError, did_you_mean
from compress.report.compare import Metric

DEFAULTS: Mapping[str, float] = MappingProxyType({"accuracy": 1.0, "speedup": 0.05})
_TIMES = {"p50", "p90", "p95", "p99", "latency", "mean", "throughput", "load", "first"}


def parse_margins(texts: Sequence[str], defaults: Mapping[str, float] = DEFAULTS) -> dict[str, float]:
    """Read margins; a metric that no text names keeps its default, or is not judged.

    Args:
        texts: ``NAME=VALUE`` each: of an accuracy in points (a plain metric: in its own unit), of everything else
            as a share, ``5%`` or ``0.05``.
        defaults: what holds unless a text says otherwise.

    Raises:
        UsageError: no such metric, or no such value.
    """
    margins = dict(defaults)
    for text in texts:
        name, sign, value = text.partition("=")
        if name in _TIMES:
            raise UsageError(
                f"{name!r} cannot be compared: times of two sessions say nothing about each other.",
                value=text,
                fix="Give a margin to `speedup` or `end_to_end`: ratios over a baseline that was timed beside it.",
            )
        if name not in get_args(Metric):
            raise UsageError(
                f"There is no metric {name!r} to give a margin.", value=text, fix=did_you_mean(name, get_args(Metric))
            )
        if not sign:
            _fail(text)
        margins[name] = _value(name, value, text)
    return margins


def _value(name: str, value: str, text: str) -> float:
    share = value.endswith("%")
    try:
        number = float(value.removesuffix("%"))
    except ValueError:
        _fail(text)
    fits = not share if name == "accuracy" else share or number < 1
    if not 0 <= number < float("inf") or not fits:
        _fail(text)
    return number / 100 if share else number


def _fail(text: str) -> NoReturn:
    raise UsageError(
        "A margin is NAME=VALUE: points for an accuracy, for the others a share below 1 or in percent.",
        value=text,
        fix="Write for example `accuracy=1.0`, `size=2%` or `speedup=0.05`.",
    )
