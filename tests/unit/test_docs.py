"""The documentation runs: code, recipes, commands, links, and tables that must name every key."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from pydantic import BaseModel

import compress
from compress import errors
from compress.artifact import Artifact, Manifest, PassRecord, create_artifact, open_artifact
from compress.bench.settings import MeasureSettings
from compress.cli.app import app
from compress.data.config import DataConfig, Source
from compress.data.splits import TaskData
from compress.passes.base import Context, ModelInfo, Pass
from compress.pipeline.planning import make_plan
from compress.recipe import GateRule, Recipe, RunConfig, Step, parse_recipe
from compress.runtimes.target import Target, builtin_targets, parse_target
from compress.store import Store
from compress.tasks.text_classification import TextClassification

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- (?P<marker>[^\n]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
TASK = TextClassification(("bad", "fine", "good"), max_length=32)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text, and the comment right above it."""

    page: Path
    line: int
    kind: str
    marker: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(*kinds: str) -> list[Any]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match["kind"] in kinds:
                line = text.count("\n", 0, match.start("text"))
                found.append(Block(page, line, match["kind"], match["marker"] or "", match["text"]))
    return [pytest.param(block, id=block.name) for block in found]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


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


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: Block, ship: Callable[[str], None]) -> None:
    kinds = {"": None, "needs: artifact": "onnx", "needs: torch artifact": "torch"}
    assert block.marker in kinds, f"one of: {', '.join(map(repr, kinds))}"
    kind = kinds[block.marker]
    if kind is not None:
        ship(kind)
    run_block(block)


def run_block(block: Block) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "example"}
    padding = "\n" * block.line  # errors name the line of the page
    exec(compile(padding + block.text, str(block.page), "exec"), space)
    return space


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_is_a_recipe_that_can_be_planned_or_a_target(
    block: Block, place: Path, tiny_classifier: Callable[..., Path]
) -> None:
    if block.marker == "target":
        assert parse_target(block.text, block.name).name
        return
    assert block.marker == ""
    for split in ("train", "validation", "test"):
        (place / f"{split}.csv").write_text("text,label\nit was fine,fine\n", encoding="utf-8")
    recipe = parse_recipe(block.text, variables=[f"MODEL={tiny_classifier('bert')}", f"DATA={place}"])
    assert make_plan(recipe).leaves


def commands() -> Iterator[Any]:
    for parameter in blocks("console", "sh", "bash", ""):
        block = parameter.values[0]
        for number, line in enumerate(block.text.splitlines(), block.line + 1):
            if line.startswith(("mcompress ", "make ")):
                yield pytest.param(line, id=f"{block.page.name}:{number}")


@pytest.mark.parametrize("line", list(commands()))
def test_commands_exist_with_their_options(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        goals = {word for word in words if "=" not in word}
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert goals <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
        return
    tree = typer.main.get_command(app)
    assert words[0] in tree.commands or words[0] in {"--help", "--version"}  # type: ignore[attr-defined]
    if words[0] in tree.commands:  # type: ignore[attr-defined]
        if "--help" in words:
            words.remove("--help")
        tree.commands[words[0]].make_context(words[0], words[1:])  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_pages_name_no_place_of_one_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for sign in ("/home/", "/root/", "/Users/", "C:\\"):
        assert sign not in text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


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
    tiny_exported: Callable[..., Artifact], place: Path
) -> None:
    import onnx

    source = tiny_exported("bert")
    (block,) = (p.values[0] for p in blocks("python") if p.values[0].page.name == "CONTRIBUTING.md")
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
