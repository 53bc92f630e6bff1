"""A table measured in ONNX Runtime, and models deployed as the passes would: real children, tiny models, no timings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress.artifact import Artifact
from compress.bench.protocol import predict
from compress.errors import RunError
from compress.models.families import dimensions
from compress.models.loading import load_torch
from compress.models.structure import structure_of
from compress.pruning.ladder import Widths
from compress.runtimes.target import find_target
from compress.search import latency
from compress.search.deploy import Precision, deploy, measure_speedup
from compress.search.latency import latency_table
from compress.store import Store
from compress.tasks.text_classification import TextClassification

TARGET = find_target("ort-cpu-1t")
TASK = TextClassification(("bad", "fine", "good"), max_length=32)
ROWS = [{"text": text} for text in ("a film", "the film was good", "it was never good, and slow.", "fine; why not?")]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_table_is_measured_and_read_back(
    batch_size: int, tiny_classifier: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 3)
    monkeypatch.setattr(latency, "WARMUP_SECONDS", 0.01)
    torch.set_num_threads(1)
    source = tiny_classifier()
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    encoded, size, store = TASK.encode(source, ROWS), dimensions(config), Store(tmp_path / "store")

    def table() -> latency.LatencyTable:
        return latency_table(size, config, TASK, encoded, TARGET, "int8", store=store, grid=32, batch_size=batch_size)

    measured = table()
    assert measured == table()
    assert sorted(measured.costs.heads) == [0, 1, 2, 3, 4]
    assert sorted(measured.costs.neurons) == [0, 32, 64]
    for costs in (measured.costs.heads, measured.costs.neurons):
        assert list(costs.values()) == sorted(costs.values())
    assert measured.costs.total(Widths((4, 1), (0, 32))) > 0
    assert measured.dense_fp32_ms > 0


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_deployed_model_equals_what_the_passes_make(
    precision: Precision,
    tiny_classifier: Callable[..., Path],
    tiny_exported: Callable[..., Artifact],
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    source = tiny_classifier(pruned=True)
    model = load_torch(source, TASK)
    before = structure_of(model)
    made = deploy(model, source, TASK, precision, tmp_path / "deployed")
    assert structure_of(model) == before
    assert made.traits == (frozenset() if precision == "fp32" else {precision})
    made.verify()
    operators = {node.op_type for node in onnx.load(made.file()).graph.node}
    assert ("MatMulInteger" in operators) == (precision == "int8")
    encoded = TASK.encode(made.path, ROWS)
    exported = predict(tiny_exported(pruned=True), TARGET, encoded, work=tmp_path)
    found = predict(made, TARGET, encoded, work=tmp_path)
    tolerance = {"fp32": 1e-6, "fp16": 0.02, "int8": 0.5}[precision]
    assert np.abs(found - exported).max() <= tolerance * max(1.0, np.abs(exported).max())


def test_speedups_are_ratios_to_the_dense_model(
    tiny_classifier: Callable[..., Path], tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    dense, pruned = tiny_exported(), tiny_exported(pruned=True)
    encoded = TASK.encode(tiny_classifier(), ROWS)
    rows = measure_speedup([pruned, dense], dense, encoded, TARGET, work=tmp_path, rounds=3)
    assert len(rows) == 2
    for row in rows:
        assert row.low <= row.value <= row.high
        assert row.value == pytest.approx(row.dense_ms / row.ms)
    assert not list(tmp_path.glob("tmp*"))


def test_a_model_that_cannot_be_timed_is_an_error_with_its_name(
    tiny_classifier: Callable[..., Path], tiny_onnx: Callable[..., Artifact], tmp_path: Path
) -> None:
    good, broken = tiny_onnx("good"), tiny_onnx("broken")
    broken.file().write_bytes(b"not onnx")
    encoded = TASK.encode(tiny_classifier(), ROWS)
    with pytest.raises(RunError, match="could not be timed") as caught:
        measure_speedup([broken], good, encoded, TARGET, work=tmp_path, rounds=3)
    assert "candidate 0" in caught.value.value
