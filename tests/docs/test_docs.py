"""The documentation runs: code, recipes, commands, links, and tables that must name every key."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from pydantic import BaseModel

import compress
from compress import artifact, errors
from compress.artifact import Artifact, Manifest, PassRecord, create_artifact, open_artifact
from compress.bench.settings import MeasureSettings
from compress.cli.app import app
from compress.data.config import DataConfig, Source
from compress.data.splits import TaskData
from compress.kit import writing
from compress.models.structure import Structure
from compress.passes.base import Context, ModelInfo, Pass
from compress.pipeline.outcomes import Outcomes
from compress.pipeline.planning import make_plan
from compress.recipe import GateRule, Recipe, RunConfig, Step, parse_recipe
from compress.report import model as report_model
from compress.runtimes.target import Target, builtin_targets, parse_target
from compress.store import Store, entries
from compress.tasks.text_classification import TextClassification

ROOT = Path(__file__).parents[2]
TASK = TextClassification(("bad", "fine", "good"), max_length=32)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MCOMPRESS_HOME", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def ship(
    place: Path, tiny_classifier: Callable[..., Path], tiny_exported: Callable[..., Artifact]
) -> Callable[[str], None]:
    """Return ``ship(kind)``: put the tiny classifier where examples expect an artifact, in ``shipped``."""

    def put(kind: str) -> None:
        if kind == "onnx":
            shutil.copytree(tiny_exported("bert").path, place / "shipped")
            return
        from compress.models.signature import torch_graph

        shutil.copytree(tiny_classifier("bert"), place / "shipped", ignore=shutil.ignore_patterns("artifact.json"))
        create_artifact(
            place / "shipped",
            kind="torch",
            task=TASK.dump(),
            graphs={"model": torch_graph(place / "shipped", TASK)},
            made_by=PassRecord(name="test", version=1, config={}),
        )

    return put


def test_python_runs(python_block: Any, ship: Callable[[str], None]) -> None:
    kinds = {"": None, "needs: artifact": "onnx", "needs: torch artifact": "torch"}
    if python_block.not_run:
        compile(python_block.text, python_block.name, "exec")
        return
    if python_block.marker == "at the desk":
        return  # test_docs_commands runs it behind the commands above it
    assert python_block.marker in kinds, f"one of: {', '.join(map(repr, kinds))}, 'at the desk' or 'not run: REASON'"
    kind = kinds[python_block.marker]
    if kind is not None:
        ship(kind)
    run_block(python_block)


def run_block(block: Any) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "example"}
    padding = "\n" * block.line  # errors name the line of the page
    exec(compile(padding + block.text, str(block.page), "exec"), space)
    return space


def test_yaml_is_a_recipe_that_can_be_planned_or_a_target(
    yaml_block: Any, place: Path, tiny_classifier: Callable[..., Path]
) -> None:
    if yaml_block.marker == "target":
        assert parse_target(yaml_block.text, yaml_block.name).name
        return
    if yaml_block.marker == "parsed only":
        assert all(part is not None for part in yaml.safe_load_all(yaml_block.text))
        return
    assert yaml_block.marker == ""
    for split in ("train", "validation", "test"):
        (place / f"{split}.csv").write_text("text,label\nit was fine,fine\n", encoding="utf-8")
    recipe = parse_recipe(yaml_block.text, variables=[f"MODEL={tiny_classifier('bert')}", f"DATA={place}"])
    assert make_plan(recipe).leaves


def test_data_can_be_parsed(data_block: Any, tmp_path: Path) -> None:
    if data_block.kind == "json":
        json.loads(data_block.text)
    elif data_block.kind == "toml":
        tomllib.loads(data_block.text)
    elif node := shutil.which("node"):
        (tmp_path / "block.mjs").write_text(data_block.text, encoding="utf-8")
        checked = subprocess.run([node, "--check", tmp_path / "block.mjs"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_commands_exist_with_their_options(command: str) -> None:
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        goals = {word for word in words if "=" not in word}
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert goals <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    if program != "mcompress":
        return
    words = words[: words.index(">")] if ">" in words else words
    tree: Any = typer.main.get_command(app)
    assert words[0] in tree.commands or words[0] in {"--help", "--version"}
    if words[0] in tree.commands:
        if "--help" in words:
            words.remove("--help")
        tree.commands[words[0]].make_context(words[0], words[1:])


def test_every_block_is_tested_or_says_why_not(
    every_block: list[Any], record_testsuite_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also say how many blocks there are of each kind, and how many of them run."""
    tested = {"python": "run", "yaml": "planned", "sh": "run", "console": "run"}
    tested |= dict.fromkeys(("json", "toml", "js"), "parsed") | {"text": "shown"}
    counts: Counter[str] = Counter()
    for block in every_block:
        assert block.not_run or block.kind in tested, f"{block.name}: a language, or <!-- not run: REASON -->"
        assert block.kind != "text" or "\nmcompress " not in f"\n{block.text}", f"{block.name}: a command is no text"
        counts[f"{block.kind}, {'not run' if block.not_run else tested[block.kind]}"] += 1
    assert counts["sh, run"] + counts["console, run"] > counts["sh, not run"] + counts["console, not run"]
    summary = "; ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))
    record_testsuite_property("blocks of the documents", summary)
    with capsys.disabled():
        print(f"\nblocks of the documents: {summary}")


