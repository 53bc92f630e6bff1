from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data.calibration import apportion, calibration_rows, stratified_indices, stratum
from compress.errors import DataError


def test_apportion_by_hand():
    assert apportion({"a": 50, "b": 30, "c": 20}, 10) == {"a": 5, "b": 3, "c": 2}
    assert apportion({"a": 1, "b": 1, "c": 1}, 2) == {"a": 1, "b": 1, "c": 0}
    assert apportion({"a": 7, "b": 2, "c": 1}, 5) == {"a": 4, "b": 1, "c": 0}


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=80), st.data())
def test_samples_are_exact_stratified_and_distinct(strata, data):
    count = data.draw(st.integers(0, len(strata)))
    drawn = stratified_indices(strata, count, seed=3)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == count
    sizes, got = Counter(strata), Counter(strata[i] for i in drawn)
    for name, size in sizes.items():
        assert abs(got[name] - count * size / len(strata)) < 1
        assert got[name] <= size


def test_seeds_decide():
    strata = ["a", "b"] * 50
    assert stratified_indices(strata, 20, 0) == stratified_indices(strata, 20, 0)
    assert stratified_indices(strata, 20, 0) != stratified_indices(strata, 20, 1)


def test_calibration_has_the_shares_of_train():
    train = [{"text": str(i), "label": "abc"[min(i % 4, 2)]} for i in range(400)]
    sample = calibration_rows(train, 100, seed=0)
    assert Counter(row["label"] for row in sample) == {"a": 25, "b": 25, "c": 50}


def test_a_shortfall_is_an_error():
    with pytest.raises(DataError, match="larger than train") as caught:
        calibration_rows([{"text": "a", "label": "b"}] * 3, 4, seed=0)
    assert "asked for 4 rows, train has 3" in caught.value.value
    assert "at most 3" in caught.value.fix


def test_strata_of_the_problems():
    assert stratum({"label": ["b", "a"]}) == stratum({"label": ["a", "b"]}) != stratum({"label": ["a"]})
    assert stratum({"label": 0.5}) == stratum({"text": "x"}) == ""
