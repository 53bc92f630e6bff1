"""The published schema: current, valid, kept by what is written; earlier records still open."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.cli.app import app
from compress.errors import UsageError
from compress.report.files import read_report, render_report
from compress.report.model import SCHEMA
from compress.report.schema import json_schema, schema_text

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
PUBLISHED = ROOT / "docs" / "schema" / f"report-{SCHEMA}.json"
OLD = [DATA / "report_schema1.json", *sorted(ROOT.glob("reports/*/report.json"))]


def test_the_published_schema_is_current() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.SCHEMA_TARGET == PUBLISHED
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text(), "run `python docs/generate.py`"


def test_the_schema_names_itself_and_every_property_is_described_or_plain() -> None:
    schema = json_schema()
    assert schema["$id"] == f"urn:mcompress:schema:report:{SCHEMA}"
    assert schema["title"]
    assert schema["properties"]["schema_version"]["const"] == SCHEMA


def test_what_is_written_keeps_the_schema_and_what_is_not_a_report_does_not() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (group test)")
    schema = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    record = json.loads(read_report(DATA / "report_example.json").model_dump_json())
    assert list(validator.iter_errors(record)) == []
    for broken in (
        {**record, "schema_version": 1},
        {**record, "surprise": 1},
        {key: value for key, value in record.items() if key != "verdict"},
        {**record, "rows": [{**record["rows"][0], "status": "fine"}]},
    ):
        assert list(validator.iter_errors(broken))
    migrated = json.loads(read_report(OLD[0]).model_dump_json())
    assert list(validator.iter_errors(migrated)) == []


@pytest.mark.parametrize("path", OLD, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_earlier_reports_open_and_lose_nothing(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    report = read_report(path)
    assert report.schema_version == SCHEMA
    written = json.loads(report.model_dump_json())
    assert within(record | {"schema_version": SCHEMA}, written)


def within(old: object, new: object) -> bool:
    """Say whether everything in ``old`` stands in ``new``, which may say more."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and within(value, new[key]) for key, value in old.items())
    if isinstance(old, list):
        return (
            isinstance(new, list) and len(old) == len(new) and all(within(a, b) for a, b in zip(old, new, strict=True))
        )
    return old == new


def test_a_newer_report_is_refused(tmp_path: Path) -> None:
    record = json.loads((DATA / "report_example.json").read_text(encoding="utf-8"))
    (tmp_path / "report.json").write_text(json.dumps(record | {"schema_version": SCHEMA + 1}))
    with pytest.raises(UsageError) as caught:
        read_report(tmp_path)
    assert f"schema version {SCHEMA + 1}; this mcompress reads versions 1 to {SCHEMA}" in caught.value.what
    assert "newer mcompress" in caught.value.fix


def test_rendering_again_leaves_the_record_alone(tmp_path: Path) -> None:
    text = OLD[0].read_text(encoding="utf-8")
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    paths = render_report(read_report(tmp_path), tmp_path)
    assert sorted(path.name for path in paths.values()) == ["report.html", "report.md"]
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == text


def test_the_command_prints_the_schema() -> None:
    assert CliRunner().invoke(app, ["report", "--schema"]).stdout == schema_text()
    compact = CliRunner().invoke(app, ["report", "--schema", "--json"]).stdout
    assert compact.count("\n") == 1
    assert json.loads(compact) == json_schema()
    assert CliRunner().invoke(app, ["report"]).exit_code == 2
