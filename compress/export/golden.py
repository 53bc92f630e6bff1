"""Golden inputs and outputs of an ONNX artifact: built-in examples and the logits that it gave for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifact import Golden
from compress.models.golden import golden_batch, golden_inputs
from compress.runtimes.onnxruntime import OnnxRuntime
from compress.runtimes.onnxruntime_package import import_onnxruntime
from compress.runtimes.target import Target

if TYPE_CHECKING:
    import onnxruntime

    from compress.tasks.base import Task


def missing_onnxruntime() -> tuple[str, ...]:
    """Return the sentence for ``Plan.missing`` where ONNX Runtime cannot run on the CPU. Does not import it."""
    found = OnnxRuntime().available(Target(name="onnxruntime-cpu", runtime="onnxruntime"))
    return () if found.ok else (found.reason,)


def golden_onnx(folder: Path, task: Task, file: str = "model.onnx") -> Golden:
    """Run the built-in examples through ``folder/model.onnx`` on one CPU thread.

    Args:
        folder: an ONNX payload: the model and its tokenizer or preprocessor.
        task: gives and encodes the examples.
        file: name of the ONNX file in the folder.

    Raises:
        MissingCapabilityError: onnxruntime is not installed, or two distributions of it are.
    """
    session = open_session(folder / file)
    names = {value.name for value in session.get_inputs()}
    batch = {name: rows for name, rows in golden_batch(folder, task).items() if name in names}
    (logits,) = session.run(["logits"], batch)
    return Golden(inputs=golden_inputs(batch), outputs={"logits": logits.astype("float32").tolist()})


def open_session(onnx_file: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open an ONNX file with ONNX Runtime on the CPU.

    Raises:
        MissingCapabilityError: onnxruntime is not installed, or two distributions of it are.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
