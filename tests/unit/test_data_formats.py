from __future__ import annotations

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.data.formats import read_hub, read_table
from compress.errors import DataError

ROWS = [{"text": 'naïve, "quoted"\nline', "label": "a"}, {"text": "plain", "label": "b"}]


def write_csv(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
def test_delimited_files_round_trip(tmp_path, suffix, delimiter):
    table = read_table(write_csv(tmp_path / f"data{suffix}", ROWS, delimiter), "train")
    assert table.rows == ROWS
    assert table.columns == ["text", "label"]
    assert table.place(1) == f"data{suffix}, line 4"


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"text": cells, "label": cells}), max_size=6))
def test_any_text_survives_csv(tmp_path_factory, rows):
    path = write_csv(tmp_path_factory.mktemp("csv") / "data.csv", rows)
    assert read_table(path, "train").rows == rows


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\nx,y\n", encoding="utf-8-sig")
    assert read_table(path, "train").columns == ["text", "label"]


def test_jsonl_keeps_types_and_skips_blank_lines(tmp_path):
    rows = [{"text": "one\u2028two", "label": ["a", "b"]}, {"text": "x", "label": 3}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    table = read_table(path, "train")
    assert table.rows == rows
    assert table.place(1) == "data.jsonl, line 3"


def labelled_dataset():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["x", "y"])),
        }
    )
    columns = {"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[1], [], [0, 1]]}
    return datasets, datasets.Dataset.from_dict(columns, features=features)


NAMED = [
    {"text": "a", "label": "yes", "tags": ["y"]},
    {"text": "b", "label": "no", "tags": []},
    {"text": "c", "label": None, "tags": ["x", "y"]},
]


def test_parquet_gives_names_for_class_ids(tmp_path):
    _, dataset = labelled_dataset()
    dataset.to_parquet(tmp_path / "data.parquet")
    table = read_table(tmp_path / "data.parquet", "train")
    assert table.rows == NAMED
    assert table.place(2) == "data.parquet, row 3"


def test_saved_folders_with_and_without_splits(tmp_path):
    datasets, dataset = labelled_dataset()
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset, "dev": dataset.select([1])}).save_to_disk(tmp_path / "many")
    assert read_table(tmp_path / "one", "validation").rows == NAMED
    assert read_table(tmp_path / "many", "dev").rows == NAMED[1:2]
    with pytest.raises(DataError, match="no split 'validation'") as caught:
        read_table(tmp_path / "many", "validation")
    assert "dev, train" in caught.value.fix


def test_a_folder_of_something_else_is_refused(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="not saved by datasets"):
        read_table(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "content", "what", "value"),
    [
        ("d.csv", b"text,label\nok,a\ncaf\xe9,b\n", "not UTF-8", "d.csv, line 3: byte 0xe9"),
        ("d.csv", b"text,label\nok,a\none, two,b\n", "3 cells, the header 2", "d.csv, line 3"),
        ("d.csv", b'text,label\n"two\nlines",a\nlonely\n', "1 cells, the header 2", "d.csv, line 4"),
        ("d.csv", b'text,label\n"open,a\n', "malformed", "d.csv, line 2"),
        ("d.csv", b"text,text\na,b\n", "names a column twice", "text,text"),
        ("d.csv", b"", "no header", "d.csv"),
        ("d.jsonl", b'{"text": "a"}\n{"text": \n', "not a JSON object", "d.jsonl, line 2"),
        ("d.jsonl", b'["text"]\n', "a list instead of an object", "d.jsonl, line 1"),
        ("d.parquet", b"PAR1 not really", "not a readable Parquet", "d.parquet"),
        ("d.json", b"[]", "end in '.json'", "d.json"),
        ("data", b"", "needs an extension", "data"),
    ],
)
def test_bad_files_name_the_place(tmp_path, name, content, what, value):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        read_table(tmp_path / name, "train")
    assert value in caught.value.value
    assert caught.value.fix


def test_an_unknown_extension_suggests_the_closest(tmp_path):
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "d.json", "train")
    assert "'.jsonl'" in caught.value.fix


def test_a_missing_file_names_the_split(tmp_path):
    with pytest.raises(DataError, match="for validation does not exist"):
        read_table(tmp_path / "no.csv", "validation")


def test_an_unreachable_hub_tells_what_to_do(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*args, **kwargs):
        raise ConnectionError("no network\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="'a/b' could not be loaded") as caught:
        read_hub("a/b", None, "train")
    assert caught.value.value == "no network"
    assert "save_to_disk" in caught.value.fix


def test_the_hub_gets_id_configuration_and_split(monkeypatch):
    datasets, dataset = labelled_dataset()
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or dataset)
    table = read_hub("nyu-mll/glue", "sst2", "validation")
    assert asked == [(("nyu-mll/glue", "sst2"), {"split": "validation"})]
    assert table.rows == NAMED
