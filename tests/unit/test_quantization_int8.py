from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.artifact import Artifact
from compress.data.encoded import Encoded
from compress.errors import RecipeError, RunError
from compress.export.golden import open_session
from compress.export.onnx_clean import write_onnx
from compress.quantization.int8 import CalibrationReader, quantize_dynamic, quantize_static
from compress.quantization.isa import isa_flags, needs_reduced_range
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
FIRST_QUERY = "bert.encoder.layer.0.attention.self.query/MatMul"


@pytest.fixture
def model(tiny_exported: Callable[..., Artifact]) -> onnx.ModelProto:
    return onnx.load(tiny_exported().file())


@pytest.fixture
def encoded(tiny_exported: Callable[..., Artifact]) -> Encoded:
    return TASK.encode(tiny_exported().path, [{"text": text} for text in GOLDEN_TEXTS])


def logits(model: onnx.ModelProto, encoded: Encoded, out_file: Path) -> np.ndarray:
    write_onnx(model, out_file)
    return np.asarray(open_session(out_file).run(["logits"], encoded.batch(range(len(encoded))))[0])


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_dynamic_quantizes_linears_and_tables_and_leaves_attention_products(
    model: onnx.ModelProto, encoded: Encoded, tmp_path: Path
) -> None:
    before = model.SerializeToString()
    quantized, notes = quantize_dynamic(model)
    assert notes == {
        "method": "dynamic",
        "nodes_quantized": {"Gather": 3, "Gemm": 2, "MatMul": 12},
        "nodes_left": {"MatMul": 4},
    }
    assert sum(node.op_type == "MatMulInteger" for node in quantized.graph.node) == 14
    exact, close = (logits(m, encoded, tmp_path / "m.onnx") for m in (model, quantized))
    assert 0 < np.abs(exact - close).max() < 0.15 * np.abs(exact).max()
    assert model.SerializeToString() == before


def test_per_channel_scales_and_seven_bit_weights_follow_the_definition(model: onnx.ModelProto) -> None:
    source = next(node.input[1] for node in model.graph.node if node.name == FIRST_QUERY)
    original = weights(model)[source]
    for reduce_range, largest in ((False, 127), (True, 64)):
        quantized, _ = quantize_dynamic(model, reduce_range=reduce_range)
        scale, integers = (weights(quantized)[f"{source}_{kind}"] for kind in ("scale", "quantized"))
        assert scale.shape == (32,)
        np.testing.assert_allclose(scale, np.abs(original).max(axis=0) / largest, rtol=0.02)
        assert np.abs(integers.astype(int)).max() == largest
        assert np.abs(integers * scale - original).max() <= scale.max() * 0.51
    per_tensor, _ = quantize_dynamic(model, per_channel=False)
    assert weights(per_tensor)[f"{source}_scale"].size == 1


def test_exclude_keeps_the_nodes_that_a_glob_names(model: onnx.ModelProto) -> None:
    quantized, notes = quantize_dynamic(model, exclude=("bert.encoder.layer.0.*", "classifier/*"))
    assert notes["nodes_quantized"] == {"Gather": 3, "Gemm": 1, "MatMul": 6}
    assert notes["nodes_left"] == {"Gemm": 1, "MatMul": 10}
    assert FIRST_QUERY in [node.name for node in quantized.graph.node if node.op_type == "MatMul"]


def test_exclude_of_an_unknown_name_is_an_error_that_shows_real_names(model: onnx.ModelProto) -> None:
    with pytest.raises(RecipeError) as caught:
        quantize_dynamic(model, exclude=("encoder.layer.9.*",))
    assert caught.value.value == "encoder.layer.9.*"
    assert "/" in caught.value.fix


def test_embeddings_stay_in_float32_when_asked(model: onnx.ModelProto) -> None:
    quantized, notes = quantize_dynamic(model, embeddings=False)
    assert "Gather" not in notes["nodes_quantized"]
    assert weights(quantized)["bert.embeddings.word_embeddings.weight"].dtype == np.float32


