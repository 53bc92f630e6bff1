"""The linter on whole models beside the real parser: our exports and their quantized forms, and ONNX's node tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.artifact import Artifact
from compress.checks.checking import check_model
from compress.export.trt_api import load_trt, logged, missing_trt
from compress.quantization.fp16 import cast_fp16
from compress.quantization.int8 import quantize_dynamic, quantize_static
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

needs_trt = pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
TASK = TextClassification(("bad", "fine", "good"), max_length=32)


def parses(model: onnx.ModelProto) -> bool:
    trt = load_trt()
    with logged(trt) as (logger, _):
        flag = 1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = trt.module.Builder(logger).create_network(flag)
        return bool(trt.module.OnnxParser(network, logger).parse(model.SerializeToString()))


def variant(kind: str, artifact: Artifact) -> onnx.ModelProto:
    model = onnx.load(artifact.file())
    if kind == "fp32":
        return model
    if kind == "fp16":
        return cast_fp16(model)[0]
    if kind == "dynamic":
        return quantize_dynamic(model)[0]
    encoded = TASK.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])
    return quantize_static(model, encoded, activation=kind.partition(" ")[0], embeddings="table" in kind)[0]


@needs_trt
@pytest.mark.parametrize(
    ("kind", "errors", "doubts"),
    [
        ("fp32", set(), set()),
        ("fp16", set(), {"float-attention"}),
        ("int8", set(), {"float32-sea", "int8-attention", "matrix-vector", "thin-product"}),
        ("int8 table", set(), {"float32-sea", "int8-attention", "matrix-vector", "thin-product"}),
        ("uint8", {"zero-point"}, {"float32-sea", "int8-attention", "matrix-vector", "thin-product"}),
        (
            "uint8 table",
            {"stored-type", "uint8", "zero-point"},
            {"float32-sea", "int8-attention", "matrix-vector", "thin-product"},
        ),
        ("dynamic", {"operator", "stored-type", "uint8", "zero-point"}, set()),
    ],
)
def test_forms_of_an_exported_model(
    kind: str, errors: set[str], doubts: set[str], tiny_exported: Callable[..., Artifact]
) -> None:
    model = variant(kind, tiny_exported())
    found = check_model(model, "tensorrt")
    assert {finding.rule for finding in found.of("error")} == errors
    assert {finding.rule for finding in found.of("warning")} >= doubts
    assert found.ok == parses(model)


@needs_trt
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_pruned_models_of_other_families(family: str, kind: str, tiny_exported: Callable[..., Artifact]) -> None:
    model = variant(kind, tiny_exported(family, True))
    assert check_model(model, "tensorrt").ok == parses(model) is True


@pytest.fixture(scope="module")
def pictures(tiny_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of a small ResNet."""
    from compress.export.onnx_export import export_onnx
    from compress.models.loading import load_torch
    from compress.tasks.image_classification import ImageClassification

    task, file = ImageClassification(("bad", "fine", "good")), tmp_path_factory.mktemp("resnet") / "model.onnx"
    export_onnx(load_torch(tiny_images("resnet"), task), file, inputs=task.inputs(tiny_images("resnet")))
    return file


@needs_trt
@pytest.mark.parametrize(
    ("options", "errors"),
    [
        ({}, {"int32-bias", "zero-point"}),
        ({"symmetric": True}, {"int32-bias"}),
        ({"symmetric": True, "bias": False}, set()),
        ({"operators": True}, {"operator", "zero-point"}),
    ],
)
def test_what_the_quantizer_of_onnx_runtime_makes_of_a_convolutional_network(
    options: dict[str, bool], errors: set[str], pictures: Path, tmp_path: Path
) -> None:
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{name: np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 1, 16, 16)}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    name = onnx.load(pictures).graph.input[0].name
    symmetric = options.get("symmetric", False)
    ort.quantize_static(
        str(pictures),
        str(tmp_path / "quantized.onnx"),
        Reader(),
        quant_format=ort.QuantFormat.QOperator if options.get("operators") else ort.QuantFormat.QDQ,
        activation_type=ort.QuantType.QInt8 if symmetric else ort.QuantType.QUInt8,
        per_channel=symmetric,
        extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": options.get("bias", True)},
    )
    model = onnx.load(tmp_path / "quantized.onnx")
    found = check_model(model, "tensorrt")
    assert {finding.rule for finding in found.of("error")} == errors
    assert found.ok == parses(model)


@needs_trt
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_node_tests_of_onnx() -> None:
    from onnx.backend.test.loader import load_node_model_tests

    models = {case.name: case.model for case in load_node_model_tests() if case.model is not None}
    assert len(models) > 1500
    assert [name for name, model in models.items() if check_model(model, "tensorrt").ok != parses(model)] == []


def test_checking_loads_neither_torch_nor_a_runtime(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), tmp_path / "model.onnx")
    code = (
        "import sys; from typer.testing import CliRunner; from compress.cli.app import app; "
        f"done = CliRunner().invoke(app, ['check', {str(tmp_path / 'model.onnx')!r}, '--target', 'tensorrt']); "
        "assert done.exit_code == 0, done.output; "
        "heavy = {'torch', 'onnxruntime', 'transformers', 'tensorrt', 'tensorrt_rtx_bindings', 'scipy', 'datasets'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
