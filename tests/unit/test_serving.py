"""What a serving bundle carries: requests into examples, the queue in front of the model, sizes out of a report."""

from __future__ import annotations

import ast
import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact, TensorSpec, create_artifact, open_artifact
from compress.errors import CompressError
from compress.report.files import read_report
from compress.report.model import Report
from compress.runtimes.trt_plan import PlanRecord, read_record, write_record
from compress.shipping.serving.bundling import PROGRAMS, program, program_names, template
from compress.shipping.serving.kserve import memory_request, pinned
from compress.shipping.serving.memory import peak_bytes
from compress.shipping.serving.server.batching import Batcher, Busy
from compress.shipping.serving.server.encoding import BadRequest, Encoder
from compress.shipping.serving.server.settings import BadSettings, read_settings
from compress.shipping.serving.sizing import Sizing, batch_matters, find_sizing, served_name
from compress.shipping.serving.triton import TritonLayout, model_config
from compress.shipping.shipment import Shipment

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "data" / "report_example.json"
PIXELS = [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 1, 2, 2]}]


@pytest.fixture(scope="module")
def report() -> Report:
    return read_report(EXAMPLE)


def encoder(tmp_path: Path, **task: Any) -> Encoder:
    return Encoder(tmp_path, {"labels": ["no", "yes, really"], "max_length": 1, **task}, PIXELS)


def test_pixels_must_be_finite_numbers_of_the_models_shape(tmp_path: Path) -> None:
    images = encoder(tmp_path)
    rows = images.examples({"pixel_values": np.arange(8, dtype=np.float64).reshape(2, 1, 2, 2)})
    assert [row["pixel_values"].tolist() for row in rows] == [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]]
    assert rows[0]["pixel_values"].dtype == np.float32
    bad = np.full((1, 1, 2, 2), np.nan, dtype=np.float32)
    for array in (bad, np.zeros((1, 1, 2, 3)), np.zeros((0, 1, 2, 2)), np.zeros((1, 2, 2)), np.array([["a"]], object)):
        with pytest.raises(BadRequest, match="pixel_values"):
            images.examples({"pixel_values": array})
    with pytest.raises(BadRequest, match="Unknown input 'text'; send pixel_values"):
        images.examples({"text": np.array(["good"], dtype=object)})


def test_logits_are_decoded_as_the_task_decides(tmp_path: Path) -> None:
    logits = np.array([[0.0, 2.0], [3.0, 1.0], [-1.0, -2.0]], dtype=np.float32)
    one = encoder(tmp_path).answers(logits)
    assert one["label"].tolist() == ["yes, really", "no", "no"]
    np.testing.assert_allclose(one["score"], 1 / (1 + np.exp(-np.array([2.0, 2.0, 1.0]))), rtol=1e-6)
    several = encoder(tmp_path, problem="multi_label").answers(logits)
    assert [json.loads(text) for text in several["label"]] == [["yes, really"], ["no", "yes, really"], []]
    np.testing.assert_allclose(several["score"], 1 / (1 + np.exp(-logits)), rtol=1e-6)
    number = encoder(tmp_path, problem="regression", labels=[]).answers(logits[:, :1])
    assert set(number) == {"logits", "score"}
    assert number["score"].tolist() == [0.0, 3.0, -1.0]


def row(length: int, value: float) -> dict[str, np.ndarray]:
    return {"x": np.full(length, value)}


def test_only_equal_lengths_run_together_and_everybody_gets_their_own() -> None:
    batches, gate = [], threading.Event()

    def run(arrays: dict[str, np.ndarray]) -> np.ndarray:
        gate.wait(5)
        batches.append(arrays["x"].shape)
        return arrays["x"].sum(axis=1, keepdims=True)

    async def ask() -> list[np.ndarray]:
        batcher = Batcher(run, batch=3, streams=1, queue=100, seen=lambda size: None)
        lengths = [2, 5, 2, 2, 5, 2, 7, 2]
        waiting = [asyncio.create_task(batcher.ask([row(n, i), row(n, -i)])) for i, n in enumerate(lengths)]
        await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(*waiting)
        assert batcher.waiting == 0
        return [(answer[:, 0] / n).tolist() for answer, n in zip(found, lengths, strict=True)]

    assert asyncio.run(ask()) == [[i, -i] for i in range(8)]
    assert sum(rows for rows, _ in batches) == 16
    assert max(rows for rows, _ in batches) == 3
    assert len(batches) == 1 + 3 + 2 + 1, "the first pair went at once, then threes, pairs of the rest"