def test_static_ranges_are_the_extremes_over_the_unpadded_examples(
    model: onnx.ModelProto, encoded: Encoded, tmp_path: Path
) -> None:
    tensor = next(node.input[0] for node in model.graph.node if node.name == FIRST_QUERY)
    quantized, notes = quantize_static(model, encoded, embeddings=False)
    assert notes["nodes_quantized"] == {"Gemm": 2, "MatMul": 16}
    assert notes["calibration_used"] == len(GOLDEN_TEXTS)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    (tmp_path / "probe.onnx").write_bytes(probe.SerializeToString())
    session = open_session(tmp_path / "probe.onnx")
    values = [session.run([tensor], encoded.batch([i]))[0] for i in range(len(encoded))]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    assert weights(quantized)[f"{tensor}_scale"] == pytest.approx((high - low) / 255, rel=1e-5)
    assert weights(quantized)[f"{tensor}_zero_point"].dtype == np.uint8
    exact, close = (logits(m, encoded, tmp_path / "m.onnx") for m in (model, quantized))
    assert 0 < np.abs(exact - close).max() < 0.15 * np.abs(exact).max()


def test_static_int8_activations_have_no_zero_point_and_no_integer_bias(
    model: onnx.ModelProto, encoded: Encoded
) -> None:
    quantized, notes = quantize_static(model, encoded, activation="int8")
    stored = weights(quantized)
    pairs = [node for node in quantized.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert notes["nodes_left"] == {"Gather": 3}
    assert pairs
    assert all(stored[node.input[2]].dtype == np.int8 and not stored[node.input[2]].any() for node in pairs)


def test_quantizing_twice_gives_the_same_bytes_and_keeps_metadata(
    model: onnx.ModelProto, encoded: Encoded, tmp_path: Path
) -> None:
    model.metadata_props.add(key="task", value="text-classification")
    for name, make in {"d": lambda: quantize_dynamic(model), "s": lambda: quantize_static(model, encoded)}.items():
        first, second = make()[0], make()[0]
        write_onnx(first, tmp_path / f"{name}1.onnx")
        write_onnx(second, tmp_path / f"{name}2.onnx")
        assert (tmp_path / f"{name}1.onnx").read_bytes() == (tmp_path / f"{name}2.onnx").read_bytes()
        assert [entry.key for entry in first.metadata_props] == ["task"]
        assert first.producer_name == "mcompress"


def test_foreign_model_with_stale_value_info_is_quantized(model: onnx.ModelProto) -> None:
    stale = next(t for t in model.graph.initializer if t.name == "classifier.weight")
    info = onnx.helper.make_tensor_value_info(stale.name, onnx.TensorProto.FLOAT, list(stale.dims))
    model.graph.value_info.append(info)
    assert quantize_dynamic(model)[1]["nodes_quantized"]["Gemm"] == 2


def test_nothing_to_calibrate_on_is_an_error(model: onnx.ModelProto) -> None:
    empty = Encoded({"input_ids": [], "attention_mask": []}, {"input_ids": 0, "attention_mask": 0})
    with pytest.raises(RunError, match="no example"):
        quantize_static(model, empty)


def test_reader_feeds_each_example_unpadded_once(tiny_encoded: Encoded) -> None:
    reader = CalibrationReader(tiny_encoded, ["input_ids"])
    feeds = list(iter(reader.get_next, None))
    assert [feed["input_ids"].shape for feed in feeds] == [(1, n) for n in tiny_encoded.lengths]
    assert all(list(feed) == ["input_ids"] for feed in feeds)
    assert reader.get_next() is None


@pytest.mark.parametrize(
    ("text", "machine", "reduced"),
    [
        ("flags : fpu avx2\nflags : fpu avx2\n", "x86_64", True),
        ("flags : fpu avx2 avx512_vnni\nflags : fpu avx2 avx512_vnni\n", "x86_64", False),
        ("flags : avx2 avx_vnni\nflags : avx2\n", "x86_64", True),
        ("Features : fp asimd asimddp\n", "aarch64", False),
    ],
)
def test_range_follows_the_instructions_that_every_core_has(
    text: str, machine: str, reduced: bool, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    decision, reason = needs_reduced_range(isa_flags(tmp_path / "cpuinfo"), machine)
    assert decision is reduced
    assert reason


def test_no_cpuinfo_means_no_flags(tmp_path: Path) -> None:
    assert isa_flags(tmp_path / "none") == frozenset()
    assert needs_reduced_range((), "x86_64")[0]
