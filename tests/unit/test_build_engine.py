from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact
from compress.errors import MissingCapabilityError, RecipeError, RunError
from compress.export.onnx_clean import write_onnx
from compress.export.trt_api import load_trt, missing_trt
from compress.export.trt_build import build_engine, without_folders
from compress.export.trt_profile import profile_from_lengths
from compress.passes.base import ModelInfo
from compress.passes.build import Build, BuildConfig
from compress.quantization.fp16 import cast_fp16
from compress.quantization.int8 import quantize_static
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

needs_trt = pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
TASK = TextClassification(("bad", "fine", "good"), max_length=32)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PROFILE = profile_from_lengths(INPUTS, [5, 12, 20], 32, max_batch=4)


def variant(kind: str, artifact: Artifact, out_file: Path) -> Path:
    model = onnx.load(artifact.file())
    if kind == "fp16":
        model, _ = cast_fp16(model)
    if kind.startswith("int8"):
        encoded = TASK.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])
        activation = "int8" if kind == "int8-symmetric" else "uint8"
        model, _ = quantize_static(model, encoded, activation=activation, embeddings=False)
    write_onnx(model, out_file)
    return out_file


def test_the_store_key_of_an_engine_has_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.export.trt_build.why_no_cuda", lambda: "no GPU (no NVIDIA driver is installed)")
    assert Build().settle(BuildConfig()) == {"device": "built without a GPU"}
    monkeypatch.setattr("compress.export.trt_build.device_name", lambda: "NVIDIA H100")
    assert Build().settle(BuildConfig()) == {"device": "NVIDIA H100"}


@needs_trt
@pytest.mark.parametrize(
    ("kind", "tf32", "precision"),
    [
        ("fp32", False, "fp32-strict"),
        ("fp32", True, "tf32"),
        ("fp16", False, "fp16"),
        ("int8-symmetric", False, "int8"),
    ],
)
def test_engine_is_built_with_a_sidecar_that_says_from_what(
    kind: str, tf32: bool, precision: str, tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    source = variant(kind, tiny_exported(), tmp_path / "model.onnx")
    info = build_engine(source, tmp_path / "model.engine", PROFILE, tf32=tf32)
    assert (tmp_path / "model.engine").stat().st_size > 1000
    text = (tmp_path / "model.engine.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(info))
    assert info["precision"] == precision
    assert info["tf32"] is tf32
    assert info["library"] == load_trt().library
    assert info["profiles"] == [{name: {"min": (1, 1), "opt": (1, 16), "max": (4, 32)} for name in INPUTS}]
    assert str(tmp_path) not in text
    assert len(info["onnx_sha256"]) == len(info["plan_sha256"]) == 64


@needs_trt
def test_width_pruned_model_of_another_family_builds(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> None:
    profile = {name: PROFILE[name] for name in INPUTS[:2]}
    assert build_engine(tiny_exported("distilbert", True).file(), tmp_path / "model.engine", profile)


@needs_trt
def test_asymmetric_int8_is_refused_with_the_parsers_reason(
    tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    source = variant("int8-asymmetric", tiny_exported(), tmp_path / "model.onnx")
    with pytest.raises(RunError) as caught:
        build_engine(source, tmp_path / "model.engine", PROFILE)
    assert "could not parse" in caught.value.what
    assert "Non-zero zero point" in caught.value.value
    assert "activation: int8" in caught.value.fix
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "model.engine").exists()


@needs_trt
def test_mixed_precision_is_refused_with_the_node_that_mixes(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    half = numpy_helper.from_array(np.ones(4, np.float16), "half")
    node = helper.make_node("Add", ["x", "half"], ["y"], name="mixing")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [half]), opset_imports=[helper.make_opsetid("", 18)]
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(RunError) as caught:
        build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", {"x": ((1, 4), (1, 4), (2, 4))})
    assert "mixing" in caught.value.value
    assert "strongly typed" in caught.value.fix


@needs_trt
def test_impossible_shapes_give_the_librarys_reason(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> None:
    swapped = {name: ((4, 32), (1, 16), (1, 1)) for name in INPUTS}
    with pytest.raises(RunError) as caught:
        build_engine(tiny_exported().file(), tmp_path / "model.engine", swapped)
    assert "profile" in str(caught.value).lower()


@needs_trt
def test_profile_must_name_every_input(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="lacks an input"):
        build_engine(tiny_exported().file(), tmp_path / "model.engine", {"input_ids": PROFILE["input_ids"]})


def test_without_tensorrt_the_plan_and_the_error_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    plan = Build().plan({"model": ModelInfo(kind="onnx")}, BuildConfig())
    assert plan.result.kind == "tensorrt"
    assert 'pip install "mcompress[tensorrt-rtx]"' in plan.missing[0]
    with pytest.raises(MissingCapabilityError) as caught:
        load_trt()
    assert "mcompress[tensorrt-rtx]" in caught.value.fix


def test_profile_rounds_the_median_up_to_eight_and_stays_within_the_task() -> None:
    profile = profile_from_lengths(["input_ids"], np.array([3, 17, 19]), 128, opt_batch=2, max_batch=8)
    assert profile == {"input_ids": ((1, 1), (2, 24), (8, 128))}
    assert profile_from_lengths(["input_ids"], [30], 28)["input_ids"][1] == (1, 28)
    with pytest.raises(RecipeError, match="opt_batch"):
        profile_from_lengths(["input_ids"], [30], 28, opt_batch=9)
    with pytest.raises(ValueError, match="opt_batch"):
        BuildConfig(opt_batch=9)


def test_messages_lose_their_folders() -> None:
    assert without_folders("error: /home/ann/x/model.onnx:12: bad /axis/") == "error: model.onnx:12: bad /axis/"
