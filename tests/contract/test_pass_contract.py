"""What every registered pass promises. A new pass needs one line in ``EXAMPLES`` and no other change here."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

import compress
from compress.artifact import Artifact, Kind, open_artifact
from compress.data.splits import TaskData
from compress.errors import RecipeError
from compress.passes.base import ModelInfo, library_versions, passes
from compress.pipeline import planning
from compress.recipe import parse_recipe
from compress.runtimes.base import RUNTIME_OF, runtimes
from compress.runtimes.target import Target

HEAVY = ("datasets", "nncf", "onnx", "onnxruntime", "openvino", "tensorrt", "torch", "transformers")
KINDS = frozenset(get_args(Kind))


@dataclass(frozen=True)
class Example:
    """A config that works on the tiny classifier in about a second, and the kind of artifact it starts from."""

    config: dict[str, Any] = field(default_factory=dict)
    model: str | None = "torch"
    others: tuple[str, ...] = ()
    """Roles besides ``model``; each gets the tiny classifier in torch form."""


TINY = {"vocab_size": 60, "layers": 1, "hidden": 16, "heads": 2, "intermediate": 16}
EXAMPLES: dict[str, tuple[Example, ...]] = {
    "build": (Example({}, "onnx"),),
    "cast": (
        Example({}, "onnx"),
        Example({"keep_float32": ["Softmax"], "calibrate": False}, "onnx"),
        Example({"dtype": "bfloat16"}, "onnx"),
    ),
    "distill": (Example({"teacher": "model", "epochs": 1, "student": {"layers": 1}}, others=("teacher",)),),
    "export": (Example(),),
    "factorize": (Example({"embeddings": 8, "linears": 0.5, "samples": 8}), Example({"max_error": 0.1, "samples": 8})),
    "finetune": (Example({"epochs": 1, "batch_size": 8}), Example({"epochs": 1, "init": TINY}, None)),
    "prune": (
        Example({"macs": 0.5, "samples": 8, "round_to": 8, "min_neurons": 8}),
        Example({"layers": 1, "samples": 8}),
    ),
    "qat": (Example({"epochs": 1, "batch_size": 8}, others=("teacher",)),),
    "quantize": (
        Example({}, "onnx"),
        Example({"method": "static"}, "onnx"),
        Example({"target": "tensorrt"}, "onnx"),
        Example({"scheme": "int4-weights"}, "onnx"),
        Example({"scheme": "int8-weights", "block_size": 32}, "onnx"),
    ),
    "sparsify": (Example(), Example({"by": "inputs", "exclude": ["*.layer.0.*"]})),
    "trim": (Example({"margin": 3}), Example({"vocabulary": "all"})),
}
RUNS = [(name, i) for name in passes for i in range(len(EXAMPLES.get(name, ())))]


@dataclass
class Applied:
    """One example, applied twice: what went in and what came out."""

    example: Example
    inputs: dict[str, Artifact]
    made: Artifact
    again: Artifact


Apply = Callable[[str, int], Applied]


@pytest.fixture(scope="session")
def apply(bench: Any, artifact_of: Callable[[str], Artifact | None]) -> Apply:
    """Return ``apply(name, number)``: an example of a pass, applied twice; made when first asked for."""
    done: dict[tuple[str, int], Applied] = {}

    def run(name: str, number: int) -> Applied:
        if (name, number) not in done:
            done[name, number] = _apply(bench, artifact_of, name, EXAMPLES[name][number])
        return done[name, number]

    return run


def _apply(bench: Any, artifact_of: Callable[[str], Artifact | None], name: str, example: Example) -> Applied:
    inputs = {}
    for role, kind in [("model", example.model), *((role, "torch") for role in example.others)]:
        if kind is not None:
            artifact = artifact_of(kind)
            if artifact is None:
                pytest.skip(f"no {kind} artifact can be made here")
            inputs[role] = artifact
    pass_ = passes.get(name)()
    infos = {role: ModelInfo(artifact.kind, artifact.traits) for role, artifact in inputs.items()}
    plan = pass_.plan(infos, pass_.Config.model_validate(example.config))
    if plan.missing:
        pytest.skip("; ".join(plan.missing))
    made, again = (bench.apply(name, inputs, example.config, attempt=attempt) for attempt in (1, 2))
    return Applied(example, inputs, made, again)


@pytest.fixture(params=list(passes))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=RUNS, ids=[f"{name}-{number}" for name, number in RUNS])
def applied(request: pytest.FixtureRequest, apply: Apply) -> Applied:
    return apply(*request.param)


def recipe(tmp_path: Path, *steps: dict[str, Any]) -> Any:
    """Return a recipe whose model is a folder with a config and no weights."""
    shape = {"model_type": "bert", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64, "type_vocab_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    raw = {"recipe": 1, "model": str(tmp_path), "data": {"train": "a.csv"}, "steps": list(steps)}
    return parse_recipe(json.dumps(raw))


def fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, field) of a config and of the configs inside it."""
    for key, info in model.model_fields.items():
        yield f"{model.__name__}.{key}", info
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind)


