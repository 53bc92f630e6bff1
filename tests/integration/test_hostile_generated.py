"""Generated input: recipes, overrides, targets, data, models and records near valid ones, by the public command.

Whatever comes in, a verb ends with an exit code of its own, says what is wrong in three parts, and leaves the store
as it was. `make test` runs the same cases every time; the slow test draws many more, and others each time.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import struct
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from compress.cli.app import app
from compress.errors import CompressError

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of what can drive a terminal or turn the writing around."""
COUNTS: Counter[str] = Counter()
"""kind and outcome -> cases, over the quick tests of this module."""


@dataclass
class Place:
    """Folders of the cases, and how to give one to the command."""

    root: Path
    model: Path
    artifact: Path
    command: Any = field(default_factory=lambda: typer.main.get_command(app))

    @property
    def home(self) -> Path:
        return self.root / "home"

    def store(self) -> dict[str, str]:
        files = (path for path in self.home.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def call(self, kind: str, *words: object, codes: tuple[int, ...] = (0, 2, 3)) -> Result:
        """Run the command; demand one of these exit codes, and what every refusal keeps."""
        before = self.store()
        result = CliRunner().invoke(self.command, [str(word) for word in words])
        case = (words, result.output, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), case
        assert result.exit_code in codes, case
        assert "Traceback" not in result.output, case
        assert "did not expect" not in result.output, case
        if result.exit_code:
            assert result.stdout == "", case
            assert "Usage:" in result.stderr or ("error: " in result.stderr and "\n  fix:   " in result.stderr), case
            assert not {unicodedata.category(c) for c in set(result.stderr) - set("\n\t\u200c\u200d")} & STEERING, case
        assert self.store() == before, case
        COUNTS[f"{kind}: exit {result.exit_code}"] += 1
        return result

    def try_(self, kind: str, use: Callable[[], object]) -> None:
        """Use a function of the package; demand that it works, or refuses as the command would."""
        before = self.store()
        try:
            use()
            outcome = "accepted"
        except CompressError as error:
            outcome = f"exit {error.exit_code}"
        assert self.store() == before
        COUNTS[f"{kind}: {outcome}"] += 1


@pytest.fixture(scope="module")
def place(lab, tiny_exported, tmp_path_factory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("generated")
    made = Place(root, root / "model", root / "artifact")
    shutil.copytree(lab.model, made.model)
    shutil.copytree(tiny_exported().path, made.artifact)
    (made.home / "entries" / "0" / "payload").mkdir(parents=True)
    (made.home / "entries" / "0" / "payload" / "file").write_text("finished work")
    (root / "data").mkdir()
    for name in ("train", "validation", "test"):
        rows = "".join(f"{name} text {i},{'ab'[i % 2]}\n" for i in range(12))
        (root / "data" / f"{name}.csv").write_text(f"text,label\n{rows}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MCOMPRESS_HOME", str(made.home))
        patch.setenv("COLUMNS", "80")
        patch.delenv("MCOMPRESS_DEBUG", raising=False)
        patch.setattr("datasets.load_dataset", _offline)
        patch.setattr("huggingface_hub.snapshot_download", _offline)
        yield made


def _offline(*_: object, **__: object) -> None:
    raise ConnectionError("offline")


FRESH: dict[str, Any] = {
    "recipe": 1,
    "name": "fresh",
    "task": "text-classification",
    "data": {
        **{name: f"data/{name}.csv" for name in ("train", "validation", "test")},
        "calibration": {"samples": 4},
        "columns": {"text": "text"},
        "on_overlap": "allow",
    },
    "run": {"device": "cpu", "threads": 1, "seed": 3},
    "gates": {"accuracy": {"max_drop_points": 1.0}},
    "steps": [
        {"finetune": {"init": {"vocab_size": 90, "layers": 1, "hidden": 16, "heads": 2, "intermediate": 24}}},
        {"export": {"opset": 18}, "id": "onnx"},
        {"quantize": {"method": "dynamic"}, "from": "onnx", "gates": {"accuracy": {"min": 0.1}}, "optional": True},
    ],
    "measure": {"targets": ["ort-cpu-1t"], "baselines": [], "inputs": 4, "rounds": 3},
}
"""A recipe that needs no model, so that `validate` costs no more than its data."""
FULL: dict[str, Any] = FRESH | {
    "model": "model",
    "labels": {"bad": "a", "fine": "b"},
    "max_length": 32,
    "steps": [
        {"prune": {"macs": 0.5, "samples": 8}},
        {"distill": {"teacher": "model", "epochs": 1}},
        {"export": {}},
        {"quantize": {"scheme": "int8", "target": "ort-cpu-1t"}},
        {"cast": {"dtype": "float16"}, "from": "export"},
    ],
}
TARGET = {"name": "mine", "runtime": "onnxruntime", "device": "cpu", "threads": 1, "memory_bytes": 10**9}

WORDS = """model data train text label path hub from fraction 0.5 1e400 .nan -.inf ${DATA} ${} $ ~ ~nobody/x / . .. ../x
/dev/null data/train.csv x.yaml cuda torch onnx export quantize finetune steps accuracy null 2001-99-99 0x_ 1:59 0o9
!!int !!python/object:os.system !!binary &a *a << {{ [[ - ? | > % @ ` ' " # , : ="""
INSERTS = [
    *(b"\0", b"\r", b"\r\n", b"\n", b'"', b'""', b",", b"\x1b[2J", b"<script>", b"\\ud800"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"[" * 2000, b'{"a":' * 2000, b"9" * 5000),
]
KEYS = "name run.seed run.threads finetune.epochs onnx.opset measure.inputs max_length data.seed"
PARTS = "finetune onnx quantize init layers accuracy min id from 0 x"
words = st.sampled_from(WORDS.split())
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**39]),
    st.floats(allow_nan=True, allow_infinity=True),
    words,
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.just("x" * 5000),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(words | st.text(st.characters(codec="utf-8"), max_size=6), inner, max_size=3),
    ),
    max_leaves=6,
)


