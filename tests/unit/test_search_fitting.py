"""Costs from totals: least squares against scipy's, exact recovery of additive costs, totals that noise cannot move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from compress.pruning.ladder import Widths
from compress.search.fitting import fit_costs, fit_curve, nonnegative_least_squares, quiet_totals


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 12), unknowns=st.integers(1, 9))
def test_nonnegative_least_squares_is_as_good_as_scipys(seed: int, rows: int, unknowns: int) -> None:
    rng = np.random.default_rng(seed)
    design, wanted = rng.normal(size=(rows, unknowns)), rng.normal(size=rows)
    found = nonnegative_least_squares(design, wanted)
    _, residual = nnls(design, wanted)
    assert (found >= 0).all()
    assert np.linalg.norm(design @ found - wanted) == pytest.approx(residual, abs=1e-7)


HEADS = {0: 0.1, 1: 0.5, 2: 0.5, 4: 1.3}
NEURONS = {0: 0.1, 32: 0.4, 64: 0.9}


def structures() -> list[Widths]:
    pairs = [(h, 32) for h in HEADS] + [(2, n) for n in NEURONS] + [(0, 0)]
    return [Widths((h,) * 3, (n,) * 3) for h, n in pairs] + [Widths((), ())]


def total(widths: Widths) -> float:
    return 2.0 + sum(HEADS[h] for h in widths.heads) + sum(NEURONS[n] for n in widths.neurons)


def test_additive_costs_are_recovered() -> None:
    variants = structures()
    fit = fit_costs(variants, np.array([total(v) for v in variants]), smoothness=0.0)
    assert fit.fixed == pytest.approx(2.0)
    assert fit.heads == pytest.approx(HEADS)
    assert fit.neurons == pytest.approx(NEURONS)
    assert max(map(abs, fit.errors)) < 1e-9


def test_more_units_never_cost_less_even_where_noise_says_so() -> None:
    variants = structures()
    totals = np.array([total(v) for v in variants])
    totals[2] *= 0.8
    fit = fit_costs(variants, totals, smoothness=0.0)
    for costs in (fit.heads, fit.neurons):
        assert list(costs.values()) == sorted(costs.values())
    assert fit.heads[2] == pytest.approx(fit.heads[1])
    assert max(map(abs, fit.errors)) > 0.05


def test_ratios_survive_bursts_and_the_level_is_that_of_a_typical_round() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(1, 4, size=(7, 1, 10))
    samples = np.repeat(true, 9, axis=1)
    samples[:, 4:] *= 1.5
    samples[:, 1:4] *= np.where(rng.random((7, 3, 10)) < 0.7, 5, 1)
    assert quiet_totals(samples) == pytest.approx(1.5 * true.sum(axis=(1, 2)), rel=1e-6)


def test_smoothness_keeps_straight_lines_and_takes_noise_out() -> None:
    heads, neurons = range(9), range(0, 257, 32)
    variants = [Widths((h,) * 6, (96,) * 6) for h in heads] + [Widths((3,) * 6, (n,) * 6) for n in neurons]
    variants += [Widths((0,) * 6, (0,) * 6), Widths((), ())]

    def straight(widths: Widths) -> float:
        units = sum(0.2 + 0.1 * h for h in widths.heads if h) + sum(0.2 + 0.004 * n for n in widths.neurons if n)
        return 0.5 + units + 0.1 * sum(width == 0 for width in widths.sublayers)

    totals = np.array([straight(v) for v in variants])
    exact = fit_costs(variants, totals)
    assert max(map(abs, exact.errors)) < 1e-9
    noisy = totals * np.random.default_rng(0).normal(1.0, 0.03, len(totals))
    rough, smooth = (np.diff(list(fit_costs(variants, noisy, s).heads.values()))[1:] for s in (0.0, 0.08))
    assert np.abs(smooth - 0.1).max() < 0.6 * np.abs(rough - 0.1).max()


def test_curve_joins_two_regimes_and_inverts() -> None:
    sums = np.geomspace(0.5, 20.0, 60)
    totals = np.where(sums < 5, sums, 5 + 2 * (sums - 5))
    curve = fit_curve(sums, totals)
    predicted = np.array([curve.total(float(x)) for x in sums])
    assert np.abs(predicted / totals - 1).max() < 0.12
    assert np.abs(np.array([curve.cost_sum(float(y)) for y in predicted]) / sums - 1).max() < 1e-6
    assert curve.total(0.1) == pytest.approx(0.1)


def test_curve_never_falls() -> None:
    curve = fit_curve(np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 3.0, 2.5, 9.0]))
    assert list(curve.totals) == sorted(set(curve.totals))