def test_a_full_queue_refuses_and_an_error_hits_its_own_batch_alone() -> None:
    gate = threading.Event()

    def run(arrays: dict[str, np.ndarray]) -> np.ndarray:
        gate.wait(5)
        if arrays["x"].shape[1] == 3:
            raise RuntimeError("no threes")
        return arrays["x"]

    async def ask() -> None:
        batcher = Batcher(run, batch=4, streams=1, queue=4, seen=lambda size: None)
        first = asyncio.create_task(batcher.ask([row(1, 0)]))
        await asyncio.sleep(0)
        bad, good = (asyncio.create_task(batcher.ask([row(n, n)] * 2)) for n in (3, 2))
        await asyncio.sleep(0)
        assert batcher.waiting == 4
        with pytest.raises(Busy, match="4 examples wait already"):
            await batcher.ask([row(2, 0)])
        gone = asyncio.create_task(batcher.ask([]))
        gone.cancel()
        gate.set()
        assert (await first).shape == (1, 1)
        with pytest.raises(RuntimeError, match="no threes"):
            await bad
        assert (await good).tolist() == [[2, 2], [2, 2]]
        again = asyncio.create_task(batcher.ask([row(2, 1)]))
        await asyncio.sleep(0)
        again.cancel()
        assert (await batcher.ask([row(2, 5)])).tolist() == [[5, 5]]

    asyncio.run(ask())


def test_sizes_come_from_the_row_that_was_measured(report: Report, tiny_onnx: Callable[..., Artifact]) -> None:
    shipment = Shipment(tiny_onnx(), name="Support e-mails", step="onnx-fp32", report=report)
    found = find_sizing(shipment, ["onnxruntime"], "cpu", alone=False)
    assert (found.batch, found.streams, found.threads, found.per_s) == (8, 1, 1, 101.4)
    assert found.batch_us == pytest.approx(8e6 / 101.4, abs=1)
    assert memory_request(239_000_000) == -(-(192 * 2**20 + 239_000_000) // 2**24) * 2**24
    alone = find_sizing(shipment, ["onnxruntime"], "cpu", alone=True)
    assert (alone.batch, alone.per_s) == (1, 72.0), "two streams were faster than one"
    assert alone.streams == 2
    on_gpu = find_sizing(shipment, ["tensorrt"], "cuda", alone=False)
    assert (on_gpu.batch, on_gpu.per_s) == (1, None)
    assert served_name(shipment) == "support-e-mails-onnx-fp32"
    assert served_name(Shipment(shipment.artifact, name="7/…")) == "m-7"


def test_names_in_a_report_cannot_write_configuration(report: Report, tiny_onnx: Callable[..., Artifact]) -> None:
    target = "ort-cpu-1t\n          env: [{name: EVIL}]\u2028more"
    rows = tuple(row.model_copy(update={"target": target}) for row in report.rows if row.target == "ort-cpu-1t")
    targets = tuple(
        each.model_copy(update={"name": target}) if each.name == "ort-cpu-1t" else each for each in report.targets
    )
    other = report.model_copy(update={"rows": rows, "targets": targets})
    shipment = Shipment(tiny_onnx(), name="x", step="onnx-fp32", report=other)
    source = find_sizing(shipment, ["onnxruntime"], "cpu", alone=False).batch_source
    assert "EVIL" in source
    assert len(source.splitlines()) == 1


def test_memory_is_that_of_the_largest_batch(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.zeros((64, 65536), dtype=np.float32), "w")
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])]
    result = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 65536])]
    node = helper.make_node("MatMul", ["x", "w"], ["logits"])
    graph = helper.make_graph([node], "wide", values, result, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "w.onnx")
    inputs = [TensorSpec(name="x", dtype="float32", shape=("batch", 64))]
    small, large = (
        peak_bytes(tmp_path / "w.onnx", inputs, {"batch": batch}, streams=1, threads=1) for batch in (4, 512)
    )
    assert 16 * 2**20 <= small < 128 * 2**20, "the weights are 16 MiB"
    assert large - small == pytest.approx(508 * 65536 * 4, rel=0.5), "outputs of one run are 128 MiB"
    assert peak_bytes(tmp_path / "none.onnx", inputs, {}, streams=1, threads=1) is None


