"""The real MiniLM classifier through export, INT8, FP16 and TensorRT."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.data.encoded import Encoded
from compress.export.golden import open_session
from compress.export.onnx_clean import find_paths, write_onnx
from compress.export.onnx_export import export_onnx
from compress.export.trt_api import missing_trt
from compress.export.trt_build import build_engine
from compress.export.trt_profile import profile_from_lengths
from compress.models.loading import load_torch
from compress.quantization.fp16 import cast_fp16
from compress.quantization.int8 import quantize_dynamic, quantize_static
from compress.tasks.text_classification import TextClassification

SHARED = Path(os.environ.get("MCOMPRESS_SHARED", Path(__file__).parents[3] / "shared"))
MODEL, DATA = SHARED / "models" / "minilm-l6-sst2", SHARED / "data" / "sst2"
TASK = TextClassification(("negative", "positive"), max_length=128)
pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="the shared MiniLM model is not here; set MCOMPRESS_SHARED")


def split(name: str, rows: int | None = None) -> Encoded:
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        examples = [{"text": row["text"], "label": row["label"]} for row in csv.DictReader(file)]
    return TASK.encode(MODEL, examples[:rows])


def right_answers(onnx_file: Path, encoded: Encoded) -> int:
    session = open_session(onnx_file)
    logits = np.concatenate([session.run(["logits"], encoded.batch([i]))[0] for i in range(len(encoded))])
    return int((logits.argmax(axis=1) == encoded.targets).sum())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("minilm") / "model.onnx"
    export_onnx(load_torch(MODEL, TASK), out)
    return out


@pytest.mark.slow
def test_accuracy_and_size_of_each_precision_on_the_whole_test_split(exported: Path, tmp_path: Path) -> None:
    test, calibration = split("test"), split("train", 256)
    source = onnx.load(exported)
    made = {
        "fp16": cast_fp16(source)[0],
        "dynamic": quantize_dynamic(source, reduce_range=True)[0],
        "static": quantize_static(source, calibration, reduce_range=True)[0],
    }
    right, megabytes = {"fp32": right_answers(exported, test)}, {"fp32": exported.stat().st_size / 1e6}
    for name, model in made.items():
        write_onnx(model, tmp_path / f"{name}.onnx")
        right[name] = right_answers(tmp_path / f"{name}.onnx", test)
        megabytes[name] = (tmp_path / f"{name}.onnx").stat().st_size / 1e6
    assert len(test) == 910
    assert abs(right["fp32"] - 808) <= 1
    assert abs(right["fp16"] - right["fp32"]) <= 2
    assert right["dynamic"] >= right["fp32"] - 9
    assert right["static"] >= right["fp32"] - 18
    assert megabytes["fp16"] < 0.51 * megabytes["fp32"]
    assert max(megabytes["dynamic"], megabytes["static"]) < 0.27 * megabytes["fp32"]


def test_real_export_holds_no_path(exported: Path) -> None:
    assert find_paths(onnx.load(exported)) == []
    assert str(MODEL).encode() not in exported.read_bytes()


@pytest.mark.skipif(bool(missing_trt()), reason=missing_trt())
def test_real_engines_build_in_fp32_and_fp16(exported: Path, tmp_path: Path) -> None:
    lengths = split("train", 500).lengths
    profile = profile_from_lengths(["input_ids", "attention_mask", "token_type_ids"], lengths, 128)
    write_onnx(cast_fp16(onnx.load(exported))[0], tmp_path / "fp16.onnx")
    full = build_engine(exported, tmp_path / "fp32.engine", profile)
    half = build_engine(tmp_path / "fp16.onnx", tmp_path / "fp16.engine", profile)
    assert (full["precision"], half["precision"]) == ("fp32-strict", "fp16")
    assert (tmp_path / "fp16.engine").stat().st_size < 0.6 * (tmp_path / "fp32.engine").stat().st_size
