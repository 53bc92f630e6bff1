"""What a torch classifier takes and gives, as the artifact's manifest records it."""

from __future__ import annotations

from pathlib import Path

from compress.artifact import Graph, TensorSpec
from compress.models.loading import WEIGHTS
from compress.tasks.base import Task


def torch_graph(folder: Path, task: Task) -> Graph:
    """Return the signature of a torch model folder: the inputs that the task makes for it, and the logits."""
    logits = TensorSpec(name="logits", dtype="float32", shape=("batch", len(task.labels) or 1))
    return Graph(file=WEIGHTS, inputs=task.inputs(folder), outputs=(logits,))
