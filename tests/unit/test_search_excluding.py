"""The exclusion loop beside brute force: the shortest prefix, few measurements, an honest trail."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.bench.statistics import Interval
from compress.quantization.sensitivity import Sensitivity
from compress.search.excluding import DropGate, exclude_by_sensitivity, exclusion_reasons


def ranking(count: int) -> list[Sensitivity]:
    return [Sensitivity(f"n{i}", "MatMul", 4.06 + i, 0.1, 1.0, 1 / count) for i in range(count)]


class Recorder:
    """A measure by the number of nodes restored, which remembers what it was asked."""

    def __init__(self, drops: list[float], half: float = 0.5) -> None:
        self.drops, self.half, self.asked = drops, half, []

    def __call__(self, excluded: frozenset[str]) -> Interval:
        assert excluded == {f"n{i}" for i in range(len(excluded))}
        self.asked.append(len(excluded))
        value = self.drops[len(excluded)]
        return Interval(value, value - self.half, value + self.half)


drops = st.lists(st.floats(-5, 5), min_size=2, max_size=60)
gates = st.builds(DropGate, st.floats(0, 3), st.booleans())


@given(drops, gates)
def test_shortest_prefix_of_a_monotone_measure_is_brute_force(values: list[float], gate: DropGate) -> None:
    values = sorted(values, reverse=True)
    measure, count = Recorder(values), len(values) - 1
    result = exclude_by_sensitivity(ranking(count), measure, gate)
    bound = 0.5 if gate.strict else 0.0
    holding = [k for k, value in enumerate(values) if value + bound <= gate.max_drop_points + 1e-9]
    assert result.holds == bool(holding)
    assert len(result.excluded) == (holding[0] if holding else count)
    assert len(measure.asked) - 1 <= math.ceil(math.log2(count)) + 1
    assert len(set(measure.asked)) == len(measure.asked)


@given(drops, gates)
def test_any_measure_gives_a_prefix_that_was_measured_to_hold_and_an_honest_trail(
    values: list[float], gate: DropGate
) -> None:
    measure, count = Recorder(values), len(values) - 1
    result = exclude_by_sensitivity(ranking(count), measure, gate)
    assert [step.restored for step in result.trail] == measure.asked
    for step in result.trail:
        assert step.drop.value == values[step.restored]
        assert step.names == tuple(f"n{i}" for i in range(step.restored))
        assert step.holds == gate.holds(step.drop)
        assert step.macs_share == pytest.approx(step.restored / count)
    found, by_count = len(result.excluded), {step.restored: step for step in result.trail}
    assert result.drop == by_count[found].drop
    assert by_count[found].holds == result.holds == any(step.holds for step in result.trail)
    assert found == 0 or not result.holds or not by_count[found - 1].holds
    assert len(measure.asked) - 1 <= math.ceil(math.log2(count)) + 1


def test_what_is_known_is_not_measured_again() -> None:
    measure = Recorder([3.0, 2.0, 0.5, 0.2])
    result = exclude_by_sensitivity(ranking(3), measure, DropGate(1.0), unrestored=Interval(3.0, 2.0, 4.0))
    assert 0 not in measure.asked
    assert [(step.restored, step.verdict) for step in result.trail] == [(0, "fail"), (2, "pass"), (1, "fail")]
    assert result.excluded == {"n0": "sensitivity 4.1 dB", "n1": "sensitivity 5.1 dB"}
    assert result.conclusion == (
        "2 of 3 nodes stay in float32 (66.7 % of the MACs): the loss is +0.50 points [+0.00, +1.00]; "
        "at most 1 may be lost."
    )


def test_a_gate_that_holds_at_once_restores_nothing() -> None:
    result = exclude_by_sensitivity(ranking(4), Recorder([0.2] * 5), DropGate(0.2))
    assert (result.holds, result.excluded, len(result.trail)) == (True, {}, 1)
    assert result.conclusion.startswith("Nothing has to stay in float32")


def test_a_gate_that_nothing_keeps_says_so() -> None:
    result = exclude_by_sensitivity(ranking(4), Recorder([2.0] * 5), DropGate(1.0))
    assert not result.holds
    assert list(result.excluded) == ["n0", "n1", "n2", "n3"]
    assert result.trail[-1].restored == 4
    assert result.conclusion.startswith("Even with all 4 ranked nodes in float32 the loss is +2.00")


def test_an_empty_ranking_is_measured_once() -> None:
    result = exclude_by_sensitivity([], Recorder([2.0]), DropGate(1.0))
    assert (result.holds, result.excluded, len(result.trail)) == (False, {}, 1)


@pytest.mark.parametrize(
    ("drop", "verdict", "estimate", "strict"),
    [
        (Interval(0.5, 0.1, 1.0), "pass", True, True),
        (Interval(0.5, 0.1, 1.2), "unresolved", True, False),
        (Interval(1.1, 0.1, 1.2), "unresolved", False, False),
        (Interval(1.1, 1.05, 1.2), "fail", False, False),
    ],
)
def test_gate_reads_the_interval(drop: Interval, verdict: str, estimate: bool, strict: bool) -> None:
    assert DropGate(1.0).verdict(drop) == verdict
    assert DropGate(1.0).holds(drop) == estimate
    assert DropGate(1.0, strict=True).holds(drop) == strict


def test_reasons_are_formatted_from_the_number() -> None:
    assert exclusion_reasons(ranking(2)) == {"n0": "sensitivity 4.1 dB", "n1": "sensitivity 5.1 dB"}
