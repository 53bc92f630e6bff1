"""The record: round trips, refuses what it does not know, is read and written safely."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from compress.errors import UsageError
from compress.report.files import read_report, write_report
from compress.report.model import Report

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"


@pytest.fixture
def record() -> dict:
    return json.loads(EXAMPLE.read_text(encoding="utf-8"))


def test_example_says_that_it_is_invented(record: dict) -> None:
    assert record["title"].startswith("Invented")
    assert record["data"]["synthetic"] is True
    assert record["limits"][0] == "Every number in this file is invented."


def test_json_round_trip_is_exact(record: dict) -> None:
    report = Report.model_validate(record)
    assert json.loads(report.model_dump_json(exclude_unset=True)) == record
    assert Report.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("path", [("rows", 0), ("verdict",), ("steps", 3, "gates", 0), ("environment",), ()])
def test_unknown_field_is_refused(record: dict, path: tuple) -> None:
    place = record
    for key in path:
        place = place[key]
    place["suprise"] = 1
    with pytest.raises(ValidationError, match="suprise"):
        Report.model_validate(record)


def test_record_is_frozen_and_finite(record: dict) -> None:
    report = Report.model_validate(record)
    with pytest.raises(ValidationError):
        report.title = "other"
    record["rows"][0]["latency"]["p50_ms"] = float("nan")
    with pytest.raises(ValidationError, match="finite"):
        Report.model_validate(record)


def test_every_field_of_the_schema_that_is_a_number_says_its_unit_in_name_or_description() -> None:
    schema = Report.model_json_schema()
    assert schema["$defs"]["Latency"]["properties"]["p50_ms"]
    described = schema["$defs"]["Row"]["properties"]
    for name in ("agreement", "throughput_per_s", "peak_rss_bytes", "size_bytes", "pareto"):
        assert described[name]["description"]


def test_write_and_read(tmp_path: Path) -> None:
    report = read_report(EXAMPLE)
    paths = write_report(report, tmp_path / "new" / "folder")
    assert {path.name for path in paths.values()} == {"report.json", "report.md", "report.html"}
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in paths.values())
    assert read_report(paths["json"]) == read_report(tmp_path / "new" / "folder") == report
    assert stat.S_IMODE(paths["json"].stat().st_mode) == 0o644
    first = {key: path.read_bytes() for key, path in paths.items()}
    assert {key: path.read_bytes() for key, path in write_report(report, tmp_path / "new" / "folder").items()} == first


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = read_report(EXAMPLE)
    paths = write_report(report, tmp_path)
    before = paths["json"].read_bytes()

    def refuse(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(report.model_copy(update={"title": "other"}), tmp_path)
    assert paths["json"].read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def _change(key: str, value: object):
    def change(text: str) -> str:
        return json.dumps({**json.loads(text), key: value})

    return change


@pytest.mark.parametrize(
    ("content", "what", "value"),
    [
        (lambda text: text[:200], "not valid JSON", "report.json"),
        (lambda text: "[]", "not a report", "the whole file"),
        (_change("schema_version", 3), "schema version 3", "report.json"),
        (_change("created", "yesterday"), "not a report", "created"),
        (_change("rows", [{"step": "a"}]), "not a report", "rows.0.target"),
    ],
)
def test_reading_something_else_is_a_three_part_error(tmp_path: Path, content, what: str, value: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(content(EXAMPLE.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_report(file)
    assert what in caught.value.what
    assert value in caught.value.value
    assert caught.value.fix


def test_missing_report_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_report(tmp_path)
    assert "cannot be read" in caught.value.what
    assert str(tmp_path / "report.json") in caught.value.value


def test_reports_import_nothing_of_the_domain() -> None:
    code = (
        "import sys; import compress.report.files, compress.report.terminal, compress.report.compare_view;"
        "print(sorted(m for m in sys.modules if m.startswith('compress.') and not m.startswith('compress.report')));"
        "print(sorted({'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["['compress.disk', 'compress.errors', 'compress.reading']", "[]"]
