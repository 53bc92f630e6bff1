"""Labels and texts that are HTML, Markdown or control characters: accepted, and escaped wherever they are shown."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.cli.app import app

LABELS = {
    "bad": "<script>alert(1)</script>",
    "fine": "\x1b[2J\u202eenif | `x` [y](javascript:z)",
    "good": "**good**\x07 &lt;",
}
"""The laboratory's labels -> hostile ones."""
TEXT = '</td><img src=x onerror="alert(2)"> \x1b]0;title\x07 \u202e {} | `` ` '
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.fixture(scope="module")
def shown(lab, tmp_path_factory) -> dict[str, str]:
    """Everything that a run of such a model on such data writes for people: name -> text."""
    root = tmp_path_factory.mktemp("hostile")
    model = Path(shutil.copytree(lab.model, root / "model"))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    names = [LABELS[config["id2label"][key]] for key in sorted(config["id2label"], key=int)]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in lab.data.glob("*.csv"):
        with file.open(encoding="utf-8", newline="") as source:
            rows = [{"text": f"{TEXT}{row['text']}", "label": LABELS[row["label"]]} for row in csv.DictReader(source)]
        with (root / file.name).open("w", encoding="utf-8", newline="") as target:
            writer = csv.DictWriter(target, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    recipe = lab.recipe("hostile-texts", [{"export": {}}, {"cast": {}}], model=str(model))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MCOMPRESS_HOME": root / "home", "DATA": root, "COLUMNS": 80}.items():
            patch.setenv(name, str(value))
        run, call = root / "run", CliRunner()
        made = call.invoke(app, ["run", str(recipe), "--out", str(run), "--examples"])
        assert made.exit_code == 0, made.output
        found = {"run": made.output}
        for words in (["report", str(run)], ["report", str(run), "--markdown"], ["compare", str(run), str(run)]):
            found[" ".join(words[::2])] = call.invoke(app, words).output
        (root / "wrong.csv").write_text("text,label\nx,unknown\n", encoding="utf-8")
        wrong = call.invoke(app, ["validate", str(recipe), "--set", "data.test=${DATA}/wrong.csv"])
        assert wrong.exit_code == 2
        found["error"] = wrong.output
    found |= {name: (run / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")}
    cards = run.glob("deliverables/*/README.md")
    found |= {f"{card.parent.name}/README.md": card.read_text(encoding="utf-8") for card in cards}
    found["folder"] = str(run / "deliverables" / "cast")
    return found


def test_nothing_that_is_shown_steers_what_shows_it(shown) -> None:
    names = [name for name in shown if name != "folder"]
    assert len(names) == 8
    for name in names:
        steering = {c for c in shown[name] if unicodedata.category(c) in STEERING} - set("\n\t\u200c\u200d")
        assert not steering, (name, steering)


def test_no_text_becomes_markup(shown) -> None:
    for name in ("report.html", "report.md", "cast/README.md", "report --markdown"):
        assert "<script>alert(1)" not in shown[name], name
        assert "<img src=x" not in shown[name], name
    for name in ("report.md", "cast/README.md", "report --markdown"):
        assert "](javascript:" not in shown[name], name
    assert "⟨U+001B⟩[2J" in shown["error"]


def test_the_artifact_answers_with_the_very_labels(shown) -> None:
    import compress

    with compress.load(shown["folder"]) as predictor:
        assert set(predictor.task.labels) == set(LABELS.values())
        assert predictor(TEXT)["label"] in LABELS.values()