def test_links_lead_somewhere(each_page: Any) -> None:
    broken = []
    for link in each_page.links:
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (each_page.path.parent / path).resolve() if path else each_page.path
        if not target.exists() or (anchor and anchor not in anchors(replace(each_page, path=target).headings)):
            broken.append(link)
    assert broken == []


def anchors(headings: list[tuple[int, str]]) -> set[str]:
    """Return the anchors of headings, as GitHub makes them: letters of any script stay, punctuation goes."""
    found: set[str] = set()
    for _, heading in headings:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # of a link its text
        anchor = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        found.add(next(name for n in count() if (name := f"{anchor}-{n}" if n else anchor) not in found))
    return found


def test_anchors_are_those_of_github() -> None:
    headings = [(2, "你的模型"), (2, "门限：通过、未决"), (3, "`a_b` & C"), (2, "你的模型")]
    assert anchors(headings) == {"你的模型", "门限通过未决", "a_b--c", "你的模型-1"}


def test_pages_name_no_place_of_one_machine(each_page: Any) -> None:
    for sign in ("/home/", "/root/", "/Users/", "C:\\"):
        assert sign not in each_page.text
    assert [line for line in each_page.text.splitlines() if line != line.rstrip()] == []


def test_quotes_of_the_worked_example_stand_in_its_report() -> None:
    report = (ROOT / "reports" / "sst2-stages" / "report.md").read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "read.md").read_text(encoding="utf-8")
    quotes = re.findall(r"^> (?:- )?(.+)$", guide, re.MULTILINE)
    quotes += [line for line in guide.splitlines() if re.match(r"\| (\*\*)?(dense|pruned)-int8", line)]
    assert len(quotes) == 7
    assert [quote for quote in quotes if quote not in report] == []
    figures = set(re.findall(r"\d+\.\d\d(?:x \[[^]]*\])?", guide)) - {"1.00"}
    assert [figure for figure in figures if figure not in report] == []


def test_the_translation_keeps_step(pages: dict[str, Any]) -> None:
    """Both READMEs: as many headings of each level, equal code but for comments, equal numbers, equal links."""
    english, chinese = pages["README.md"], pages["README.zh-CN.md"]
    assert [level for level, _ in english.headings] == [level for level, _ in chinese.headings]
    assert [(it.kind, code_of(it)) for it in english.blocks()] == [(it.kind, code_of(it)) for it in chinese.blocks()]
    rows = [
        [re.findall(r"[\d.,+-]*\d", line) for line in it.prose.splitlines() if line[:1] == "|"]
        for it in (english, chinese)
    ]
    assert rows[0] == rows[1]
    own = ({"README.zh-CN.md"}, {"README.md"})
    links = [
        Counter(it for it in page.links if it not in mine) for page, mine in zip((english, chinese), own, strict=True)
    ]
    assert links[0] == links[1]
    figures = [Counter(re.findall(r"\d+(?:\.\d+)?", page.prose.replace(",", ""))) for page in (english, chinese)]
    assert {it for it in figures[0] if "." in it} == {it for it in figures[1] if "." in it}


def code_of(block: Any) -> list[str]:
    """Return the lines of a block without comments, and of a drawing what stands before two spaces or more."""
    cut = r"(?<=\S)\s{2,}\S.*$|^\s{20,}\S.*$" if block.kind == "text" else r"\s*# .*$"
    return [line for line in (re.sub(cut, "", line) for line in block.text.splitlines()) if line.strip()]


def test_passes_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8")
    assert found == module.render(), "run `python docs/generate.py`"


