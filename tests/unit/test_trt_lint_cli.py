"""``mcompress check``: what it prints, its exit codes, and which things it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from compress.artifact import Artifact
from compress.cli.app import app


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, words)])


@pytest.fixture
def model(tmp_path: Path) -> Callable[[int], Path]:
    """Return ``write(zero)``: a model of 12 quantizing pairs with this zero point, and an operator that is unknown."""

    def write(zero: int) -> Path:
        nodes, last = [], "x"
        for i in range(12):
            tail = [f"t{i}", "s", "z"]
            nodes.append(helper.make_node("QuantizeLinear", [last, "s", "z"], [tail[0]], name=f"layer.{i}/quantize"))
            nodes.append(helper.make_node("DequantizeLinear", tail, [f"o{i}"], name=f"layer.{i}/dequantize"))
            last = f"o{i}"
        if zero:
            nodes.append(helper.make_node("Unheard", [last], ["odd"], name="odd_one"))
            last = "odd"
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in ("x", last))
        weights = [
            numpy_helper.from_array(np.float32(0.1), "s"),
            numpy_helper.from_array(np.uint8(zero), "z"),
        ]
        made = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), ir_version=10)
        onnx.save(made, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return write


def test_findings_are_grouped_folded_and_fit_80_columns(
    model: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model(128)
    monkeypatch.chdir(file.parent)
    done = call("model.onnx", "--target", "tensorrt")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "model.onnx: tensorrt refuses this model; 25 errors"
    start = lines.index("error: zero-point (24 times)")
    assert lines[start + 1] == "  the zero point is 128, not 0"
    assert [line.strip() for line in lines[start + 2 : start + 5]] == [
        "layer.0/quantize",
        "layer.0/dequantize",
        "layer.1/quantize",
    ]
    assert lines[start + 5].strip() == "and 21 more"
    assert lines[start + 6].startswith("  fix: Quantize symmetrically")


def test_no_error_is_exit_code_0(model: Callable[[int], Path]) -> None:
    done = call(model(0), "--target", "tensorrt")
    assert done.exit_code == 0
    assert "takes this model; 12 warnings" in done.stdout


@pytest.mark.parametrize("zero", [0, 128])
def test_json_is_one_line_with_everything(zero: int, model: Callable[[int], Path]) -> None:
    done = call(model(zero), "--target", "tensorrt", "--json")
    assert done.exit_code == (1 if zero else 0)
    (line,) = done.stdout.splitlines()
    record = json.loads(line)
    assert record["target"] == "tensorrt"
    assert record["ok"] is not bool(zero)
    assert record["counts"] == {"error": 25 if zero else 0, "warning": 0 if zero else 12, "info": 0}
    assert set(record["findings"][0]) == {"rule", "severity", "node", "reason", "fix"}
    assert len(record["findings"]) == sum(record["counts"].values())


def test_an_artifact_is_taken(tiny_exported: Callable[..., Artifact]) -> None:
    done = call(tiny_exported().path, "--target", "tensorrt")
    assert done.exit_code == 0
    assert "nothing to say" in done.stdout


def test_a_run_is_taken_with_a_step_or_if_it_made_one_onnx_artifact(
    tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    from compress.pipeline.folder import DELIVERABLES, RunRecord, StepRecord, deliver, save

    run, done = tmp_path / "run", StepRecord(status="done", delivered=True)
    deliver(tiny_exported(), run / DELIVERABLES / "export")
    save(run, RunRecord(name="run", recipe_digest="0", steps={"export": done, "late": StepRecord(status="skipped")}))
    for source in (run, f"{run}:export"):
        assert call(source, "--target", "tensorrt").exit_code == 0
    assert "no step 'exprot'" in call(f"{run}:exprot", "--target", "tensorrt").stderr
    deliver(tiny_exported(), run / DELIVERABLES / "again")
    save(run, RunRecord(name="run", recipe_digest="0", steps={"export": done, "again": done}))
    several = call(run, "--target", "tensorrt")
    assert several.exit_code == 2
    assert "RUN:STEP: export, again" in several.stderr


def test_mistakes_are_exit_code_2(model: Callable[[int], Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model", encoding="utf-8")
    for words, phrase in (
        ((tmp_path / "nothing.onnx", "--target", "tensorrt"), "does not exist"),
        ((model(0), "--target", "openvino"), "no check for the target"),
        ((tmp_path / "text.onnx", "--target", "tensorrt"), "not an ONNX model"),
        ((tmp_path, "--target", "tensorrt"), "not an mcompress artifact"),
        ((f"{tmp_path}:export", "--target", "tensorrt"), "not a run"),
        ((model(0),), "--target"),
    ):
        done = call(*words)
        assert done.exit_code == 2, done.output
        assert phrase in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_a_torch_artifact_is_refused(tiny_classifier: Callable[..., Path]) -> None:
    from compress.artifact import PassRecord, create_artifact
    from compress.models.signature import torch_graph
    from compress.tasks.text_classification import TextClassification

    folder, task = tiny_classifier("bert"), TextClassification(("bad", "fine", "good"), max_length=32)
    made_by = PassRecord(name="test", version=1, config={})
    graphs = {"model": torch_graph(folder, task)}
    create_artifact(folder, kind="torch", task=task.dump(), graphs=graphs, made_by=made_by)
    try:
        done = call(folder, "--target", "tensorrt")
    finally:
        (folder / "artifact.json").unlink()
    assert done.exit_code == 2
    assert "of the kind torch" in done.stderr
