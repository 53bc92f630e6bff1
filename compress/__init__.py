"""mcompress: fine-tuned models, small and fast, with the proof.

``import compress`` is cheap: torch, onnx and every runtime are imported where they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Artifact": "compress.artifact",
    "CompressError": "compress.errors",
    "Predictor": "compress.predictor",
    "Recipe": "compress.recipe",
    "RunResult": "compress.api",
    "Store": "compress.store",
    "Target": "compress.runtimes.target",
    "load": "compress.predictor",
    "load_model": "compress.predictor",
    "load_recipe": "compress.recipe",
    "open_artifact": "compress.artifact",
    "run": "compress.api",
}

__all__ = [
    "Artifact",
    "CompressError",
    "Predictor",
    "Recipe",
    "RunResult",
    "Store",
    "Target",
    "__version__",
    "load",
    "load_model",
    "load_recipe",
    "open_artifact",
    "run",
]

if TYPE_CHECKING:
    from compress.api import RunResult, run
    from compress.artifact import Artifact, open_artifact
    from compress.errors import CompressError
    from compress.predictor import Predictor, load, load_model
    from compress.recipe import Recipe, load_recipe
    from compress.runtimes.target import Target
    from compress.store import Store


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'compress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
