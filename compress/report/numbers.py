"""How a number reads: the one place that turns values into text for every rendering.

Columns line up because every quantity has a fixed number of decimals. Megabytes are 1,000,000 bytes.
A missing value is ``MISSING``; the table that shows it says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from compress.report.model import Unit

MISSING = "–"
MINUS = "−"


def fixed(value: float | None, decimals: int = 2, *, signed: bool = False) -> str:
    """Return ``1,234.50`` with a true minus sign; ``signed`` writes the plus sign too. Zero has no sign."""
    if value is None:
        return MISSING
    digits = f"{abs(value):,.{decimals}f}"
    if not digits.strip("0.,"):
        return digits
    return (MINUS if value < 0 else "+" if signed else "") + digits


def interval(low: float | None, high: float | None, decimals: int = 2, *, signed: bool = False) -> str:
    """Return ``[1.70, 1.76]``, or nothing if an end is unknown."""
    if low is None or high is None:
        return ""
    return f"[{fixed(low, decimals, signed=signed)}, {fixed(high, decimals, signed=signed)}]"


def spread(value: float | None, low: float | None, high: float | None, decimals: int = 2) -> str:
    """Return ``±0.10``, the longer arm of an interval, or nothing if an end is unknown."""
    if value is None or low is None or high is None:
        return ""
    return f"±{max(value - low, high - value, 0.0):,.{decimals}f}"


def metric_spread(value: float, low: float | None, high: float | None, unit: Unit) -> str:
    return spread(_scaled(value, unit), _scaled(low, unit), _scaled(high, unit), _decimals(unit))


def points_spread(value: float, low: float | None, high: float | None, unit: Unit = "percent") -> str:
    return spread(value, low, high, _decimals(unit))


def metric(value: float | None, unit: Unit) -> str:
    """Return an accuracy: a fraction as a percentage without its sign, a plain metric as it is."""
    return fixed(_scaled(value, unit), _decimals(unit))


def metric_interval(low: float | None, high: float | None, unit: Unit) -> str:
    return interval(_scaled(low, unit), _scaled(high, unit), _decimals(unit))


def points(value: float | None, unit: Unit = "percent") -> str:
    """Return a difference of accuracies: signed percentage points, or the metric's own unit."""
    return fixed(value, _decimals(unit), signed=True)


def points_interval(low: float | None, high: float | None, unit: Unit = "percent") -> str:
    return interval(low, high, _decimals(unit), signed=True)


def share(value: float | None, decimals: int = 2) -> str:
    """Return a fraction as ``99.45 %``."""
    return MISSING if value is None else f"{fixed(100 * value, decimals)} %"


def ratio(value: float | None) -> str:
    return MISSING if value is None else f"{fixed(value)}x"


def milliseconds(value: float | None) -> str:
    return fixed(value)


def megabytes(value: int | None) -> str:
    """Return bytes in units of 1,000,000 bytes."""
    return fixed(None if value is None else value / 1e6)


def gigabytes(value: int | None) -> str:
    """Return bytes in units of 1,000,000,000 bytes."""
    return fixed(None if value is None else value / 1e9, 1)


def millions(value: int | None) -> str:
    return fixed(None if value is None else value / 1e6)


def count(value: int | None) -> str:
    return fixed(value, 0)


def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else fixed(value, 3)


def tiny(value: float | None) -> str:
    """Return a numerical difference as ``3.1e-06``."""
    if value is None:
        return MISSING
    return "0" if value == 0 else f"{value:.1e}"


def duration(seconds: float | None) -> str:
    """Return ``0.4 s``, ``12.3 s``, ``3 min 05 s`` or ``1 h 02 min``."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def short_digest(digest: str | None) -> str:
    """Return the first twelve characters of a digest; ``report.json`` has all of it."""
    return MISSING if digest is None else digest.removeprefix("sha256:")[:12]


def value_text(value: JsonValue) -> str:
    """Return a configuration value or a note on one line: lists by commas, mappings as ``key: value``.

    A long list is cut after 32 items and says so; ``report.json`` has all of it.
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", MINUS, 1) if value < 0 else f"{value:.6g}"
    if isinstance(value, Mapping):
        return _joined([f"{key}: {_nested(item)}" for key, item in value.items()])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _joined([_nested(item) for item in value])
    return str(value)


def _joined(items: list[str], longest: int = 32) -> str:
    rest = f", and {len(items) - longest} more" if len(items) > longest else ""
    return ", ".join(items[:longest]) + rest if items else "none"


def _nested(value: JsonValue) -> str:
    text = value_text(value)
    return f"({text})" if isinstance(value, list | dict) else text


def _scaled(value: float | None, unit: Unit) -> float | None:
    return value if value is None or unit == "plain" else 100 * value


def _decimals(unit: Unit) -> int:
    return 2 if unit == "percent" else 4
