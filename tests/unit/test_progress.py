"""Progress: a live line on a terminal, few plain lines elsewhere, the step, the last metric and the time left."""

from __future__ import annotations

import io

import pytest

from compress.cli.progress import ProgressPrinter, duration
from compress.progress import Observed, StepStarted, prefixed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def play(out: io.StringIO, seconds: float = 1.0) -> str:
    """A distillation as the third of seven steps: 300 batches, one event a second, a score after each hundred."""
    clock = Clock()
    progress = ProgressPrinter(out, clock)
    progress(StepStarted("distil", "3 epochs", 3, 7))
    for batch in range(1, 301):
        clock.now += seconds
        note = f"epoch {min(batch // 100 + 1, 3)}/3, loss 0.41" + (", accuracy 88.9 %" if batch >= 100 else "")
        progress(Observed("training", note, {"loss": 0.41}), batch, 300)
    progress("      12.0 MB, accuracy 88.90 % on validation")
    progress.close()
    return out.getvalue()


def test_a_pipe_gets_the_steps_and_one_line_in_ten_seconds() -> None:
    lines = play(io.StringIO()).splitlines()
    assert lines[0] == "[3/7] distil: 3 epochs"
    assert lines[-1] == "      12.0 MB, accuracy 88.90 % on validation"
    assert len(lines) == 32
    assert lines[18] == "[3/7] distil: training, epoch 2/3, loss 0.41, accuracy 88.9 % | 180/300 | 2 min left"
    assert lines[28] == "[3/7] distil: training, epoch 3/3, loss 0.41, accuracy 88.9 % | 280/300 | 20 s left"


def test_a_quick_activity_is_not_told_to_a_pipe() -> None:
    assert play(io.StringIO(), seconds=0.01).splitlines() == [
        "[3/7] distil: 3 epochs",
        "      12.0 MB, accuracy 88.90 % on validation",
    ]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_gets_one_line_that_never_wraps_and_is_wiped(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = play(Terminal())
    assert "\x1b" not in shown
    lines = shown.split("\n")
    assert [lines[0], lines[-2].rpartition("\r")[2]] == [
        "[3/7] distil: 3 epochs",
        "      12.0 MB, accuracy 88.90 % on validation",
    ]
    drawn = lines[1].split("\r")
    assert len(drawn) > 250
    assert all(len(line) < columns for line in drawn[:-1])
    assert drawn[-2].strip() == ""
    assert drawn[180].rstrip().endswith("180/300 | 2 min left")
    if columns == 80:
        assert "epoch 2/3, loss 0.41" in drawn[180]


def test_no_color_keeps_the_line_and_a_dumb_terminal_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\r" in play(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert play(Terminal()) == play(io.StringIO())


def test_the_time_left_counts_from_where_an_interrupted_activity_went_on() -> None:
    clock, out = Clock(), io.StringIO()
    progress = ProgressPrinter(out, clock)
    progress("training", 900, 1000)
    clock.now = 20.0
    progress("training", 920, 1000)
    assert out.getvalue().splitlines() == ["training | 920/1000 | 80 s left"]


def test_what_was_observed_survives_a_prefix() -> None:
    message = prefixed("seed 1 of 3, ", Observed("training", "loss 0.4", {"loss": 0.4}))
    assert message == "seed 1 of 3, training"
    assert isinstance(message, Observed)
    assert (message.note, message.values) == ("loss 0.4", {"loss": 0.4})
    assert prefixed("a ", "b") == "a b"


def test_durations() -> None:
    assert [duration(s) for s in (5, 89, 300, 9000)] == ["5 s", "89 s", "5 min", "2.5 h"]
