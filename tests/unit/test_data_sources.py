from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from compress.data.config import DataConfig
from compress.data.digest import rows_digest
from compress.data.formats import read_table
from compress.data.sources import load_data, read_rows
from compress.errors import DataError

SHARED = Path(os.environ.get("MCOMPRESS_SHARED", Path(__file__).parents[3] / "shared"))


def write(path, rows, columns=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def files(tmp_path):
    return {
        "train": write(tmp_path / "train.csv", [(f"train {i}", "abb"[i % 3]) for i in range(60)]),
        "validation": write(tmp_path / "validation.csv", [("valid one", "a"), ("valid two", "b")]),
        "test": write(tmp_path / "test.csv", [("test one", "b")]),
    }


def load(data, samples=6, **options):
    return load_data(DataConfig.model_validate({"calibration": {"samples": samples}, **data}), **options)


def test_three_files_become_checked_splits(files):
    data = load(files)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 60, "validation": 2, "test": 1, "calibration": 6,
    }  # fmt: skip
    assert data.labels == ("a", "b")
    assert data["test"].rows == [{"text": "test one", "text_pair": None, "label": "b"}]
    assert data["test"].digest == rows_digest(data["test"].rows)
    assert [(o.first, o.second, o.count) for o in data.overlaps] == [
        ("train", "validation", 0), ("train", "test", 0), ("validation", "test", 0),
    ]  # fmt: skip
    assert not data.synthetic
    assert data.notes["rows"]["calibration"] == data.notes["calibration_asked"] == 6


def test_calibration_is_drawn_from_train_by_label(files):
    sample = load(files)["calibration"]
    assert Counter(row["label"] for row in sample.rows) == {"a": 2, "b": 4}
    assert all(row in load(files)["train"].rows for row in sample.rows)
    assert "calibration" not in load(files, samples=0)


def test_sources_never_hold_a_machine_path(files, tmp_path):
    data = load(
        {"train": "${DATA}/train.csv", "test": files["test"], "validation": {"from": "train", "fraction": 0.1}},
        expand=lambda text: text.replace("${DATA}", str(tmp_path)),
    )
    assert data["train"].source == "${DATA}/train.csv"
    assert data["test"].source == "test.csv"
    assert data["validation"].source == "0.1 of train"
    assert str(tmp_path) not in repr(data)


def test_a_hub_id_is_filled_in_and_recorded_unfilled(files, monkeypatch):
    table = read_table(Path(files["train"]), "train")
    asked = []
    monkeypatch.setattr("compress.data.sources.read_hub", lambda *words: asked.append(words) or table)
    hub = {"hub": "${OWNER}/tickets", "name": "en"}
    data = load({**files, "train": hub}, expand=lambda text: text.replace("${OWNER}", "acme"))
    assert asked == [("acme/tickets", "en", "train")]
    assert data["train"].source == "hub:${OWNER}/tickets/en[train]"


def test_unnamed_labels_of_a_model_ask_for_names(files):
    with pytest.raises(DataError, match="unknown to the model") as caught:
        load(files, known_labels=["LABEL_0", "LABEL_1"])
    assert "labels: {LABEL_0: ..." in caught.value.fix


def test_carved_splits_are_stratified_removed_and_seeded(files):
    carve = {"validation": {"from": "train", "fraction": 0.1}, "test": {"from": "train", "fraction": 0.2}}
    data = load({"train": files["train"], **carve})
    assert {name: len(data[name]) for name in ("train", "validation", "test")} == {
        "train": 42, "validation": 6, "test": 12,
    }  # fmt: skip
    assert Counter(row["label"] for row in data["validation"].rows) == {"a": 2, "b": 4}
    assert sum(o.count for o in data.overlaps) == 0
    assert len({row["text"] for name in ("train", "validation", "test") for row in data[name].rows}) == 60
    again = load({"train": files["train"], **carve})
    other = load({"train": files["train"], **carve, "seed": 1})
    assert again["test"].digest == data["test"].digest != other["test"].digest


