from __future__ import annotations

import pytest

from compress.data.digest import rows_digest
from compress.data.overlap import content_key, resolve_overlaps
from compress.data.splits import Overlap
from compress.errors import DataError


def rows(*texts):
    return [{"text": text, "label": "a"} for text in texts]


SPLITS = {
    "train": rows("One", "two", "two  ", "three", "four"),
    "validation": rows("TWO", "five"),
    "test": rows("four", "five", "six"),
    "transfer": rows("six", "seven"),
}
COUNTS = {
    ("train", "validation"): 1,
    ("train", "test"): 1,
    ("transfer", "validation"): 0,
    ("transfer", "test"): 1,
    ("validation", "test"): 1,
}


def test_case_width_and_space_do_not_tell_texts_apart():
    assert content_key("Straße  ﬁn ") == content_key("strasse fin")
    assert content_key("a b") != content_key("ab")
    assert content_key("a", "b") != content_key("a b")
    assert content_key("a", None) == content_key("a")


def test_allow_counts_and_keeps():
    kept, overlaps = resolve_overlaps(SPLITS, "allow")
    assert kept == SPLITS
    assert {(o.first, o.second): o.count for o in overlaps} == COUNTS
    assert {o.action for o in overlaps} == {"allowed", "none found"}


def test_drop_removes_from_train_and_transfer_and_keeps_held_out_splits():
    kept, overlaps = resolve_overlaps(SPLITS, "drop_from_train")
    assert [row["text"] for row in kept["train"]] == ["One", "three"]
    assert [row["text"] for row in kept["transfer"]] == ["seven"]
    assert kept["validation"] == SPLITS["validation"]
    assert kept["test"] == SPLITS["test"]
    assert Overlap("train", "validation", 1, "dropped from train") in overlaps
    assert Overlap("transfer", "test", 1, "dropped from transfer") in overlaps
    assert Overlap("validation", "test", 1, "allowed") in overlaps


def test_error_names_counts_and_modes():
    with pytest.raises(DataError, match="more than one split") as caught:
        resolve_overlaps(SPLITS, "error")
    assert caught.value.value == "train/validation: 1, train/test: 1, transfer/test: 1, validation/test: 1"
    assert "drop_from_train" in caught.value.fix
    assert "allow" in caught.value.fix


def test_error_is_silent_without_overlap():
    clean = {"train": rows("a"), "test": rows("b")}
    kept, overlaps = resolve_overlaps(clean, "error")
    assert kept == clean
    assert overlaps == (Overlap("train", "test", 0, "none found"),)


def test_the_second_text_counts():
    train = [{"text": "a", "text_pair": "b"}]
    assert resolve_overlaps({"train": train, "test": [{"text": "a", "text_pair": "c"}]}, "error")[1][0].count == 0
    assert resolve_overlaps({"train": train, "test": train}, "allow")[1][0].count == 1


def test_digest_normalises_and_keeps_order():
    one = [{"text": "Café", "label": "x"}, {"text": "b", "label": "y"}]
    same = [{"label": "x", "text": " Cafe\u0301", "text_pair": None}, {"text": "b", "label": "y"}]
    assert rows_digest(one) == rows_digest(same)
    assert rows_digest(one) != rows_digest(one[::-1])
    assert rows_digest(one) != rows_digest([one[0] | {"label": "z"}, one[1]])
    assert rows_digest([{"label": ["a", "b"]}]) != rows_digest([{"label": ["b", "a"]}])
    assert rows_digest([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
