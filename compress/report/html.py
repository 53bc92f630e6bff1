"""HTML: one file that needs no network, light and dark, on paper and on a phone; its script only adds comfort."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from compress.report.bars import BarPlot
from compress.report.blocks import Bars, Block, Drawing, Figure, Lines, Strips, Waterfall
from compress.report.document import build
from compress.report.falls import FallPlot
from compress.report.model import Report
from compress.report.plot import ParetoPlot
from compress.report.stacks import StackPlot
from compress.report.strips import StripPlot
from compress.report.sweeps import SweepPlot
from compress.report.visible import visible

WIDE = (760, 450)
NARROW = (380, 420)
"""Every plot is drawn twice, so that its text stays readable on a phone; CSS shows one of them."""


def render_html(report: Report) -> str:
    """Return the report as one self-contained page; every text from the report is escaped."""
    script = _script()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src '{_digest(script)}'"
    )
    return (
        _template()
        .render(document=build(report), script=Markup(script), policy=policy, kind=_kind, plot=_plot)
        .lstrip()
    )


@cache
def _script() -> str:
    """Return the page's one script."""
    source, _, _ = _environment().loader.get_source(_environment(), "report.js")  # type: ignore[union-attr]
    return source


def _digest(script: str) -> str:
    """Return the script's hash as a policy names it: no other script runs, whatever stands in the report."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("compress.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _template() -> Template:
    return _environment().get_template("report.html.j2")


def _finalize(value: object) -> object:
    """Make control characters of every text visible; what is markup already was made here."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _kind(block: Block) -> str:
    """Return the name of the macro that draws a block."""
    return type(block).__name__.lower()


def _plot(figure: Drawing, size: str) -> Markup:
    width, height = WIDE if size == "wide" else NARROW
    match figure:
        case Figure():
            return Markup(ParetoPlot(figure, width, height).svg())
        case Bars():
            return Markup(BarPlot(figure, width).svg())
        case Waterfall():
            return Markup(FallPlot(figure, width).svg())
        case Strips():
            return Markup(StripPlot(figure, width).svg())
        case Lines():
            return Markup(SweepPlot(figure, width, 360 if size == "wide" else 300).svg())
        case _:
            return Markup(StackPlot(figure, width).svg())
