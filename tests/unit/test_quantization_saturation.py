from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from compress.artifact import Artifact
from compress.quantization.calibration import calibrate
from compress.quantization.isa import isa_flags, isa_name, needs_reduced_range
from compress.quantization.rules import place, rules_for
from compress.quantization.saturation import PRECISE, kernel_error, probe
from compress.quantization.writing import Int8Format, write_int8
from compress.tasks.text_classification import GOLDEN_TEXTS, TextClassification

QEMU = shutil.which("qemu-x86_64-static")
STOPS_AT = 32_767
"""Where a sum of two products in 16 bits ends."""


def test_the_kernel_saturates_exactly_where_the_rules_say_that_it_does() -> None:
    assert (kernel_error() > 0) == needs_reduced_range(isa_flags())[0]
    assert kernel_error(precise=True) == 0


@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64-static is not installed: AVX2 cannot be emulated")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86 interpreter to emulate an older one")
def test_an_emulated_cpu_without_vnni_saturates_and_the_option_avoids_it() -> None:
    code = "from compress.quantization.saturation import kernel_error as e; print(e(), e(precise=True))"
    command = [str(QEMU), "-cpu", "Haswell", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, precise = (int(word) for word in done.stdout.split())
    assert found == 32 * (2 * 255 * 127 - STOPS_AT)
    assert precise == 0


@pytest.mark.parametrize("form", ["qdq", "integer"])
@pytest.mark.parametrize("bits", [7, 8])
def test_a_model_runs_with_and_without_exact_products(
    tiny_exported: Callable[..., Artifact], form: str, bits: int
) -> None:
    artifact = tiny_exported()
    task = TextClassification(("bad", "fine", "good"), max_length=32)
    encoded = task.encode(artifact.path, [{"text": text} for text in GOLDEN_TEXTS])
    model = onnx.load(artifact.file())
    placed = place(model, rules_for("onnxruntime"))
    tensors = [p.product.input for p in placed if p.precision == "int8" and p.product and p.product.input]
    ranges = calibrate(model, encoded, tensors, histograms=False).ranges("minmax")

    def write(weight_bits: int) -> onnx.ModelProto:
        return write_int8(model, placed, ranges, Int8Format(form=form, weight_bits=weight_bits))  # type: ignore[arg-type]

    found = probe(write, encoded, bits)  # type: ignore[arg-type]
    assert found["isa"] == isa_name()
    assert [row["weight_bits"] for row in found["rows"]] == [8, 7]
    seven = found["rows"][1]
    assert seven["max_difference"] <= 0.01 * seven["largest_output"], "7 bits cannot saturate"
    assert np.isfinite(found["rows"][0]["max_difference"])
    if bits == 7:
        assert "7 bits" in found["remedy"]
    elif found["saturates"]:
        assert PRECISE in found["remedy"]
    else:
        assert "none needed" in found["remedy"]