def test_dynamic_int8_is_known_by_its_operators(tiny_onnx: Callable[..., Artifact], tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    scale = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"])
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    result = [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n"])]
    onnx.save(helper.make_model(helper.make_graph([scale], "dynamic", values, result)), tmp_path / "int8.onnx")
    assert batch_matters(tmp_path / "int8.onnx")
    assert not batch_matters(tiny_onnx().file())


def an_engine(source: Artifact, folder: Path, **record: Any) -> Shipment:
    """An artifact like those of `build`, whose engine is a few bytes."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(source.file().read_bytes())
    (folder / "model.engine").write_bytes(b"plan")
    (folder / "tokenizer.json").write_text('{"added_tokens": [{"content": "[PAD]", "id": 3}]}', encoding="utf-8")
    shapes = {"min": (1, 4), "opt": (8, 16), "max": (32, 16)}
    profile: Any = {value.name: shapes for value in source.manifest.graphs["model"].inputs}
    if record:
        write_record(folder / "model.engine", PlanRecord(version="10.12", profiles=[profile], **record))
    graph = source.manifest.graphs["model"].model_copy(update={"file": "model.engine"})
    task, made_by = source.manifest.task, source.manifest.made_by
    made = create_artifact(folder, kind="tensorrt", task=task, graphs={"model": graph}, made_by=made_by)
    return Shipment(made, name="Support", step="engine")


def test_an_engine_gets_tritons_tensorrt_backend_and_its_profiles_batch(
    tiny_onnx: Callable[..., Artifact], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    laid = TritonLayout().write(an_engine(tiny_onnx(), tmp_path / "engine", library="tensorrt"), out)
    config = (out / "models" / "support-engine" / "config.pbtxt").read_text(encoding="utf-8")
    for line in ('backend: "tensorrt"', "max_batch_size: 32", "kind: KIND_GPU", "max_queue_delay_microseconds: 0"):
        assert line in config
    assert "parameters" not in config
    assert (out / "models" / "support-engine" / "1" / "model.plan").read_bytes() == b"plan"
    opened = open_artifact(out)
    assert read_record(opened, "model").library == "tensorrt", "its record lies beside the plan"
    tokens = (out / "models" / "support-engine_tokenizer" / "config.pbtxt").read_text(encoding="utf-8")
    assert "max_batch_size: 32" in tokens
    assert "token_type_ids" not in tokens
    task = json.loads((out / "models" / "support-engine_tokenizer" / "1" / "task.json").read_text(encoding="utf-8"))
    assert task["padding"] == 3
    assert "no report with a measurement on a GPU" in laid.left_out[0]


def test_an_engine_that_triton_cannot_run_is_refused(tiny_onnx: Callable[..., Artifact], tmp_path: Path) -> None:
    refused = {
        "tensorrt-rtx": {"library": "tensorrt-rtx"},
        "strip_plan": {"library": "tensorrt", "strip_plan": True},
        "no record": {},
    }
    for i, (reason, record) in enumerate(refused.items()):
        with pytest.raises(CompressError, match=reason):
            TritonLayout().write(an_engine(tiny_onnx(f"onnx{i}"), tmp_path / str(i), **record), tmp_path)


def test_the_servers_programs_need_nothing_of_ours() -> None:
    names = program_names()
    assert {"__init__", "__main__", "batching", "encoding", "model", "settings"} == set(names)
    texts = {name: program(name, "server") for name in names}
    texts |= {"triton": program("triton_tokenizer", "", folder="compress.shipping.serving")}
    for name, text in texts.items():
        assert "compress." not in text, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("server."):
                assert node.module.removeprefix("server.") in names


def test_what_a_bundle_installs_is_what_is_tested() -> None:
    pins = pinned()
    ours = dict(
        line.strip().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert pins.keys() == {"kserve", "numpy", "onnxruntime", "tokenizers"}
    for name in ("numpy", "onnxruntime", "tokenizers"):
        assert pins[name] == ours[name], "templates/constraints.txt follows constraints.txt"
    assert "-c constraints.txt" in template("requirements.txt", **pins)
    assert (resources.files(PROGRAMS) / "__main__.py").is_file()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", "cannot be read"),
        ('{"batch": 4}', "model_name is missing"),
        ('{"model_name": "m", "batches": 4}', "unknown key 'batches'"),
        ('{"model_name": "m", "batch": 0}', "batch is 0"),
        ('{"model_name": "m", "batch": true}', "batch is True"),
        ('{"model_name": 3}', "model_name is 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadSettings, match=reason):
        read_settings(tmp_path / "settings.json")
    (tmp_path / "good.json").write_text('{"model_name": "m", "batch": 2}', encoding="utf-8")
    assert read_settings(tmp_path / "good.json", batch=4).batch == 4
    with pytest.raises(BadSettings, match="batch is -1"):
        read_settings(tmp_path / "good.json", batch=-1)


def test_where_one_at_a_time_was_fastest_triton_makes_no_batches_and_takes_those_of_clients(tiny_onnx) -> None:
    graph = tiny_onnx().manifest.graphs["model"]
    sizing = Sizing(1, 8, 1, 1, 50.0, "measured")
    text = model_config("name", graph, sizing, sizing.largest, engine=False)
    assert "max_batch_size: 8" in text
    assert "dynamic_batching {" not in text
    faster = model_config("name", graph, replace(sizing, batch=4), sizing.largest, engine=False)
    assert "dynamic_batching { preferred_batch_size: [ 4 ], max_queue_delay_microseconds: 8000 }" in faster