def test_pass_has_an_example(name: str) -> None:
    assert EXAMPLES.get(name), (
        f"The pass {name!r} is registered but has no example. Add EXAMPLES[{name!r}] = (Example({{...config...}}, "
        "'torch' or 'onnx'),) in tests/contract/test_pass_contract.py and this suite covers it."
    )


def test_declarations_make_sense(name: str) -> None:
    pass_ = passes.get(name)
    assert pass_.name == name
    assert pass_.version >= 1
    assert pass_.consumes <= KINDS
    assert pass_.produces in KINDS
    assert pass_.roles[0] == "model"
    assert set(pass_.roles[1:]) <= set(pass_.Config.model_fields), "a role other than model is a field of the config"
    assert not pass_.requires & pass_.forbids
    assert not pass_.adds & pass_.removes
    assert set(pass_.uses) <= {"train", "validation", "calibration", "transfer"}, "no pass reads test"
    assert pass_.preserves in {"exact", "close", "task"}
    assert "absent" not in library_versions(pass_.libraries).values() or name == "build"
    assert pass_.__doc__
    assert pass_.Config.__doc__


def test_config_round_trips_is_frozen_and_described(name: str) -> None:
    pass_ = passes.get(name)
    for example in EXAMPLES.get(name, ()):
        config = pass_.Config.model_validate(example.config)
        assert pass_.Config.model_validate_json(config.model_dump_json()) == config
        key = next(iter(pass_.Config.model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, key, getattr(config, key))
    assert [key for key, info in fields(pass_.Config) if not info.description] == []


def test_unknown_key_is_refused_with_a_suggestion(name: str, tmp_path: Path) -> None:
    key = next(iter(passes.get(name).Config.model_fields))
    with pytest.raises(RecipeError) as caught:
        planning.make_plan(recipe(tmp_path, {name: {f"{key}x": 1}}))
    assert caught.value.what == f"Unknown key '{key}x'."
    assert caught.value.value == f"step 1 {name!r}: {key}x"
    assert f"Did you mean {key!r}" in caught.value.fix


def test_wrong_input_is_refused_before_any_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pass_ = passes.get(name)
    example = next((e for e in EXAMPLES.get(name, ()) if e.model), None)
    if example is None or example.model is None:
        pytest.skip("the pass starts a recipe and takes no model")
    right = ModelInfo(example.model, pass_.requires)
    wrong = [(ModelInfo(kind, pass_.requires), "needs a") for kind in sorted(KINDS - pass_.consumes)]
    wrong += [
        (ModelInfo(example.model, right.traits | {trait}), "already|must know the parts")
        for trait in sorted(pass_.forbids)
    ]
    wrong += [(ModelInfo(example.model, right.traits - {trait}), "needs a model") for trait in sorted(pass_.requires)]
    asked = recipe(tmp_path, {name: example.config})
    monkeypatch.setattr(pass_, "apply", lambda *_: pytest.fail("a plan applies nothing"))
    for model, words in wrong:
        monkeypatch.setattr(planning, "read_source", lambda _, model=model: model)
        with pytest.raises(RecipeError, match=words) as caught:
            planning.make_plan(asked)
        assert caught.value.fix


def test_planning_loads_no_library_and_reads_no_weights(tmp_path: Path) -> None:
    bridge = {"onnx": [{"export": {}, "id": "bridge"}]}
    steps = [[*bridge.get(e.model or "", []), {name: e.config}] for name in passes for e in EXAMPLES.get(name, ())]
    texts = [recipe(tmp_path, *chain).to_yaml() for chain in steps]
    code = (
        "import json, sys\n"
        "from compress.errors import MissingCapabilityError\n"
        "from compress.pipeline.planning import make_plan\n"
        "from compress.recipe import parse_recipe\n"
        "for text in json.load(sys.stdin):\n"
        "    try:\n"
        "        make_plan(parse_recipe(text))\n"
        "    except MissingCapabilityError:\n"
        "        pass\n"
        f"print(sorted(set(sys.modules) & set({HEAVY!r})))\n"
    )
    asked = json.dumps(texts)
    done = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_inputs_stay_as_they_were(applied: Applied) -> None:
    for artifact in applied.inputs.values():
        files = {
            path.relative_to(artifact.path).as_posix(): path for path in artifact.path.rglob("*") if path.is_file()
        }
        found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        del found["artifact.json"]
        assert found == {name: record.sha256 for name, record in artifact.manifest.files.items()}
        assert open_artifact(artifact.path).manifest.model_dump(mode="json") == artifact.manifest.model_dump(
            mode="json"
        )


def test_output_is_a_whole_artifact_that_names_no_place(applied: Applied) -> None:
    opened = open_artifact(applied.made.path, verify=True)
    assert opened.manifest.model_dump(mode="json") == applied.made.manifest.model_dump(mode="json")
    assert opened.manifest.task["name"]
    assert opened.manifest.graphs["model"].file in opened.manifest.files
    assert {"config.json", "tokenizer.json"} <= set(opened.manifest.files)
    place = str(applied.made.path.parents[1]).encode()
    assert [path.name for path in opened.path.iterdir() if place in path.read_bytes()] == []


def test_kind_and_traits_are_those_declared_and_planned(applied: Applied) -> None:
    record = applied.made.manifest.made_by
    pass_ = passes.get(record.name)()
    infos = {role: ModelInfo(artifact.kind, artifact.traits) for role, artifact in applied.inputs.items()}
    config = pass_.Config.model_validate(applied.example.config)
    planned = pass_.plan(infos, config).result
    before = applied.inputs["model"].traits if "model" in applied.inputs else frozenset()
    assert applied.made.kind == planned.kind == pass_.produces
    assert pass_.added(config) <= pass_.adds
    assert applied.made.traits == planned.traits == (before | pass_.added(config)) - pass_.removes


def test_manifest_records_where_it_comes_from(applied: Applied, data: TaskData) -> None:
    manifest = applied.made.manifest
    pass_ = passes.get(manifest.made_by.name)()
    config = pass_.Config.model_validate(applied.example.config)
    assert manifest.parents == {role: artifact.digest for role, artifact in applied.inputs.items()}
    assert (manifest.made_by.version, manifest.made_by.config) == (pass_.version, config.model_dump(mode="json"))
    assert manifest.versions == library_versions(pass_.libraries)
    assert manifest.seed == 3
    assert manifest.data == {name: data[name].digest for name in pass_.reads(config) if name in data}
    assert set(pass_.reads(config)) <= set(pass_.uses)


def test_same_seed_gives_the_same_bytes(applied: Applied) -> None:
    first, second = ({**artifact.manifest.files} for artifact in (applied.made, applied.again))
    assert first.keys() == second.keys()
    if applied.made.kind == "tensorrt":  # TensorRT times kernels while it builds: an engine is never quite the same
        first, second = ({n: r for n, r in files.items() if ".engine" not in n} for files in (first, second))
    else:
        assert applied.again.digest == applied.made.digest
    assert first == second
    assert applied.again.manifest.golden == applied.made.manifest.golden


CODE = """
import json, sys
import compress
from compress.errors import MissingCapabilityError
answers = []
for folder in sys.argv[2:]:
    try:
        with compress.load(folder, threads=1) as predictor:
            answers.append(predictor.logits(json.loads(sys.argv[1])).tolist())
    except MissingCapabilityError as error:
        answers.append(f"{error.value} | {error.fix}")
print(json.dumps(answers))
"""
TEXTS = ["the film was great , not dull", "cancel my order please ."]


@pytest.fixture(scope="session")
def reopened(apply: Apply) -> dict[str, Any]:
    """Artifact digest -> what ``compress.load`` answered in a new process: logits, or why it cannot run here."""
    made = {}
    for name, number in RUNS:
        try:
            artifact = apply(name, number).made
        except pytest.skip.Exception:
            continue
        made[artifact.digest] = str(artifact.path)
    command = [sys.executable, "-c", CODE, json.dumps(TEXTS), *made.values()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(made, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_a_new_process_loads_it_and_gets_equal_outputs(applied: Applied, reopened: dict[str, Any]) -> None:
    artifact = applied.made
    answer = reopened[artifact.digest]
    device = "cuda" if artifact.kind == "tensorrt" else "cpu"
    target = Target(name="x", runtime=RUNTIME_OF[artifact.kind], device=device)
    if not runtimes.get(target.runtime)().takes(artifact, target).ok:
        reason, _, fix = answer.partition(" | ")
        assert reason
        assert fix
        return
    if artifact.kind != "tensorrt":
        assert artifact.manifest.golden is not None, "an artifact that runs on any machine carries golden outputs"
    with compress.load(artifact.path, threads=1) as predictor:
        assert np.isfinite(answer).all()
        np.testing.assert_allclose(predictor.logits(TEXTS), answer, rtol=1e-5, atol=1e-5)
