"""export, quantize, cast and build as a recipe runs them, on a tiny encoder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from compress.artifact import Artifact, PassRecord, create_artifact, open_artifact
from compress.data.splits import Split, TaskData
from compress.errors import DataError, ModelError, RecipeError
from compress.export.onnx_clean import find_paths
from compress.export.trt_api import missing_trt
from compress.models.golden import golden_torch
from compress.models.signature import torch_graph
from compress.passes.base import Context, ModelInfo, passes
from compress.passes.quantize import Quantize, QuantizeConfig, reduced_range
from compress.store import Store
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
ROWS = [{"text": text, "text_pair": None, "label": "fine"} for text in GOLDEN_TEXTS]
SPLITS = {name: Split(name, ROWS, "0" * 64, "built in") for name in ("train", "calibration")}


@pytest.fixture
def torch_artifact(tiny_classifier: Callable[..., Path], tmp_path: Path) -> Artifact:
    folder = tiny_classifier("bert", True)
    return create_artifact(
        folder,
        kind="torch",
        task=TASK.dump(),
        traits=("pruned",),
        graphs={"model": torch_graph(folder, TASK)},
        parameters=1234,
        macs=5678,
        golden=golden_torch(folder, TASK),
        made_by=PassRecord(name="test", version=1, config={}),
    )


@pytest.fixture
def apply(tmp_path: Path) -> Callable[..., Artifact]:
    """Return ``apply(name, artifact, **config)``: run a pass in a folder of its own."""
    count = 0

    def run(name: str, artifact: Artifact, data: TaskData | None = None, **config: Any) -> Artifact:
        nonlocal count
        count += 1
        folders = {part: tmp_path / str(count) / part for part in ("out", "scratch", "checkpoint", "store")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        store = Store(folders.pop("store"))
        context = Context(**folders, task=TASK, data=data or TaskData(SPLITS, TASK.labels), store=store, seed=1)
        step = passes.get(name)()
        info = ModelInfo(artifact.kind, artifact.traits, parameters=artifact.manifest.parameters)
        parsed = step.Config.model_validate(config)
        planned = step.plan({"model": info}, parsed).result
        made = step.apply({"model": artifact}, parsed, context)
        assert (planned.kind, planned.traits) == (made.kind, made.traits)
        return made

    return run


def golden_gap(first: Artifact, second: Artifact) -> float:
    """Largest difference of the golden logits, relative to the largest logit."""
    assert first.manifest.golden is not None
    assert second.manifest.golden is not None
    assert first.manifest.golden.inputs == second.manifest.golden.inputs
    a, b = (np.array(artifact.manifest.golden.outputs["logits"]) for artifact in (first, second))
    return float(np.abs(a - b).max() / np.abs(a).max())


def test_chain_keeps_outputs_signature_and_provenance(torch_artifact: Artifact, apply: Callable[..., Artifact]) -> None:
    exported = apply("export", torch_artifact)
    variants = {
        "dynamic": apply("quantize", exported, reduce_range=True),
        "static": apply("quantize", exported, method="static", exclude=("classifier/*",)),
        "fp16": apply("cast", exported, keep_float32=("Softmax",)),
        "int8-weights": apply("quantize", exported, scheme="int8-weights"),
        "int4-weights": apply("quantize", exported, scheme="int4-weights", block_size=16, embedding_bits=8),
    }
    limits = {"dynamic": 0.15, "static": 0.15, "fp16": 0.01, "int8-weights": 0.05, "int4-weights": 0.5}
    assert golden_gap(torch_artifact, exported) < 1e-5
    assert exported.traits == {"pruned"}
    properties = {entry.key: entry.value for entry in onnx.load(exported.file()).metadata_props}
    assert properties == {"labels": '["bad", "fine", "good"]', "max_length": "32", "task": "text-classification"}
    for name, made in variants.items():
        assert golden_gap(exported, made) < limits[name], name
        assert made.manifest.graphs == exported.manifest.graphs
        assert made.manifest.parents == {"model": exported.digest}
        assert (made.manifest.parameters, made.manifest.macs) == (1234, 5678)
        assert made.size_bytes < exported.size_bytes
        assert find_paths(onnx.load(made.file())) == []
        assert open_artifact(made.path).digest == made.digest
        assert "config.json" in made.manifest.files
        assert "structure.json" not in made.manifest.files
    assert variants["dynamic"].traits == {"pruned", "int8"}
    assert variants["dynamic"].manifest.notes["reduce_range_reason"] == "asked for"
    assert variants["static"].manifest.notes["calibration_used"] == len(ROWS)
    assert variants["static"].manifest.notes["nodes_left"] == {"Gemm": 1}
    assert variants["int8-weights"].traits == {"pruned", "int8"}
    assert variants["int4-weights"].traits == {"pruned", "int4"}
    assert variants["int4-weights"].size_bytes < variants["int8-weights"].size_bytes
    assert variants["int4-weights"].manifest.notes["block_sizes"] == {"16": 5}
    assert "both factors are computed at run time" in {
        entry["reason"] for entry in variants["int4-weights"].manifest.notes["float"]
    }
    assert variants["fp16"].manifest.notes["kept_float32"] == {"asked for": 2}
    measured = variants["fp16"].manifest.notes["calibration"]
    assert (measured["examples"], measured["headroom"]) == (len(ROWS), 4.0)
    assert 1 < measured["largest_value"]["value"] < 16376
    assert variants["fp16"].manifest.data == {"calibration": "0" * 64}
    again = apply("quantize", exported, reduce_range=True)
    assert again.digest == variants["dynamic"].digest


def test_cast_without_examples_looks_at_weights_only_and_says_so(
    torch_artifact: Artifact, apply: Callable[..., Artifact]
) -> None:
    exported = apply("export", torch_artifact)
    bare = apply("cast", exported, data=TaskData({}, TASK.labels))
    assert bare.manifest.notes["calibration"].startswith("there are no calibration examples: only weights")
    asked = apply("cast", exported, calibrate=False)
    assert asked.manifest.notes["calibration"].startswith("the recipe says `calibrate: false`")
    assert asked.digest == bare.digest == apply("cast", exported).digest


def test_bf16_is_judged_by_its_emulation(torch_artifact: Artifact, apply: Callable[..., Artifact]) -> None:
    exported = apply("export", torch_artifact)
    made = apply("cast", exported, dtype="bfloat16")
    assert made.traits == {"pruned", "bf16"}
    assert "rounded to BF16" in made.manifest.notes["golden"]
    assert 0 < golden_gap(exported, made) < 0.05
    assert made.size_bytes < 0.75 * exported.size_bytes


def test_integers_of_the_cpu_are_refused_and_pairs_are_cast(
    torch_artifact: Artifact, apply: Callable[..., Artifact]
) -> None:
    exported = apply("export", torch_artifact)
    with pytest.raises(ModelError, match="no 16-bit form"):
        apply("cast", apply("quantize", exported))
    pairs = apply("quantize", exported, method="static", activation="int8")
    made = apply("cast", pairs)
    assert made.traits == {"pruned", "int8", "fp16"}
    assert golden_gap(pairs, made) < 0.05


def test_range_of_weights_follows_the_target_and_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.quantization.isa.isa_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert reduced_range(QuantizeConfig())[0]
    assert reduced_range(QuantizeConfig(reduce_range=False)) == (False, "asked for")
    assert not reduced_range(QuantizeConfig(target="torch-cuda"))[0]
    with pytest.raises(RecipeError, match="Unknown target"):
        Quantize().plan({"model": ModelInfo("onnx")}, QuantizeConfig(target="ort-cup"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scheme": "int4-weights", "method": "static"}, "`method` does not apply to `scheme: int4-weights`"),
        ({"scheme": "int8-weights", "reduce_range": True}, "`reduce_range` does not apply.*use `scheme: int8`"),
        ({"block_size": 32}, "`block_size` does not apply to `scheme: int8`.*int4-weights"),
        ({"embedding_bits": 8}, "`embedding_bits` does not apply"),
        ({"scheme": "int4-weights", "embedding_bits": 8, "embeddings": False}, "does not apply to `embeddings: false`"),
        ({"scheme": "int4-weights", "block_size": 48}, "block_size"),
    ],
)
def test_a_field_of_another_scheme_is_an_error(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuantizeConfig.model_validate(config)


def test_weights_only_is_planned_and_keyed_by_what_it_does() -> None:
    config = QuantizeConfig(scheme="int4-weights", embedding_bits=8)
    plan = Quantize().plan({"model": ModelInfo("onnx", frozenset({"pruned"}))}, config)
    assert plan.summary == "weights only: 4-bit linears, 8-bit embeddings, blocks of 128"
    assert plan.result.traits == {"pruned", "int4"}
    assert Quantize().settle(config) == {"block_size": 128}
    assert Quantize().settle(QuantizeConfig(scheme="int8-weights", block_size=16)) == {"block_size": 16}
    bare = QuantizeConfig(scheme="int8-weights", embeddings=False)
    summary = Quantize().plan({"model": ModelInfo("onnx")}, bare).summary
    assert summary == "weights only: 8-bit linears, float32 embeddings, blocks of 128"


def test_static_without_calibration_data_says_what_to_give(
    tiny_exported: Callable[..., Artifact], apply: Callable[..., Artifact]
) -> None:
    exported = tiny_exported("bert", True)
    with pytest.raises(DataError, match="calibration"):
        apply("quantize", exported, TaskData({"train": SPLITS["train"]}, TASK.labels), method="static")


@pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
def test_engine_artifact_holds_engine_sidecar_and_source(
    tiny_exported: Callable[..., Artifact], apply: Callable[..., Artifact]
) -> None:
    exported = tiny_exported("bert", True)
    built = apply("build", exported, max_batch=4)
    assert set(built.manifest.files) == {"model.engine", "model.engine.json", *exported.manifest.files}
    assert built.file().name == "model.engine"
    assert built.manifest.graphs["model"].inputs == exported.manifest.graphs["model"].inputs
    assert built.manifest.data == {"train": "0" * 64}
    sidecar = json.loads((built.path / "model.engine.json").read_text())
    assert sidecar["onnx_sha256"] == exported.manifest.files["model.onnx"].sha256
    assert sidecar["plan_sha256"] == built.manifest.files["model.engine"].sha256
    assert "build_seconds" not in sidecar
    assert str(built.path.parent) not in built.path.joinpath("artifact.json").read_text()


def test_same_model_gives_the_same_bytes_in_another_process(
    tiny_classifier: Callable[..., Path], tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from compress.export.onnx_export import export_onnx\n"
        "from compress.models.loading import load_torch\n"
        "from compress.tasks.text_classification import TextClassification\n"
        "task = TextClassification(('bad', 'fine', 'good'), max_length=32)\n"
        "export_onnx(load_torch(Path(sys.argv[1]), task), Path(sys.argv[2]))\n"
    )
    out = tmp_path / "again.onnx"
    subprocess.run([sys.executable, "-c", script, tiny_classifier(), out], check=True, env={"PYTHONHASHSEED": "7"})
    assert out.read_bytes() == tiny_exported().file().read_bytes()
