"""HTML: one file that needs no network and no script, light and dark, on paper and on a phone."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from compress.report.bars import BarPlot
from compress.report.blocks import Bars, Block, Figure
from compress.report.document import build
from compress.report.model import Report
from compress.report.plot import ParetoPlot

WIDE = (760, 450)
NARROW = (380, 420)
"""The plot is drawn twice, so that its text stays readable on a phone; CSS shows one of them."""


def render_html(report: Report) -> str:
    """Return the report as one self-contained page; every text from the report is escaped."""
    return _template().render(document=build(report), kind=_kind, plot=_plot)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("compress.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")


def _kind(block: Block) -> str:
    """Return the name of the macro that draws a block."""
    return type(block).__name__.lower()


def _plot(figure: Figure | Bars, size: str) -> Markup:
    width, height = WIDE if size == "wide" else NARROW
    if isinstance(figure, Bars):
        return Markup(BarPlot(figure, width).svg())
    return Markup(ParetoPlot(figure, width, height).svg())