def test_rows_of_one_text_are_carved_together(tmp_path):
    train = write(tmp_path / "train.csv", [(f"Text {i % 10}", "a") for i in range(40)])
    data = load({"train": train, "test": {"from": "train", "fraction": 0.1}})
    assert len({row["text"] for row in data["test"].rows}) == 4
    assert len(data["test"]) == 16
    assert data.overlaps[0].count == 0


def test_limit_is_stratified_and_exact(files):
    data = load({**files, "train": {"path": files["train"], "limit": 30}})
    assert Counter(row["label"] for row in data["train"].rows) == {"a": 10, "b": 20}
    assert data["train"].source == "train.csv, 30 rows"
    with pytest.raises(DataError, match="limit of test") as caught:
        load({**files, "test": {"path": files["test"], "limit": 2}})
    assert caught.value.value == "asked for 2 rows, test has 1"


def test_columns_are_renamed_and_pairs_kept(tmp_path):
    train = write(tmp_path / "d.csv", [("a", "", "1"), ("c", "d", "0")], ("question", "answer", "same"))
    columns = {"text": "question", "text_pair": "answer", "label": "same"}
    data = load({"train": train, "columns": columns}, samples=2)
    assert data["train"].rows == [
        {"text": "a", "text_pair": None, "label": "1"},
        {"text": "c", "text_pair": "d", "label": "0"},
    ]


def test_multi_label_and_regression(tmp_path):
    multi = write(tmp_path / "multi.csv", [("x", "b; a;b"), ("y", ""), ("z", "c")])
    data = load({"train": multi, "label_separator": ";"}, samples=1, problem="multi_label")
    assert [row["label"] for row in data["train"].rows] == [["b", "a"], [], ["c"]]
    assert data.labels == ("a", "b", "c")
    numbers = write(tmp_path / "numbers.csv", [("x", "0.5"), ("y", "-2")])
    data = load({"train": numbers}, samples=1, problem="regression")
    assert [row["label"] for row in data["train"].rows] == [0.5, -2.0]
    assert data.labels == ()


def test_whole_number_labels_are_names_in_numeric_order(tmp_path):
    train = tmp_path / "d.jsonl"
    train.write_text("".join(f'{{"text": "t{i}", "label": {i}}}\n' for i in (10, 2, 1)))
    assert load({"train": str(train)}, samples=1).labels == ("1", "2", "10")


def test_label_order_comes_from_the_recipe_or_the_model(files):
    assert load({**files, "labels": ["b", "a"]}).labels == ("b", "a")
    assert load(files, known_labels=["b", "c", "a"]).labels == ("b", "c", "a")
    with pytest.raises(DataError, match="not the same names") as caught:
        load({**files, "labels": ["b", "a"]}, known_labels=["a", "c"])
    assert caught.value.value == "'b', 'c'"


def test_unlabelled_transfer_rows(files, tmp_path):
    transfer = write(tmp_path / "more.csv", [("free text",), ("TRAIN 1",)], ("text",))
    data = load({**files, "transfer": transfer})
    assert data["transfer"].rows == [{"text": "free text", "text_pair": None}, {"text": "TRAIN 1", "text_pair": None}]


def test_dropping_happens_before_calibration(files, tmp_path):
    test = write(tmp_path / "t.csv", [("TRAIN  0", "a"), ("new", "b")])
    data = load({**files, "test": test, "on_overlap": "drop_from_train"}, samples=59)
    assert len(data["train"]) == len(data["calibration"]) == 59
    assert data.notes["dropped"] == {"train": 1}
    with pytest.raises(DataError, match="larger than train"):
        load({**files, "test": test, "on_overlap": "drop_from_train"}, samples=60)


def test_the_built_in_set_is_marked_synthetic():
    data = load({"builtin": {"rows": 600, "seed": 3}})
    assert data.synthetic
    assert data["train"].source == "builtin:support-tickets, 600 rows, seed 3"
    assert len(data.labels) >= 12
    with pytest.raises(DataError, match="one label per row"):
        load({"builtin": {}}, problem="regression")


