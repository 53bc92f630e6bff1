"""Likely mistakes with the verbs that measure, compare and bring results: exit code, three parts, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.cli.app import app

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a report that has no run around it, an empty folder, and files that are something else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCOMPRESS_HOME", str(tmp_path / "home"))
    (tmp_path / "record").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "record" / "report.json")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "words.json").write_text("not JSON", encoding="utf-8")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "data.csv").write_text("text,label\nfine,good\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "phrases"),
    [
        ("bench empty --data data.csv", 2, ["no artifact.json", "empty"]),
        ("bench empty --data data.csv --scenarios offline,servr", 2, ["Unknown scenario 'servr'", "'server'"]),
        ("bench empty --data data.csv --server-latency-ms 5", 2, ["has no bound", "--scenarios server"]),
        ("compare record nowhere", 2, ["report cannot be read", "nowhere"]),
        ("compare record list.json", 2, ["This is not a report", "list.json"]),
        ("compare record record --margin sise=2%", 2, ["no metric 'sise'", "'size'"]),
        ("compare record record --margin speedup=5", 2, ["a share below 1 or in percent", "speedup=5"]),
        ("report words.json", 2, ["not valid JSON", "words.json"]),
        ("kit record", 2, ["needs a run and a folder"]),
        ("kit record made", 2, ["not a run: it has no run.json", "record"]),
        ("kit record:export empty:quantize made", 2, ["A kit is of one run"]),
        ("ingest nowhere.json --into record", 2, ["result cannot be read", "value: nowhere.json: No such file"]),
        ("ingest bytes.json --into record", 2, ["result cannot be read", "bytes.json: not UTF-8 text"]),
        ("ingest list.json --into record", 2, ["list.json", "run.py again"]),
        ("ingest list.json --into empty", 2, ["report cannot be read", "empty"]),
        ("run demo --out made --track tensorbord", 2, ["no tracker 'tensorbord'", "'tensorboard'"]),
        ("run classifier-cpu --out made --var MODEL=./absent --var DATA=.", 2, ["${MODEL} = ./absent"]),
    ],
)
def test_a_mistake_has_three_parts_and_leaves_nothing(place: Path, words: str, code: int, phrases: list[str]) -> None:
    before = sorted(place.rglob("*"))
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == code, result.output
    for phrase in ("error: ", "\n  fix:   ", *phrases):
        assert phrase in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert [path for path in sorted(place.rglob("*")) if "home" not in path.parts] == before