def paths(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from paths(value, (*here, key))


@st.composite
def mutated(draw: st.DrawFn, base: Any) -> Any:
    """Draw a tree one to three changes away from a valid one."""
    tree = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        ways = sorted(paths(tree), key=repr)
        if not ways:
            break
        *way, key = draw(st.sampled_from(ways))
        parent = tree
        for step in way:
            parent = parent[step]
        change = draw(st.sampled_from(["value", "value", "delete", "rename", "extra", "twice"]))
        if change == "value":
            parent[key] = draw(values)
        elif change == "delete":
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, draw(values) if change == "extra" else copy.deepcopy(parent[key]))
        elif change == "rename":
            parent[draw(words | st.text(st.characters(codec="utf-8"), max_size=8))] = parent.pop(key)
        else:
            parent[draw(words)] = draw(values)
    return tree


@st.composite
def scribbled(draw: st.DrawFn, base: bytes) -> bytes:
    """Draw bytes with a few cut out, put in, doubled or turned into others."""
    data = bytearray(base)
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 40))
        change = draw(st.sampled_from(["cut", "put", "double", "flip", "end"]))
        if change == "cut":
            del data[at : at + size]
        elif change == "put":
            data[at:at] = draw(st.one_of(st.binary(max_size=8), words.map(str.encode), st.sampled_from(INSERTS)))
        elif change == "double":
            data[at:at] = data[at : at + size]
        elif change == "flip" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        else:
            del data[at:]
    return bytes(data)


def as_yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def check_recipe(place: Place, case: tuple[str, bytes]) -> None:
    verb, text = case
    (place.root / "recipe.yaml").write_bytes(text)
    place.call("recipes", verb, "recipe.yaml")