@pytest.mark.parametrize(
    ("header", "rows", "options", "what", "value"),
    [
        (("txt", "label"), [("a", "b")], {}, "no column 'text'", "bad.csv"),
        (("text", "lable"), [("a", "b")], {}, "no column 'label'", "bad.csv"),
        (("text", "label"), [], {}, "train has no rows", "bad.csv"),
        (("text", "label"), [("a", "b"), ("c", " ")], {}, "no label", "bad.csv, line 3"),
        (("text", "label"), [("a", "b"), (" ", "b")], {}, "no text", "bad.csv, line 3"),
        (("text", "label"), [("a", "b")], {"known_labels": ["c"]}, "1 label of train is unknown", "'b'"),
        (("text", "label"), [("a", "b")], {"problem": "regression"}, "not a finite number", "line 2: 'b'"),
        (("text", "label"), [("a", "nan")], {"problem": "regression"}, "not a finite number", "line 2: 'nan'"),
        (("text", "label"), [("a", "b")], {"samples": 2}, "larger than train", "asked for 2 rows, train has 1"),
    ],
)
def test_mistakes_in_a_file(tmp_path, header, rows, options, what, value):
    with pytest.raises(DataError, match=what) as caught:
        load({"train": write(tmp_path / "bad.csv", rows, header)}, **options)
    assert value in caught.value.value


def test_a_missing_column_suggests_one(tmp_path):
    with pytest.raises(DataError) as caught:
        load({"train": write(tmp_path / "d.csv", [("a", "b")], ("text", "labels"))})
    assert "Did you mean 'labels'?" in caught.value.fix
    assert "data.columns.label" in caught.value.fix


def test_an_unknown_task_column_is_refused(files):
    with pytest.raises(DataError, match="unknown task column 'txt'"):
        load({**files, "columns": {"txt": "text"}})


def test_labels_that_train_lacks(files, tmp_path):
    test = write(tmp_path / "t.csv", [(f"t{i}", f"new{i}") for i in range(7)])
    with pytest.raises(DataError, match="7 labels of test are unknown to train") as caught:
        load({**files, "test": test})
    assert caught.value.value == "'new0', 'new1', 'new2', 'new3', 'new4', ..."


def test_a_list_of_labels_needs_multi_label(tmp_path):
    train = tmp_path / "d.jsonl"
    train.write_text('{"text": "a", "label": ["b"]}\n')
    with pytest.raises(DataError, match="cannot be read as a name") as caught:
        load({"train": str(train)}, samples=1)
    assert "multi_label" in caught.value.fix


@pytest.mark.parametrize(("name", "validation", "test", "dropped"), [("sst2", 0, 2, 3), ("banking77", 1, 1, 2)])
def test_published_sets_overlap_as_documented(name, validation, test, dropped):
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"the data set is not here: {folder}")
    splits = {split: str(folder / f"{split}.csv") for split in ("train", "validation", "test")}
    with pytest.raises(DataError, match="more than one split"):
        load(splits)
    data = load({**splits, "on_overlap": "drop_from_train"}, samples=256)
    assert [overlap.count for overlap in data.overlaps] == [validation, test, 0]
    assert data.notes["dropped"] == {"train": dropped}
    assert len(data["calibration"]) == 256


def test_one_file_with_and_without_labels(tmp_path):
    labelled = write(tmp_path / "a.csv", [("x", "1.5")])
    assert read_rows(Path(labelled), problem="regression") == [{"text": "x", "text_pair": None, "label": 1.5}]
    bare = write(tmp_path / "b.csv", [("x",)], ("text",))
    assert read_rows(Path(bare)) == [{"text": "x", "text_pair": None}]
    with pytest.raises(DataError, match="has no rows"):
        read_rows(Path(write(tmp_path / "c.csv", [])))


def test_default_calibration_takes_all_of_a_small_train(tmp_path):
    write(tmp_path / "train.csv", [("a", "x"), ("b", "y"), ("c", "x")])
    data = load_data(DataConfig(train=str(tmp_path / "train.csv")))
    assert (len(data["calibration"]), data.notes["calibration_asked"]) == (3, 3)
