"""BF16: rounded where numpy rounds, close to FP32 in the emulation, and taken by TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact
from compress.errors import MissingCapabilityError
from compress.export.onnx_clean import write_onnx
from compress.export.onnx_export import export_onnx
from compress.export.signature import traits_of
from compress.export.trt_api import missing_trt
from compress.export.trt_build import build_engine
from compress.export.trt_profile import profile_from_lengths
from compress.models.golden import golden_batch
from compress.models.loading import load_torch
from compress.quantization.fp16 import cast_half
from compress.quantization.half_emulation import emulate_half
from compress.quantization.half_format import BF16, FORMATS, FP16, Dtype
from compress.quantization.half_ranges import measure_ranges
from compress.runtimes.base import runtimes
from compress.runtimes.target import Target
from compress.tasks.image_classification import ImageClassification
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
IMAGES = ImageClassification(("bad", "fine", "good"))
needs_trt = pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
FAMILIES = [("bert", False), ("bert", True), ("roberta", False), ("roberta", True), ("distilbert", False)]
FAMILIES += [("distilbert", True), ("vit", False)]


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def bf16(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("form", [FP16, BF16])
def test_constants_of_the_formats_are_those_of_numpy(form: object) -> None:
    facts = ml_dtypes.finfo(np.float16 if form is FP16 else ml_dtypes.bfloat16)
    assert form.largest == float(facts.max)
    assert form.normal == float(facts.smallest_normal)
    assert form.vanishing == float(facts.smallest_subnormal) / 2
    assert form.digits == facts.nmant + 1
    edge = np.array([form.vanishing, np.nextafter(np.float32(form.vanishing), np.float32(1))], np.float32)
    np.testing.assert_array_equal(form.round(edge) == 0, [True, False])


def test_the_emulation_rounds_every_value_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    x = rng.normal(size=(3, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    stored = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 8), ("y", 5))]
    source = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], stored),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    cast, notes = cast_half(source, "bfloat16")
    assert (notes["nodes_bfloat16"], notes["nodes_float32"]) == (3, 0)
    assert traits_of(cast) == ("bf16",)
    wanted = np.maximum(bf16(bf16(bf16(x) @ bf16(weight)) + bf16(bias)), 0)
    np.testing.assert_allclose(run(emulate_half(cast), {"x": x}), wanted, rtol=2.0**-8, atol=1e-6)
    assert (run(emulate_half(cast), {"x": x}) == wanted).mean() > 0.9  # sums in another order may round apart
    exact = run(source, {"x": x})
    assert not np.array_equal(wanted, exact)


def model_of(
    family: str, pruned: bool, tiny_exported: Callable[..., Artifact], tiny_images: Callable[..., Path], out: Path
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], object]:
    """Return a tiny model with a batch of inputs and, encoded, what to calibrate on."""
    if family == "vit":
        folder = tiny_images("vit")
        export_onnx(load_torch(folder, IMAGES), out / "vit.onnx", inputs=IMAGES.inputs(folder))
        model, batch = onnx.load(out / "vit.onnx"), golden_batch(folder, IMAGES)
        from compress.data.encoded import Encoded

        return model, batch, Encoded({name: list(rows) for name, rows in batch.items()}, {})
    artifact = tiny_exported(family, pruned)
    encoded = TASK.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])
    return onnx.load(artifact.file()), encoded.batch(range(len(encoded))), encoded


@pytest.mark.parametrize("dtype", list(FORMATS))
@pytest.mark.parametrize(("family", "pruned"), FAMILIES)
def test_every_family_stays_close_and_builds(
    family: str,
    pruned: bool,
    dtype: Dtype,
    tiny_exported: Callable[..., Artifact],
    tiny_images: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source, batch, encoded = model_of(family, pruned, tiny_exported, tiny_images, tmp_path)
    feed = {value.name: batch[value.name] for value in source.graph.input}
    ranges = measure_ranges(source, encoded) if dtype == "float16" else None
    cast, notes = cast_half(source, dtype, ranges=ranges)
    assert notes["nodes_float32"] == 0, notes["kept_nodes"]
    exact = run(source, feed)
    close = run(emulate_half(cast), feed)
    limit = 5e-3 if dtype == "float16" else 5e-2
    assert 0 < np.abs(exact - close).max() < limit * np.abs(exact).max()
    assert [v.SerializeToString() for v in cast.graph.input] == [v.SerializeToString() for v in source.graph.input]
    assert [(v.name, v.type.tensor_type.elem_type) for v in cast.graph.output] == [("logits", TensorProto.FLOAT)]
    if missing_trt():
        return
    write_onnx(cast, tmp_path / "m.onnx")
    profile = profile_from_lengths(list(feed), [5, 12, 20], 32, max_batch=4)
    if family == "vit":
        profile = {name: (array[:1].shape, array[:1].shape, array[:2].shape) for name, array in feed.items()}
    assert build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", profile)["plan_sha256"]


def test_a_bf16_artifact_is_not_for_the_cpu(tiny_exported: Callable[..., Artifact], tmp_path: Path) -> None:
    import compress
    from compress.artifact import PassRecord, create_artifact
    from compress.export.signature import read_graph

    cast, _ = cast_half(onnx.load(tiny_exported().file()), "bfloat16")
    write_onnx(cast, tmp_path / "model.onnx")
    graphs = {"model": read_graph(tmp_path / "model.onnx")}
    made = PassRecord(name="cast", version=1, config={})
    artifact = create_artifact(tmp_path, kind="onnx", task=TASK.dump(), traits=("bf16",), graphs=graphs, made_by=made)
    target = Target(name="ort-cpu-1t", runtime="onnxruntime", threads=1)
    found = runtimes.get("onnxruntime")().takes(artifact, target)
    assert not found.ok
    assert "no BF16 kernels for CPUs" in found.reason
    with pytest.raises(MissingCapabilityError, match="no BF16 kernels"):
        compress.load(tmp_path)
