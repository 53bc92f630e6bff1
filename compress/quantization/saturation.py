"""Find out whether 8-bit products saturate on this machine, and what that does to a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.children import die_with_parent
from compress.data.encoded import Encoded
from compress.errors import RunError
from compress.quantization.isa import isa_of
from compress.runtimes.isa_cap import capped_environment
from compress.runtimes.onnxruntime_package import import_onnxruntime
from compress.runtimes.target import Target

if TYPE_CHECKING:
    import onnx

PRECISE = "session.x64quantprecision"
"""ONNX Runtime's session option that multiplies without saturation on x86 before VNNI, at some cost; elsewhere it
changes nothing."""
_TERMS, _WIDTH = 64, 32
_BITS: tuple[Literal[8], Literal[7]] = (8, 7)
_ENCODED = "encoded.npz"


def kernel_error(*, precise: bool = False) -> int:
    """Return how far a sum of 64 products 255 * 127 is from the truth in ONNX Runtime on this machine.

    Instructions that add pairs of 8-bit products in 16 bits stop at 32,767 instead of 64,770.

    Args:
        precise: whether to set the session option that avoids it.
    """
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.full((_TERMS, _WIDTH), 127, dtype=np.int8), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, _TERMS])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, _WIDTH])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = _session(model.SerializeToString(), precise=precise)
    found = session.run(None, {"x": np.full((1, _TERMS), 255, dtype=np.uint8)})[0]
    return int(np.abs(np.asarray(found, dtype=np.int64) - 255 * 127 * _TERMS).max())


def probe(
    write: Callable[[Literal[7, 8]], onnx.ModelProto],
    encoded: Encoded,
    weight_bits: Literal[7, 8],
    target: Target | None = None,
) -> dict[str, Any]:
    """Run a model with 8-bit and 7-bit weights, each with and without ONNX Runtime's exact products.

    Args:
        write: returns the model with weights of so many bits.
        encoded: examples to run.
        weight_bits: what the model that is delivered has.
        target: whose cap on instructions binds the runs, which then happen in a process of their own.

    Returns:
        The record of ``compress.report.model.Saturation``: ``saturates`` by the kernel's own error; one row per number
        of bits with the largest difference of an output and the number of decisions that exact products change.

    Raises:
        RunError: that process failed.
    """
    with tempfile.TemporaryDirectory(prefix="mcompress-") as name:
        folder = Path(name)
        encoded.save(folder / _ENCODED)
        for bits in _BITS:
            (folder / f"{bits}.onnx").write_bytes(write(bits).SerializeToString())
        found = _run_files(folder) if target is None or target.isa is None else _run_capped(folder, target)
    return {
        "isa": isa_of(target),
        "saturates": found["error"] > 0,
        "error": found["error"],
        "remedy": _remedy(found["error"], weight_bits),
        "rows": found["rows"],
    }


def _run_capped(folder: Path, target: Target) -> dict[str, Any]:
    command = [sys.executable, "-m", "compress.quantization.saturation", str(folder)]
    # The cap is that of ONNX Runtime's kernels, which the rows are about, whatever the target's own runtime is.
    environment = os.environ | capped_environment(target.model_copy(update={"runtime": "onnxruntime"}))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(
            "The model could not be run with capped instructions.",
            value=(done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1],
            fix="Quantize for a target without `isa`, with `reduce_range: true`.",
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _run_files(folder: Path) -> dict[str, Any]:
    """Return the error of the kernel, and the rows of ``probe`` for the models in a folder."""
    encoded, rows = Encoded.load(folder / _ENCODED), []
    for bits in _BITS:
        model = (folder / f"{bits}.onnx").read_bytes()
        plain, exact = (_outputs(_session(model, precise=precise), encoded) for precise in (False, True))
        rows.append(
            {
                "weight_bits": bits,
                "max_difference": float(np.abs(plain - exact).max()),
                "largest_output": float(np.abs(exact).max()),
                "decisions_changed": int(np.sum(plain.argmax(axis=-1) != exact.argmax(axis=-1))),
                "examples": len(encoded),
            }
        )
    return {"error": kernel_error(), "rows": rows}


def _remedy(error: int, weight_bits: int) -> str:
    if weight_bits == 7:
        needed = "" if error else ", which this machine does not need"
        return f"weights keep to 7 bits, so that no pair of products can saturate{needed}"
    if not error:
        return "none needed: products are added in 32 bits"
    return f"none: weights use 8 bits as asked for; set {PRECISE}=1 when opening a session, or reduce_range"


def _session(model: bytes, *, precise: bool) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(PRECISE, "1" if precise else "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _outputs(session: Any, encoded: Encoded) -> np.ndarray:
    wanted = {value.name for value in session.get_inputs()}
    feeds = ({n: a for n, a in encoded.batch([i]).items() if n in wanted} for i in range(len(encoded)))
    return np.concatenate([np.asarray(session.run(None, feed)[0]) for feed in feeds])


if __name__ == "__main__":
    die_with_parent()
    print(json.dumps(_run_files(Path(sys.argv[1]))))