recipes = st.one_of(
    st.tuples(st.sampled_from(["plan", "validate"]), mutated(FRESH).map(as_yaml)),
    st.tuples(st.just("plan"), mutated(FULL).map(as_yaml)),
    st.tuples(st.just("plan"), scribbled(as_yaml(FULL))),
    st.tuples(st.just("validate"), scribbled(as_yaml(FRESH))),
)

override_keys = st.one_of(
    st.sampled_from(KEYS.split()),
    st.lists(st.sampled_from([*FRESH, *PARTS.split(), ""]), min_size=1, max_size=4).map(".".join),
)
overrides = st.lists(
    st.one_of(
        st.tuples(override_keys, values.map(lambda v: as_yaml(v).decode().removesuffix("...\n").strip())).map("=".join),
        st.tuples(override_keys, words | st.text(st.characters(codec="utf-8"), max_size=12)).map("=".join),
        st.text(st.characters(codec="utf-8"), max_size=12),
    ).filter(lambda text: "\0" not in text),
    min_size=1,
    max_size=3,
)


def check_override(place: Place, case: list[str]) -> None:
    (place.root / "fresh.yaml").write_bytes(as_yaml(FRESH))
    place.call("overrides", "plan", "fresh.yaml", *(word for text in case for word in ("--set", text)))


def check_target(place: Place, case: bytes) -> None:
    (place.root / "target.yaml").write_bytes(case)
    (place.root / "fresh.yaml").write_bytes(as_yaml(FRESH))
    place.call("targets", "plan", "fresh.yaml", "--set", "measure.targets=[target.yaml]")


targets = st.one_of(mutated(TARGET).map(as_yaml), scribbled(as_yaml(TARGET)))

CSV = "text,label\n" + "".join(f'"text, {i} ""quoted"" é",{i % 2}\n' for i in range(16))
JSONL = "".join(json.dumps({"text": f"text {i} é", "label": i % 2, "n": i}) + "\n" for i in range(16))


def check_data(place: Place, case: tuple[str, str, bytes]) -> None:
    problem, suffix, text = case
    (place.root / f"train{suffix}").write_bytes(text)
    data = {"train": f"train{suffix}", "validation": {"from": "train", "fraction": 0.25}, "on_overlap": "allow"}
    recipe = FRESH | {"problem": problem, "gates": {}, "data": data, "steps": [FRESH["steps"][0], {"export": {}}]}
    (place.root / "data.yaml").write_bytes(as_yaml(recipe))
    place.call("data files", "validate", "data.yaml")


def rows(problem: str) -> Any:
    csv, jsonl = scribbled(CSV.encode()), scribbled(JSONL.encode())
    row = st.dictionaries(st.sampled_from(["text", "label", "text_pair", "n"]), values, max_size=4)
    lines = st.lists(row | values, max_size=5).map(lambda found: "\n".join(map(json.dumps, found)).encode())
    parquet = st.binary(max_size=40).map(lambda found: b"PAR1" + found + b"PAR1")
    files = st.one_of(
        st.tuples(st.just(".csv"), csv),
        st.tuples(st.just(".tsv"), csv.map(lambda text: text.replace(b",", b"\t"))),
        st.tuples(st.just(".jsonl"), jsonl | lines),
    )
    files = st.one_of(files, files, files, st.tuples(st.just(".parquet"), parquet))
    return files.map(lambda file: (problem, *file))


data_files = st.one_of(rows("single_label"), rows("multi_label"), rows("regression"))


def check_config(place: Place, case: bytes) -> None:
    from compress.models.checkpoint import look_through

    folder = _copy(place, "config")
    (folder / "config.json").write_bytes(case)
    (place.root / "full.yaml").write_bytes(as_yaml(FULL | {"model": folder.name}))
    place.call("configs", "plan", "full.yaml")
    place.try_("configs", lambda: look_through(folder))


def check_weights(place: Place, case: bytes) -> None:
    from compress.models.checkpoint import look_through

    folder = _copy(place, "weights")
    (folder / "model.safetensors").write_bytes(case)
    place.try_("safetensors", lambda: look_through(folder))


