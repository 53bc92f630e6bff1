from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact, Graph, TensorSpec
from compress.data.splits import Split, TaskData
from compress.errors import MissingCapabilityError, RecipeError, RunError
from compress.export.onnx_clean import write_onnx
from compress.export.trt_api import load_trt, missing_trt, present_library
from compress.export.trt_build import build_engine, without_folders
from compress.export.trt_options import EngineOptions, lacking
from compress.export.trt_precision import precision_of
from compress.export.trt_profile import fixed_graph, fixed_profile, profile_from_lengths
from compress.passes.base import Context, ModelInfo
from compress.passes.build import Build, BuildConfig
from compress.quantization.fp16 import cast_fp16
from compress.quantization.int8 import quantize_static
from compress.runtimes.cuda import why_no_cuda
from compress.runtimes.trt_device import Device
from compress.runtimes.trt_plan import read_header
from compress.store import Store
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
    monkeypatch.setattr("compress.export.trt_build.present_device", Device)
    assert Build().settle(BuildConfig()) == {"device": "built without a GPU"}
    monkeypatch.setattr("compress.export.trt_build.present_device", lambda: Device("NVIDIA H100", "9.0", "13.0"))
    assert Build().settle(BuildConfig()) == {"device": "NVIDIA H100"}


@needs_trt
@pytest.mark.parametrize(
    ("kind", "tf32", "precision", "floats"),
    [
        ("fp32", False, "fp32-strict", "fp32-strict"),
        ("fp32", True, "tf32", "tf32"),
        ("fp16", False, "fp16", "fp16"),
        ("int8-symmetric", False, "int8", "fp32-strict"),
    ],
)
def test_engine_is_built_with_a_sidecar_that_says_from_what(
    kind: str, tf32: bool, precision: str, floats: str, tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    source = variant(kind, tiny_exported(), tmp_path / "model.onnx")
    info = build_engine(source, tmp_path / "model.engine", PROFILE, tf32=tf32)
    assert (tmp_path / "model.engine").stat().st_size > 1000
    text = (tmp_path / "model.engine.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(info))
    assert (info["precision"], info["float_precision"]) == (precision, floats)
    assert info["tf32"] is tf32
    assert info["library"] == load_trt().library
    assert info["profiles"] == [{name: {"min": [1, 1], "opt": [1, 16], "max": [4, 32]} for name in INPUTS}]
    if info["library"] == "tensorrt-rtx":
        assert not info["timing_cache"]["used"]
        assert "its timing cache does nothing" in info["timing_cache"]["reason"]
    assert str(tmp_path) not in text
    assert len(info["onnx_sha256"]) == len(info["plan_sha256"]) == 64


@needs_trt
def test_width_pruned_model_of_another_family_builds(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> None:
    profile = {name: PROFILE[name] for name in INPUTS[:2]}
    assert build_engine(tiny_exported("distilbert", True).file(), tmp_path / "model.engine", profile)


@needs_trt
@pytest.mark.parametrize(("zeros", "found"), [(True, 1), (False, 0)])
def test_sparse_weights_may_get_sparse_kernels(
    zeros: bool, found: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weight = np.arange(1, 64 * 64 + 1, dtype=np.float32).reshape(64, 64)
    if zeros:
        weight[::2] = 0.0  # (inputs, outputs): of every four inputs two have a weight
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y])
    graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    flags = []
    monkeypatch.setattr("compress.export.trt_timing.Timings.give", lambda self, config: flags.append(config.flags))
    info = build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", {"x": ((1, 64), (4, 64), (8, 64))})
    assert info["sparse_products"] == found
    sparse = 1 << int(load_trt().module.BuilderFlag.SPARSE_WEIGHTS)
    assert [bool(value & sparse) for value in flags] == [bool(found)]


@needs_trt
def test_asymmetric_int8_is_refused_with_the_parsers_reason(
    tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    source = variant("int8-asymmetric", tiny_exported(), tmp_path / "model.onnx")
    with pytest.raises(RunError) as caught:
        build_engine(source, tmp_path / "model.engine", PROFILE)
    assert "could not parse" in caught.value.what
    assert "Non-zero zero point" in caught.value.value
    assert "target: tensorrt" in caught.value.fix
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
    assert present_library() == ""
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


def product(kind: int, out_file: Path) -> Path:
    """Write y = x @ weight in one type, with one quantized product after it for an 8-bit type."""
    quantized = kind not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    floats = TensorProto.FLOAT16 if quantized else kind
    x, y = (helper.make_tensor_value_info(name, floats, ["n", 16]) for name in "xy")
    weight = np.eye(16, dtype=np.float32)
    constants = [helper.make_tensor("weight", kind, (16, 16), weight.ravel().tolist())]
    nodes = [helper.make_node("MatMul", ["x", "wide" if quantized else "weight"], ["y"])]
    if quantized:
        constants.append(helper.make_tensor("scale", floats, (), [0.5]))
        nodes.insert(0, helper.make_node("DequantizeLinear", ["weight", "scale"], ["wide"]))
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    out_file.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10).SerializeToString()
    )
    return out_file


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (TensorProto.FLOAT, ("fp32-strict", "fp32-strict")),
        (TensorProto.FLOAT16, ("fp16", "fp16")),
        (TensorProto.BFLOAT16, ("bf16", "bf16")),
        (TensorProto.INT8, ("int8", "fp16")),
        (TensorProto.FLOAT8E4M3FN, ("fp8", "fp16")),
    ],
)
def test_precision_is_read_from_the_graph(kind: int, expected: tuple[str, str], tmp_path: Path) -> None:
    assert precision_of(product(kind, tmp_path / "model.onnx"), tf32=False) == expected


