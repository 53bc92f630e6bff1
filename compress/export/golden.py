"""Golden inputs and outputs of an ONNX artifact: built-in examples and the logits that it gave for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifact import Golden
from compress.errors import ModelError
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


def check_longest(folder: Path, task: Task, file: str = "model.onnx") -> None:
    """Demand that the model takes a text of ``task.max_length`` tokens: an ONNX file does not say how many it takes.

    Raises:
        ModelError: it does not.
        MissingCapabilityError: onnxruntime is not installed.
    """
    session = open_session(folder / file)
    names = {value.name for value in session.get_inputs()}
    encoded = task.encode(folder, [{"text": "the " * task.max_length, "text_pair": None}])
    batch = {name: rows for name, rows in encoded.batch([0]).items() if name in names}
    try:
        session.run(["logits"], batch)
    except Exception as error:  # ONNX Runtime raises types of its own
        raise ModelError(
            f"The model cannot take a text of {int(encoded.lengths[0])} tokens.",
            value=str(error).strip().splitlines()[-1],
            fix="Set `max_length:` to what it takes, or put its config.json beside it.",
        ) from error


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