def _copy(place: Place, name: str) -> Path:
    folder = place.root / f"model-{name}"
    if not folder.exists():
        shutil.copytree(place.model, folder)
    return folder


TENSORS = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
}


def with_header(tree: Any) -> bytes:
    text = json.dumps(tree).encode()
    return struct.pack("<Q", len(text)) + text + bytes(32)


weights = st.one_of(mutated(TENSORS).map(with_header), scribbled(with_header(TENSORS)))


def check_artifact(place: Place, case: bytes) -> None:
    import compress

    folder = place.root / "broken"
    if not folder.exists():
        shutil.copytree(place.artifact, folder)
    (folder / "artifact.json").write_bytes(case)
    words = ("bench", folder, "--data", "data/test.csv", "--targets", "torch-cpu-1t")
    place.call("artifacts", *words, codes=(0, 2, 3, 4))  # 4: bytes that are not those that were written
    place.try_("artifacts", lambda: compress.load(folder).close())


def check_report(place: Place, case: tuple[list[str], bytes]) -> None:
    (place.root / "before.json").write_bytes(EXAMPLE.read_bytes())
    (place.root / "after.json").write_bytes(case[1])
    words = ["after.json" if word == "AFTER" else word for word in case[0]]
    result = CliRunner().invoke(place.command, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), (
        words,
        result.output,
        result.exception,
    )
    assert result.exit_code in (0, 1, 2), (words, result.output)
    COUNTS[f"reports: exit {result.exit_code}"] += 1


def artifacts_near(path: Path) -> Any:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return st.one_of(mutated(manifest).map(lambda tree: json.dumps(tree).encode()), scribbled(path.read_bytes()))


report_words = st.sampled_from(
    [
        ["report", "AFTER", "--markdown"],
        ["compare", "before.json", "AFTER"],
        ["compare", "AFTER", "before.json", "--markdown"],
    ]
)
KINDS: dict[str, tuple[Callable[[Place], Any], Callable[[Place, Any], None], int]] = {
    "recipes": (lambda _: recipes, check_recipe, 400),
    "overrides": (lambda _: overrides, check_override, 250),
    "targets": (lambda _: targets, check_target, 150),
    "data": (lambda _: data_files, check_data, 350),
    "configs": (lambda p: artifacts_near(p.model / "config.json"), check_config, 100),
    "weights": (lambda _: weights, check_weights, 150),
    "artifacts": (lambda p: artifacts_near(p.artifact / "artifact.json"), check_artifact, 80),
    "reports": (lambda _: st.tuples(report_words, artifacts_near(EXAMPLE)), check_report, 60),
}
"""kind -> strategy of its cases, what is demanded of one, and how many `make test` draws."""


def draw_cases(kind: str, place: Place, *, times: int = 1) -> None:
    strategy, check, count = KINDS[kind]

    @settings(
        max_examples=count * times,
        phases=[Phase.generate],
        derandomize=times == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy(place))
    def cases(case: Any) -> None:
        check(place, case)

    cases()


@pytest.mark.parametrize("kind", KINDS)
def test_generated_cases_are_accepted_or_refused(place: Place, kind: str) -> None:
    draw_cases(kind, place)


def test_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """At least 1,000 cases; the numbers are printed, whether output is captured or not."""
    if len({key.partition(":")[0] for key in COUNTS}) < len(KINDS):
        pytest.skip("only some of the cases ran")
    with capsys.disabled():
        print("\ngenerated cases:", ", ".join(f"{key} {COUNTS[key]}" for key in sorted(COUNTS)))
        print(f"{sum(COUNTS.values())} in all; no traceback, no other exit code, the store as it was")
    assert sum(COUNTS.values()) >= 1000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_many_more_cases_and_other_ones_each_time(place: Place, kind: str) -> None:
    draw_cases(kind, place, times=20)
