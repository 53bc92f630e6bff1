"""Hostile and broken data, recipes, targets, artifacts and reports: refused, with nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.pipeline.folder import RunRecord, save

Change = Callable[[Path], object]


def edit(name: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / name
        plain = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(plain | values), encoding="utf-8")

    return change


def put(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def outside(name: str) -> Change:
    def change(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / f"outside-{name}")
        (folder / name).symlink_to(folder.parent / f"outside-{name}")

    return change


def folder_for(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


# data

PAIRS = "".join(f"a text {i},{'ab'[i % 2]}\n" for i in range(8))
DATA: dict[str, tuple[str, bytes, str]] = {
    "ragged rows": ("d.csv", b"text,label\nx,a\none, two,b\n", "3 cells, the header 2"),
    "mixed columns": ("d.jsonl", b'{"text": "x", "label": "a"}\n{"sentence": "y", "label": "b"}\n', "has no text"),
    "latin-1": ("d.csv", "text,label\nné,a\n".encode("latin-1"), "not UTF-8"),
    "utf-16": ("d.csv", f"text,label\n{PAIRS}".encode("utf-16"), "UTF-16"),
    "utf-16 without a mark": ("d.csv", f"text,label\n{PAIRS}".encode("utf-16-le"), "NUL byte"),
    "nul bytes": ("d.csv", b"text,label\nx\0y,a\n", "NUL byte"),
    "nul bytes in json": ("d.jsonl", b'{"text": "\0"}\n', "NUL byte"),
    "an open quote": ("d.csv", b'text,label\n"x,a\n', "malformed"),
    "a column twice": ("d.csv", b"text,text\nx,a\n", "a column twice"),
    "no column of text": ("d.csv", b"sentence,label\nx,a\n", "no column 'text'"),
    "an empty file": ("d.csv", b"", "no header"),
    "a header alone": ("d.csv", b"text,label\n", "no rows"),
    "an empty text": ("d.csv", b"text,label\n  ,a\n", "has no text"),
    "an empty label": ("d.csv", b"text,label\nx, \n", "has no label"),
    "a long cell": ("d.csv", b"text,label\n" + b"x" * 200_000 + b",a\n", "malformed"),
    "a list for a label": ("d.jsonl", b'{"text": "x", "label": ["a"]}\n', "cannot be read as a name"),
    "a number for a text": ("d.jsonl", b'{"text": 3, "label": "a"}\n', "not text but int"),
    "not json": ("d.jsonl", b"{'text': 'x'}\n", "not a JSON object"),
    "half a surrogate pair": ("d.jsonl", b'{"text": "\\ud800", "label": "a"}\n', "surrogate"),
    "a key twice": ("d.jsonl", b'{"text": "x", "text": "y", "label": "a"}\n', "stands twice"),
    "deep json": ("d.jsonl", b"[" * 100_000 + b"\n", "nested too deeply"),
    "digits without end": ("d.jsonl", b'{"text": "x", "label": ' + b"9" * 5000 + b"}\n", "not a JSON object"),
    "an empty table": ("d.jsonl", b"", "no rows"),
    "empty parquet": ("d.parquet", b"", "not a readable Parquet file"),
    "broken parquet": ("d.parquet", b"PAR1" + bytes(40) + b"PAR1", "not a readable Parquet file"),
    "another suffix": ("d.pkl", b"\x80\x04.", "end in '.pkl'"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_files(refusals, tmp_path, case: str) -> None:
    name, content, phrase = DATA[case]
    (tmp_path / name).write_bytes(content)
    data = {"train": str(tmp_path / name), "validation": "${DATA}/validation.csv", "calibration": {"samples": 0}}
    refusals.of_recipe("data files", phrase, refusals.lab.recipe("hostile", [{"export": {}}], data=data))


@pytest.mark.parametrize(
    ("path", "phrase"),
    [
        ("${DATA}", "not saved by datasets"),
        ("/dev/zero", "does not exist"),
        ("x" * 5000 + ".csv", "name too long"),
        ("~nobody-of-this-name/x.csv", "home directory"),
    ],
)
def test_places_of_data(refusals, path: str, phrase: str) -> None:
    data = {"train": path, "validation": "${DATA}/validation.csv", "calibration": {"samples": 0}}
    refusals.of_recipe("data files", phrase, refusals.lab.recipe("hostile", [{"export": {}}], data=data))


def test_data_of_the_hub_when_offline(refusals, monkeypatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", offline)
    data = {"train": {"hub": "someone/some-set"}, "validation": "${DATA}/validation.csv"}
    recipe = refusals.lab.recipe("hostile", [{"export": {}}], data=data)
    refusals.of_recipe("data files", "could not be loaded", recipe)


def test_one_class(refusals, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"text {i},same\n" for i in range(9)))
    data = {"train": "one.csv", "validation": {"from": "train", "fraction": 0.3}}
    fresh = {"finetune": {"init": {"vocab_size": 90, "layers": 1, "hidden": 16, "heads": 2, "intermediate": 24}}}
    recipe = refusals.lab.recipe("hostile", [fresh], model=None, data=data)
    refusals.of_recipe("data files", "nothing to tell apart", recipe)


# recipes and targets

HEAD = "recipe: 1\nname: hostile\nmodel: ${MODEL}\ndata: {validation: '${DATA}/validation.csv'}\nsteps: [export]\n"
LAUGHS = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]" for m, n in zip("abcdefgh", "bcdefghi", strict=True)]
)
YAML: dict[str, tuple[bytes, str]] = {
    "a tag of Python's": (f"{HEAD}description: !!python/object/apply:os.system [id]\n".encode(), "line 6"),
    "a tag of its own": (f"{HEAD}description: !evil x\n".encode(), "tag '!evil' is not allowed"),
    "a billion laughs": (f"{HEAD}{LAUGHS}\n".encode(), "aliases expanded"),
    "an anchor in itself": (f"{HEAD}labels: &a {{x: *a}}\n".encode(), "an anchor that holds itself"),
    "deep nesting": (HEAD.encode() + b"labels: " + b"[" * 100_000, "nested too deeply"),
    "a key twice": (f"{HEAD}name: other\n".encode(), "the key 'name' stands twice"),
    "a date": (f"{HEAD}description: 2001-99-99\n".encode(), "put it in quotes"),
    "a huge file": (HEAD.encode() + b"#" * (1 << 20), "too large"),
    "latin-1": (HEAD.encode() + "description: é\n".encode("latin-1"), "not UTF-8"),
    "utf-16": (HEAD.encode("utf-16"), "not UTF-8"),
    "nul bytes": (HEAD.encode() + b"description: \0\n", "special characters are not allowed"),
    "a huge number": (HEAD.encode() + b"run: {seed: 0x" + b"f" * 9000 + b"}\n", "a number of"),
    "infinity": (f"{HEAD}gates: {{accuracy: {{min: .inf}}}}\n".encode(), "finite number"),
    "a seed beyond all": (f"{HEAD}run: {{seed: 99999999999}}\n".encode(), "run.seed"),
    "threads beyond all": (f"{HEAD}run: {{threads: 99999999999}}\n".encode(), "run.threads"),
    "an empty file": (b"", "not a mapping"),
    "two documents": (f"{HEAD}---\n{HEAD}".encode(), "another document"),
}


@pytest.mark.parametrize("case", YAML)
def test_recipes(refusals, tmp_path, case: str) -> None:
    text, phrase = YAML[case]
    (tmp_path / "recipe.yaml").write_bytes(text)
    refusals.of_recipe("recipes", phrase, tmp_path / "recipe.yaml")
    refusals.of("recipes", phrase, ("plan", tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (b"name: x\nruntime: !!python/name:os.system\n", "not allowed"),
        (b"[" * 100_000, "nested too deeply"),
        (b"name: x\nname: y\nruntime: torch\n", "stands twice"),
        (b"name: x\nruntime: torch\nthreads: -1\n", "threads"),
        ("name: é".encode("latin-1"), "cannot be read"),
        (b"", "not a target"),
    ],
)
def test_targets(refusals, tmp_path, monkeypatch, text: bytes, phrase: str) -> None:
    (tmp_path / "target.yaml").write_bytes(text)
    monkeypatch.chdir(tmp_path)
    recipe = refusals.lab.recipe("hostile", [{"export": {}}], measure={"targets": ["target.yaml"]})
    refusals.of_recipe("targets", phrase, recipe)


# artifacts, reports, runs

ARTIFACTS: dict[str, tuple[Change, str, int]] = {
    "another schema": (edit("artifact.json", schema_version=99), "schema version 99", 2),
    "an unknown key": (edit("artifact.json", evil=1), "evil", 2),
    "an unknown kind": (edit("artifact.json", kind="pickle"), "kind", 2),
    "a wrong digest": (edit("artifact.json", digest="0" * 64), "digest of an artifact is not that of its files", 4),
    "files above": (
        edit("artifact.json", files={"../x": {"sha256": "0" * 64, "bytes": 1}}),
        "no name of a file inside",
        2,
    ),
    "files at absolute paths": (
        edit("artifact.json", files={"/etc/passwd": {"sha256": "0", "bytes": 1}}),
        "no name of a file inside",
        2,
    ),
    "a graph that is no file of it": (
        edit("artifact.json", graphs={"model": {"file": "../x.onnx", "inputs": [], "outputs": []}}),
        "not among the files",
        2,
    ),
    "a task that is none": (
        edit("artifact.json", task={"name": "text-classification", "labels": 3}),
        "task of an artifact cannot be read",
        2,
    ),
    "an unknown task": (edit("artifact.json", task={"name": "evil", "labels": []}), "Unknown task 'evil'", 2),
    "ragged golden values": (
        edit("artifact.json", golden={"inputs": {"input_ids": [[1], [1, 2]]}, "outputs": {}}),
        "no array of numbers",
        2,
    ),
    "a changed file": (lambda f: (f / "model.onnx").write_bytes(b"other"), "missing or was changed", 4),
    "a link outside": (outside("model.onnx"), "missing or was changed", 4),
    "deep json": (put("artifact.json", b"[" * 100_000), "nested too deeply", 2),
    "latin-1": (put("artifact.json", b"\xe9"), "not UTF-8", 2),
    "an empty file": (put("artifact.json", b""), "cannot be read", 2),
    "a folder": (folder_for("artifact.json"), "cannot be read", 2),
}


@pytest.mark.parametrize("case", ARTIFACTS)
def test_artifacts(refusals, tiny_exported, tmp_path, case: str) -> None:
    change, phrase, code = ARTIFACTS[case]
    folder = Path(shutil.copytree(tiny_exported().path, tmp_path / "artifact"))
    change(folder)
    words = ("bench", folder, "--data", refusals.lab.data / "test.csv"), ("sensitivity", folder)
    refusals.of("artifacts", phrase, *words, code=code)


def drop_a_width(folder: Path) -> None:
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    next(step["widths"] for step in record["steps"] if step["widths"])["heads"].pop()
    (folder / "report.json").write_text(json.dumps(record), encoding="utf-8")


EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (edit("report.json", schema_version=99), "schema version 99"),
        (edit("report.json", evil=1), "evil"),
        (drop_a_width, "not of one length"),
        (put("report.json", b"[" * 100_000), "nested too deeply"),
        (put("report.json", b'{"title": "a", "title": "b"}'), "stands twice"),
        (put("report.json", b"\xe9"), "not UTF-8"),
        (put("report.json", b""), "not valid JSON"),
    ],
)
def test_reports(refusals, tmp_path, change: Change, phrase: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(EXAMPLE, run / "report.json")
    save(run, RunRecord(name="example", recipe_digest="0" * 64))
    change(run)
    words = ("report", run), ("compare", run, run), ("export", run, tmp_path / "out")
    refusals.of("reports", phrase, *words)
    assert sorted(path.name for path in run.iterdir()) == ["report.json", "run.json"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (b"[" * 100_000, "outcomes of a run cannot be read"),
        (b'{"schema_version": 9}', "outcomes of a run cannot be read"),
        (
            b'{"split": "test", "digest": "", "metric": "accuracy", "rows": {"export": {"ort-cpu-1t": "yes"}}}',
            "outcomes of a run cannot be read",
        ),
    ],
)
def test_outcomes(refusals, tmp_path, text: bytes, phrase: str) -> None:
    shutil.copy(EXAMPLE, tmp_path / "report.json")
    (tmp_path / "outcomes.json").write_bytes(text)
    refusals.of("reports", phrase, ("compare", tmp_path, tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights can be taken on only by root")
def test_files_that_may_not_be_read(refusals, tmp_path) -> None:
    (tmp_path / "secret.csv").write_text("text,label\nx,a\n")
    (tmp_path / "secret.csv").chmod(0)
    shutil.copy(refusals.lab.recipe("plain", [{"export": {}}]), tmp_path / "secret.yaml")
    (tmp_path / "secret.yaml").chmod(0)
    for place in (tmp_path, *tmp_path.parents):
        if "pytest" in place.as_posix():  # its own folders, which are its user's alone
            place.chmod(0o755)
    from compress.data.formats import read_table
    from compress.errors import DataError, RecipeError
    from compress.recipe import load_recipe

    os.seteuid(65534)
    try:
        with pytest.raises(RecipeError, match="Permission denied"):
            load_recipe(tmp_path / "secret.yaml")
        with pytest.raises(DataError, match="Permission denied"):
            read_table(tmp_path / "secret.csv", "train")
    finally:
        os.seteuid(0)


def test_the_counts(refusals, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\nrefused:", ", ".join(f"{key} {count}" for key, count in sorted(refusals.counts.items())))
