"""Columns: aligned, never wider than asked, words across where a row has no values."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.text import Text

from compress.report.columns import Grid, Head, widest_that_fits

HEADS = (Head("step", right=False), Head("size", "MB"), Head("speed"))


def row(*texts: str) -> tuple[Text, ...]:
    return tuple(Text(text) for text in texts)


def test_columns_line_up() -> None:
    grid = Grid(HEADS, (row("dense", "90.12", "1.00x"), row("b", "7.00", "12.50x")))
    assert [line.plain for line in grid.lines(80)] == [
        "        size",
        "step      MB   speed",
        "────────────────────",
        "dense  90.12   1.00x",
        "b       7.00  12.50x",
    ]


def test_words_run_across_and_wrap_below_themselves() -> None:
    grid = Grid(HEADS, (row("dense", "90.12", "1.00x"), row("engine", "failed: " + "no device " * 4)))
    lines = [line.plain for line in grid.lines(30)]
    assert lines[-3:] == ["engine  failed: no device no", "        device no device no", "        device"]


def test_only_words_need_no_headings() -> None:
    assert [line.plain for line in Grid(HEADS, (row("a", "skipped: x"),)).lines(40)] == ["a     skipped: x"]


@pytest.mark.parametrize("width", [30, 40, 60])
def test_long_names_are_cut_and_wide_letters_counted(width: int) -> None:
    grid = Grid(HEADS, (row("模型" * 30, "1.00", "1.00x"), row("x" * 90, "oom: too much")))
    for line in grid.lines(width):
        assert line.cell_len == cell_len(line.plain) <= width
    assert sum("…" in line.plain for line in grid.lines(width)) == 2


def test_the_fullest_that_fits_is_taken() -> None:
    full = Grid(HEADS, (row("a", "1.00 ±0.10 and more", "1.00x"),))
    bare = Grid(HEADS, (row("a", "1.00", "1.00x"),))
    assert widest_that_fits((full, bare), 80) is full
    assert widest_that_fits((full, bare), 20) is bare
    assert widest_that_fits((full, bare), 5) is bare
