from __future__ import annotations

import pytest
from pydantic import ValidationError

from compress.data.config import Builtin, Calibration, DataConfig, Source


def test_a_plain_string_is_a_path():
    config = DataConfig.model_validate({"train": "${DATA}/train.csv", "test": {"path": "test.csv", "limit": 5}})
    assert config.train == Source(path="${DATA}/train.csv")
    assert config.test.limit == 5
    assert config.on_overlap == "error"
    assert config.calibration.samples is None


def test_dump_and_parse_give_an_equal_config():
    config = DataConfig.model_validate(
        {"train": "a.csv", "validation": {"from": "train", "fraction": 0.1}, "labels": ["no", "yes"]}
    )
    assert DataConfig.model_validate(config.model_dump(mode="json", by_alias=True)) == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "at least one of"),
        ({"builtin": {}, "train": "a.csv"}, "brings its own splits"),
        ({"train": {"path": "a.csv", "hub": "x/y"}}, "exactly one of"),
        ({"train": {}}, "exactly one of"),
        ({"train": "a.csv", "test": {"from": "train"}}, "go together"),
        ({"train": {"path": "a.csv", "fraction": 0.5}}, "go together"),
        ({"test": {"from": "train", "fraction": 0.1}}, "train needs a path"),
        ({"train": {"from": "train", "fraction": 0.1}}, "train needs a path"),
        ({"train": {"path": "a.csv", "name": "sst2"}}, "needs hub"),
        ({"train": "a.csv", "validation": {"from": "train", "fraction": 0.1, "split": "x"}}, "not within train"),
        ({"train": "a.csv", "transfer": {"from": "train", "fraction": 0.1}}, "transfer needs"),
        ({"train": "a.csv", "labels": ["a", "a"]}, "twice"),
        ({"train": "a.csv", "trian": "b.csv"}, "trian"),
        ({"builtin": {"rows": 10_001}}, "10000"),
    ],
)
def test_contradictions_are_refused(data, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(data)


@pytest.mark.parametrize("section", [Source, Calibration, Builtin, DataConfig])
def test_every_field_is_documented_and_optional(section):
    for name, field in section.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name
