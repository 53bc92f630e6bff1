"""Costs from totals: least squares against scipy's, exact recovery of additive costs, totals that noise cannot move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from compress.pruning.ladder import Widths
from compress.search.fitting import fit_costs, nonnegative_least_squares, quiet_totals


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
    fit = fit_costs(variants, np.array([total(v) for v in variants]))
    assert fit.fixed == pytest.approx(2.0)
    assert fit.heads == pytest.approx(HEADS)
    assert fit.neurons == pytest.approx(NEURONS)
    assert max(map(abs, fit.errors)) < 1e-9


def test_more_units_never_cost_less_even_where_noise_says_so() -> None:
    variants = structures()
    totals = np.array([total(v) for v in variants])
    totals[2] *= 0.8
    fit = fit_costs(variants, totals)
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