def table_keys(page: str, heading: str | None = None) -> set[str]:
    """Return the names in backticks that begin the rows of a page's tables, or of those below one heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    if heading is not None:
        text = text.partition(f"## {heading}\n")[2].split("\n## ")[0]
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def keys(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize(
    ("page", "heading", "expected"),
    [
        ("recipes.md", "Keys", keys(Recipe)),
        ("recipes.md", "Steps", keys(Step) - {"uses", "config"}),
        ("recipes.md", "Gates", keys(GateRule)),
        ("recipes.md", "Data", keys(DataConfig) | keys(Source)),
        ("recipes.md", "Run", keys(RunConfig)),
        ("recipes.md", "Measure", keys(MeasureSettings)),
        ("targets.md", "Your own", keys(Target)),
        ("targets.md", "Evidence", set(Target.model_fields["evidence"].annotation.__args__)),  # type: ignore[union-attr]
        ("artifacts.md", "artifact.json", keys(Manifest)),
    ],
)
def test_tables_name_every_key_and_no_other(page: str, heading: str, expected: set[str]) -> None:
    assert table_keys(page, heading) == expected


def test_targets_page_lists_the_built_in_targets_as_they_are() -> None:
    text = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    table = text.partition("| name | runtime |")[2].partition("\n\n")[0]
    rows = {
        cells[0].strip("`"): cells for line in table.splitlines() if len(cells := line.strip("| ").split(" | ")) == 7
    }
    assert rows.keys() - {"---"} == builtin_targets().keys()
    for name, target in builtin_targets().items():
        assert rows[name][2].lower() == target.device
        assert rows[name][3] == (
            str(target.threads) if target.threads else "every core" if target.device == "cpu" else "–"
        )
        assert rows[name][4] == (f"{target.memory_bytes // 2**20} MiB" if target.memory_bytes else "–")
        assert rows[name][5] == (target.isa or "–")
        assert rows[name][6] == target.evidence


def test_python_page_names_the_whole_interface() -> None:
    first = (ROOT / "docs" / "python.md").read_text(encoding="utf-8").split("\n## ")[0]
    names = {name.partition("(")[0] for name in re.findall(r"`([^`]+)`", first)}
    assert set(compress.__all__) <= names


def test_guarantees_name_the_versions_that_the_code_writes() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    found = {
        name.strip("`"): int(now) for name, now in re.findall(r"^\| (`\S+`|entries)[^|]*\| (\d)", text, re.MULTILINE)
    }
    assert found == {
        "report.json": report_model.SCHEMA,
        "artifact.json": artifact.SCHEMA,
        "structure.json": Structure.model_fields["schema_version"].default,
        "outcomes.json": Outcomes.model_fields["schema_version"].default,
        "entries": entries.FORMAT,
    }
    assert found["outcomes.json"] == writing.SCHEMA, "the same row"


def test_error_and_exit_code_tables_are_right() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+Error`.*?) \| (\d) \|", text, re.MULTILINE)
    for cell, code in rows:
        for name in re.findall(r"`(\w+)`", cell):
            assert getattr(errors, name).exit_code == int(code)
    leaves = {name for name in errors.__all__ if name.endswith("Error")} - {"CompressError", "UsageError"}
    assert {name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)} == leaves
    recipes = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    assert set(re.findall(r"^\| (\d+) \|", recipes, re.MULTILINE)) == {"0", "1", "2", "3", "4", "130"}


def test_the_pass_that_contributing_shows_keeps_the_contract(
    tiny_exported: Callable[..., Artifact], place: Path, every_block: list[Any]
) -> None:
    import onnx

    source = tiny_exported("bert")
    (block,) = (it for it in every_block if it.page.name == "CONTRIBUTING.md" and it.kind == "python")
    round_weights: type[Pass] = run_block(block)["RoundWeights"]
    pass_, config = round_weights(), round_weights.Config(bits=10)
    for part in ("out", "scratch", "checkpoint"):
        (place / part).mkdir()
    context = Context(
        out=place / "out",
        scratch=place / "scratch",
        checkpoint=place / "checkpoint",
        task=TASK,
        data=TaskData({}, TASK.labels),
        store=Store(place / "store"),
    )
    planned = pass_.plan({"model": ModelInfo("onnx", source.traits)}, config).result
    made = open_artifact(pass_.apply({"model": source}, config, context).path)
    assert (made.kind, made.traits) == (planned.kind, planned.traits) == ("onnx", frozenset({"rounded"}))
    assert made.manifest.parents == {"model": source.digest}
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(made.file()).graph.initializer if t.data_type == 1]
    assert weights
    assert not any((array.view(np.uint32) & np.uint32(2**13 - 1)).any() for array in weights)
    texts = ["the film was great", "not good , but fine"]
    with compress.load(source.path, threads=1) as before, compress.load(made.path, threads=1) as after:
        wanted, found = before.logits(texts), after.logits(texts)
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())
    assert (found != wanted).any()
