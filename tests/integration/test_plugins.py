"""Plug-ins: the sample, installed from its own project, in every part of a run; and broken ones, which hurt nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import compress
from compress.artifact import Artifact, open_artifact
from compress.passes.base import passes
from compress.passes.export import Export, ExportConfig
from compress.pipeline.running import step_key
from compress.tasks.base import tasks
from compress.tasks.text_classification import TextClassification

LABELS = ("bad", "fine", "good")
MEASURE = {"inputs": 4, "launches": 1, "rounds": 3, "warmup_seconds": 0.01, "throughput_seconds": 0.05, "baselines": []}
ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "plugin"
ORIGINS = {
    "passes": ("palette", "mcompress-sample 0.1.0 (mcompress_sample.palette:Palette)"),
    "runtimes": ("onnx-reference", "mcompress-sample 0.1.0 (mcompress_sample.reference:OnnxReference)"),
    "tasks": ("ordinal-classification", "mcompress-sample 0.1.0 (mcompress_sample.ordinal:OrdinalClassification)"),
}


PLUGGED = {
    "task": "ordinal-classification",
    "gates": {"mae": {"max_increase": 100}},
    "measure": {**MEASURE, "targets": ["ort-cpu-1t", str(SAMPLE / "onnx-reference.yaml")]},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the sample, installed from its pyproject.toml without network."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(SAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


TOUCHED = "from pathlib import Path\nPath(__file__).with_suffix('.imported').touch()\n"
CODE = {
    "raises": TOUCHED + "raise RuntimeError('first\\n\\x1b[31msecond')",
    "leaves": TOUCHED + "raise SystemExit(3)",
    "needs": "import a_package_that_nobody_has",
    "mute": "class Odd(BaseException):\n    def __str__(self): raise ValueError\nraise Odd",
    "stranger": "class Thing: pass",
    "bare": "from compress.passes.base import Pass\nclass Thing(Pass): name = 'bare'; version = 1",
    "renamed": "from compress.passes.export import Export\nclass Thing(Export): pass",
    "chatty": "print('hello')\nfrom compress.passes.export import Export\nclass Thing(Export): name = 'chatty'",
    "half": "from compress.runtimes.base import Runtime\nclass Thing(Runtime): name = 'half'",
    "other": "class Thing: pass",
}
"""Modules of broken plug-ins; ``chatty`` only prints, and works."""
KINDS = {"passes": "pass", "runtimes": "runtime", "tasks": "task"}
FAULTS = {
    ("passes", "raises"): "RuntimeError: first ?[31msecond",
    ("passes", "leaves"): "SystemExit: 3",
    ("passes", "needs"): "ModuleNotFoundError: No module named 'a_package_that_nobody_has'",
    ("passes", "mute"): "Odd",
    ("passes", "stranger"): "it is no subclass of compress.passes.base.Pass",
    ("passes", "bare"): "it lacks what a Pass has: Config, apply, consumes, libraries, plan, preserves, produces",
    ("passes", "renamed"): "it is offered as 'renamed', but its `name` is 'export'",
    ("passes", "nowhere"): "ModuleNotFoundError: No module named 'nowhere_at_all'",
    ("passes", "lacking"): "AttributeError: module 'stranger' has no attribute 'Absent'",
    ("runtimes", "half"): "it lacks what a Runtime has: available, kinds, open, package",
    ("tasks", "other"): "it is no subclass of compress.tasks.base.Task",
}
"""What shows when a plug-in is imported: group and name -> the cause that is told."""
SEEN_AT_ONCE = {
    ("passes", "shapeless"): "its entry point is not of the form module:Class",
    ("passes", "nameless"): "its METADATA with name and version is missing",
    ("passes", "twice"): "first-of-two 1.0 (stranger:Thing) and second-of-two 1.0 (raises:Thing)",
    ("passes", "prune"): "the name of a built-in one, which is used instead. value: taker 1.0 (stranger:Thing)",
}
"""What shows without importing it."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of plug-ins that are broken in every way, as installers leave them there."""
    folder = tmp_path_factory.mktemp("broken")
    for name, text in CODE.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")

    def distribution(name: str, entries: str, metadata: bool = True) -> None:
        record = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        record.mkdir()
        (record / "entry_points.txt").write_text(entries, encoding="utf-8")
        if metadata:
            (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")

    for group, name in [*FAULTS, ("passes", "chatty")]:
        place = {"nowhere": "nowhere_at_all:Thing", "lacking": "stranger:Absent"}.get(name, f"{name}:Thing")
        distribution(f"broken-{name}", f"[mcompress.{group}]\n{name} = {place}\n")
    distribution("shapeless", "[mcompress.passes]\nshapeless = just words\n")
    distribution("nameless", "[mcompress.passes]\nnameless = stranger:Thing\n", metadata=False)
    distribution("first-of-two", "[mcompress.passes]\ntwice = stranger:Thing\n")
    distribution("second-of-two", "[mcompress.passes]\ntwice = raises:Thing\n")
    distribution("taker", "[mcompress.passes]\nprune = stranger:Thing\n")
    return folder


def path_of(*folders: Path) -> str:
    """Return a PYTHONPATH with these folders, and what it holds here."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def warnings(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("warning:")]


@pytest.fixture(scope="module")
def ran(lab: Any, site: Path, broken: Path, tiny_exported: Callable[..., Artifact]) -> tuple[Path, str]:
    """A run with the sample's pass, runtime and task, beside broken plug-ins; its folder and what it said."""
    recipe = lab.recipe("plugged", [{"palette": {"entries": 16}}], **PLUGGED, **lab.exported(tiny_exported("bert")))
    done = lab.command("run", recipe, "--out", lab.root / "plugged-out", PYTHONPATH=path_of(site, broken))
    assert done.returncode == 0, done.stderr
    return lab.root / "plugged-out", done.stderr


def test_the_sample_is_listed_with_its_origin(lab: Any, site: Path) -> None:
    done = lab.command("ls", "--json", PYTHONPATH=path_of(site))
    assert (done.returncode, done.stderr) == (0, "")
    lists = json.loads(done.stdout)
    for thing, (name, origin) in ORIGINS.items():
        assert lists[thing][name] == origin
    assert lists["passes"]["prune"] == "compress.passes.prune:Prune"


def test_a_run_uses_all_three(ran: tuple[Path, str]) -> None:
    out, _ = ran
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["environment"]["packages"]["mcompress-sample"] == "0.1.0"
    assert report["subject"]["task"] == "ordinal-classification"
    rows = {(row["step"], row["target"]): row for row in report["rows"]}
    for step in ("model", "palette"):
        times, oracle = rows[step, "ort-cpu-1t"], rows[step, "onnx-reference"]
        assert times["status"] == oracle["status"] == "ok"
        assert (oracle["accuracy"]["metric"], oracle["accuracy"]["direction"]) == ("mae", "lower")
        assert times["accuracy"]["value"] == oracle["accuracy"]["value"]
    artifact = open_artifact(out / "deliverables" / "palette")
    assert artifact.traits == {"palette"}
    assert artifact.manifest.versions["mcompress-sample"] == "0.1.0"
    assert artifact.manifest.task["name"] == "ordinal-classification"
    for page in ("report.md", "report.html", "deliverables/palette/README.md"):
        assert "palette" in (out / page).read_text(encoding="utf-8")


def test_a_pytorch_model_is_taken_in_for_its_task(lab: Any, site: Path) -> None:
    steps = [{"distill": {"teacher": "model"}}, {"export": {}}, {"palette": {}}]
    done = lab.command("validate", lab.recipe("checked", steps, **PLUGGED), PYTHONPATH=path_of(site))
    assert (done.returncode, done.stdout[:31]) == (0, "checked: 3 steps; 48 train, 24 "), done.stderr


def test_an_artifact_of_the_plugin_is_opened_again(ran: tuple[Path, str], site: Path) -> None:
    """The task is found by its name in artifact.json; golden outputs are those of another runtime."""
    code = "import compress, sys; print(compress.load(sys.argv[1], runtime='onnx-reference')('a film')['label'])"
    command = [sys.executable, "-c", code, str(ran[0] / "deliverables" / "palette")]
    environment = os.environ | {"PYTHONPATH": path_of(site)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() in LABELS, done.stderr


def test_its_export_needs_no_plugin(ran: tuple[Path, str], lab: Any, tmp_path: Path) -> None:
    assert lab.command("export", f"{ran[0]}:palette", tmp_path / "shipped").returncode == 0
    done = lab.command("verify", tmp_path / "shipped")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pipeline_tag" not in (tmp_path / "shipped" / "README.md").read_text(encoding="utf-8")


def test_what_is_broken_is_said_once_in_a_run_and_its_children(ran: tuple[Path, str], broken: Path) -> None:
    said = warnings(ran[1])
    assert len(said) == len(SEEN_AT_ONCE)
    assert all(any(cause in line for line in said) for cause in SEEN_AT_ONCE.values())
    assert list(broken.glob("*.imported")) == [], "nothing is imported that nobody asked for"


def test_lists_say_what_is_broken_once_and_show_the_rest(lab: Any, site: Path, broken: Path) -> None:
    done = lab.command("ls", "--json", PYTHONPATH=path_of(site, broken))
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    lists, said = json.loads(done.stdout), warnings(done.stderr)
    assert len(said) == len(FAULTS) + len(SEEN_AT_ONCE)
    for (group, name), cause in (FAULTS | SEEN_AT_ONCE).items():
        (line,) = (line for line in said if f"{KINDS[group]} {name!r}" in line)
        assert cause in line
        assert "; fix: " in line
        assert name == "prune" or name not in lists[group]
    for name in {*FAULTS}:
        assert any(
            f"value: broken-{name[1]} 1.0 (" in line and f"`pip uninstall broken-{name[1]}`" in line for line in said
        )
    assert lists["passes"]["prune"] == "compress.passes.prune:Prune"
    assert lists["passes"]["chatty"] == "broken-chatty 1.0 (chatty:Thing)"
    for thing, (name, origin) in ORIGINS.items():
        assert lists[thing][name] == origin


def test_other_verbs_are_as_before(lab: Any, broken: Path) -> None:
    recipe = lab.recipe("unplugged", [{"export": {}}])
    for words in (("plan", recipe, "--json"), ("plan", "absent"), ("--help",)):
        before, after = lab.command(*words), lab.command(*words, PYTHONPATH=path_of(broken))
        assert (after.returncode, after.stdout) == (before.returncode, before.stdout)
    assert after.stderr == "", "help reads no entry points"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"steps": [{"export": {}}, {"leaves": {}}]}, FAULTS["passes", "leaves"]),
        ({"steps": [{"export": {}}, {"twice": {}}]}, SEEN_AT_ONCE["passes", "twice"]),
        ({"task": "other"}, FAULTS["tasks", "other"]),
        ({"runtime": "half"}, FAULTS["runtimes", "half"]),
    ],
)
def test_a_broken_one_that_is_asked_for_is_an_error_with_its_cause(
    lab: Any, broken: Path, tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    if "runtime" in changes:
        target = tmp_path / "target.yaml"
        target.write_text(f"name: own\nruntime: {changes['runtime']}\n", encoding="utf-8")
        changes = {"measure": {**lab.measure, "targets": [str(target)]}}
    recipe = lab.recipe("asks", **{"steps": [{"export": {}}]} | changes)
    done = lab.command("validate", recipe, PYTHONPATH=path_of(broken))
    assert (done.returncode, done.stdout) == (3, "")
    error = done.stderr[done.stderr.index("error: ") :]
    assert cause in error
    assert "\n  fix:   " in error


def test_a_plugin_that_is_not_installed_is_named(lab: Any) -> None:
    done = lab.command("validate", lab.recipe("asks", [{"export": {}}], task="ordinal-classification"))
    assert done.returncode == 2
    assert "Unknown task 'ordinal-classification'" in done.stderr
    assert "If a plug-in brings it, install that first." in done.stderr


def test_the_version_of_a_plugin_is_part_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of any name and a task: another version of what brings either gives another key."""
    task, config = TextClassification(("a", "b")), ExportConfig()
    step: Any = SimpleNamespace(pass_=Export(), config=config)
    run = SimpleNamespace(seed=0, device="cpu", threads=1)
    state: Any = SimpleNamespace(recipe=SimpleNamespace(run=run), data={}, task=task)
    keys = [step_key(step, {}, state)]
    for registry, name in ((passes, "export"), (tasks, "text-classification")):
        for version in ("1.0", "1.1"):
            monkeypatch.setattr(registry, "versions", lambda asked, w=name, v=version: {"x": v} if asked == w else {})
            keys.append(step_key(step, {}, state))
        monkeypatch.undo()
    assert len(set(keys)) == 3, "the plug-in's version counts, whichever of the two it brings"
    assert step_key(step, {}, state) == keys[0]


def test_the_sample_keeps_the_contract(site: Path) -> None:
    """The suite that docs/plugins.md tells authors to run, and the sample's own tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", str(SAMPLE / "tests")]
    chosen = ["-k", "palette or onnx-reference or ordinal or test_sample"]
    environment = {"MCOMPRESS_EXAMPLES": "contract_examples", "PYTHONPATH": path_of(site, SAMPLE / "tests")}
    done = subprocess.run(
        [*command, *chosen], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout


def test_what_a_plugin_may_rely_on_is_there() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(compress[\w.]*)` \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) > 10
    promised = {module: set(re.findall(r"`(\w+)`", names)) - {"__all__"} for module, names in rows}
    number = ".".join(compress.__version__.split(".")[:2])
    assert f"mcompress~={number}.0" in page, "the version whose names these are"
    assert f"mcompress~={number}.0" in (SAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    missing = [(m, name) for m, names in promised.items() for name in names if not hasattr(import_module(m), name)]
    assert missing == []
    used: dict[str, set[str]] = {}
    for path in (SAMPLE / "src").rglob("*.py"):
        for module, names in re.findall(r"^from (compress[\w.]*) import (.+)$", path.read_text(), re.MULTILINE):
            used.setdefault(module, set()).update(names.split(", "))
    assert {m: names - promised[m] for m, names in used.items() if m != "compress.errors" and names - promised[m]} == {}