@needs_trt
def test_bf16_builds_and_is_told_apart(tmp_path: Path) -> None:
    shapes = {"x": ((1, 16), (1, 16), (4, 16))}
    info = build_engine(product(TensorProto.BFLOAT16, tmp_path / "model.onnx"), tmp_path / "model.engine", shapes)
    assert (info["precision"], info["float_precision"]) == ("bf16", "bf16")


@needs_trt
def test_the_header_of_a_real_plan_tells_its_version(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> None:
    info = build_engine(tiny_exported().file(), tmp_path / "model.engine", PROFILE)
    found = read_header((tmp_path / "model.engine").read_bytes())
    assert found == (info["library"], info["version"])


RTX_ON_A_CPU = pytest.mark.skipif(
    present_library() != "tensorrt-rtx" or not why_no_cuda(), reason="tensorrt-rtx is not here, or there is a GPU"
)


@RTX_ON_A_CPU
@pytest.mark.parametrize("options", [{"refit": True}, {"strip_plan": True}, {"refit": True, "strip_plan": True}])
def test_refitting_without_a_gpu_fails_with_what_tensorrt_said(
    options: dict[str, bool], tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    with pytest.raises(RunError) as caught:
        build_engine(tiny_exported().file(), tmp_path / "model.engine", PROFILE, **options)
    assert "could not build the engine" in caught.value.what
    assert "error" in caught.value.value
    assert "need a GPU" in caught.value.fix
    assert not (tmp_path / "model.engine").exists()


@RTX_ON_A_CPU
@pytest.mark.parametrize(
    ("options", "named"),
    [({"version_compatible": True}, "version_compatible"), ({"hardware_compatibility": "ampere_plus"}, "hardware_com")],
)
def test_what_rtx_has_no_way_to_do_is_refused(
    options: dict[str, object], named: str, tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    with pytest.raises(MissingCapabilityError) as caught:
        build_engine(tiny_exported().file(), tmp_path / "model.engine", PROFILE, **options)
    assert "tensorrt-rtx" in caught.value.what
    assert named in caught.value.value


@pytest.mark.parametrize(
    ("library", "options", "gpu", "said"),
    [
        ("tensorrt-rtx", {}, False, ()),
        ("tensorrt-rtx", {"refit": True}, True, ()),
        ("tensorrt-rtx", {"refit": True}, False, ("need a GPU",)),
        ("tensorrt-rtx", {"version_compatible": True}, True, ("`version_compatible` needs the full tensorrt",)),
        ("tensorrt", {"version_compatible": True, "refit": True}, True, ()),
        ("tensorrt", {}, False, ("only where a GPU is",)),
    ],
)
def test_what_is_lacking_is_known_before_any_work(
    library: str, options: dict[str, bool], gpu: bool, said: tuple[str, ...]
) -> None:
    found = lacking(library, EngineOptions(**options), gpu=gpu)
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


def test_the_plan_states_the_cost_of_options_and_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.passes.build.missing_trt", lambda: "")
    monkeypatch.setattr("compress.passes.build.present_library", lambda: "tensorrt")
    monkeypatch.setattr("compress.passes.build.why_no_cuda", lambda: "")
    config = BuildConfig(version_compatible=True, hardware_compatibility="ampere_plus", shapes=[[1, 16], [8, 32]])
    plan = Build().plan({"model": ModelInfo(kind="onnx")}, config)
    assert "2 for single shapes" in plan.summary
    assert "may be slower, about 100 MB larger" in plan.summary
    assert "ampere_plus: fewer kernels" in plan.summary
    assert plan.missing == ()
    monkeypatch.setattr("compress.passes.build.present_library", lambda: "tensorrt-rtx")
    assert len(Build().plan({"model": ModelInfo(kind="onnx")}, config).missing) == 2


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"shapes": [[0, 16]]}, r"\[batch, tokens\]"),
        ({"shapes": [[1, 2, 3]]}, r"\[batch, tokens\]"),
        ({"shapes": [[1, 16], [1, 16]]}, "twice"),
        ({"exclude_lean_runtime": True}, "version_compatible: true"),
        ({"version_compatible": True, "strip_plan": True}, "cannot refit"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(config: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BuildConfig.model_validate(config)


IDS = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"))
LOGITS = TensorSpec(name="logits", dtype="float32", shape=("batch", 3))


def test_a_graph_for_one_shape_has_no_size_left_open() -> None:
    graph = fixed_graph(Graph(file="model.engine", inputs=(IDS, IDS), outputs=(LOGITS,)), "x.engine", (8, 16), 32)
    assert [value.shape for value in graph.inputs] == [(8, 16), (8, 16)]
    assert graph.outputs[0].shape == (8, 3)
    assert fixed_profile(graph) == {"input_ids": ((8, 16), (8, 16), (8, 16))}
    pixels = TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 3, 8, 8))
    images = fixed_graph(Graph(file="model.engine", inputs=(pixels,), outputs=(LOGITS,)), "x.engine", (4,))
    assert images.inputs[0].shape == (4, 3, 8, 8)


@pytest.mark.parametrize(("shape", "said"), [((8,), "2 sizes here: batch, sequence"), ((1, 64), "longest input")])
def test_a_shape_that_the_model_cannot_take_is_refused(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        fixed_graph(Graph(file="model.engine", inputs=(IDS,), outputs=(LOGITS,)), "x.engine", shape, 32)


@needs_trt
def test_a_step_holds_a_dynamic_engine_and_one_for_each_shape(
    tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    folders = {part: tmp_path / part for part in ("out", "scratch", "checkpoint")}
    for folder in folders.values():
        folder.mkdir()
    rows = [{"text": text, "label": "good"} for text in GOLDEN_TEXTS]
    data = TaskData({"train": Split("train", rows, "0" * 64, "built in")}, TASK.labels)
    context = Context(**folders, task=TASK, data=data, store=Store(tmp_path / "store"))
    built = Build().apply({"model": tiny_exported()}, BuildConfig(shapes=[[2, 16]]), context)
    assert set(built.manifest.graphs) == {"model", "model@2x16"}
    fixed = built.manifest.graphs["model@2x16"]
    assert (fixed.file, fixed.inputs[0].shape) == ("model-2x16.engine", (2, 16))
    sidecar = json.loads((built.path / "model-2x16.engine.json").read_text(encoding="utf-8"))
    assert sidecar["profiles"][0]["input_ids"] == {"min": [2, 16], "opt": [2, 16], "max": [2, 16]}
    assert sidecar["plan_sha256"] == built.manifest.files["model-2x16.engine"].sha256
    engines = built.manifest.notes["engines"]
    assert set(engines) == {"model", "model@2x16"}
    assert engines["model"]["bytes"] == built.size_bytes == built.manifest.files["model.engine"].bytes
    assert all(("inspection" in noted) != ("not_inspected" in noted) for noted in engines.values())
    if present_library() == "tensorrt-rtx" and why_no_cuda():
        assert engines["model"]["inspection"]["source"] == "builder"
        assert engines["model"]["inspection"]["layers"] > 10


def test_the_full_library_is_taken_where_it_finds_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.export.trt_api.installed", lambda: ["tensorrt", "tensorrt_rtx_bindings"])
    monkeypatch.setattr("compress.export.trt_api.why_no_cuda", lambda: "")
    assert present_library() == "tensorrt"
    monkeypatch.setattr("compress.export.trt_api.why_no_cuda", lambda: "no GPU")
    assert present_library() == "tensorrt-rtx"
