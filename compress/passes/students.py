"""What a distillation's student will be, planned from config files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compress.errors import ModelError
from compress.models.counting import encoder_macs, layer_parameters, planned_counts
from compress.models.depth import choose_layers
from compress.models.families import dimensions, family_of
from compress.models.loading import read_config
from compress.models.narrow import narrow_sizes
from compress.passes.base import ModelInfo


def plan_student(
    teacher: ModelInfo, layers: int | Sequence[int] | None, hidden: int | None, folder: Path | None
) -> tuple[ModelInfo, str]:
    """Return the predicted student, and a few words that say which it is.

    Args:
        teacher: what the student is cut out of.
        layers, hidden: of the teacher; see ``StudentConfig``.
        folder: of a foreign model.

    Raises:
        ModelError: the foreign model is not there, or its config.json cannot be read.
        UsageError: the teacher does not have these layers, or not this width.
    """
    if folder is not None:
        return _foreign(folder), folder.name
    words = " and ".join(
        [
            *([] if layers is None else [f"{layers if isinstance(layers, int) else len(layers)} of its layers"]),
            *([] if hidden is None else [f"{hidden} of its features"]),
        ]
    )
    if not teacher.config:
        return replace(teacher, parameters=None, macs=None), words
    size = dimensions(teacher.config)
    kept = size.layers if layers is None else len(choose_layers(layers, size.layers))
    if hidden is None:
        return _shallow(teacher, kept), words
    config = {**teacher.config, **narrow_sizes(teacher.config, hidden)}
    config[family_of(config["model_type"]).layers_key] = kept
    parameters, macs = planned_counts(config)
    return replace(teacher, config=config, parameters=parameters, macs=macs), words


def _shallow(teacher: ModelInfo, kept: int) -> ModelInfo:
    size = dimensions(teacher.config)
    gone = size.layers - kept
    per_layer = encoder_macs(size) // size.layers
    return replace(
        teacher,
        config={**teacher.config, family_of(teacher.config["model_type"]).layers_key: kept},
        parameters=None if teacher.parameters is None else teacher.parameters - gone * layer_parameters(size),
        macs=None if teacher.macs is None else teacher.macs - gone * per_layer,
    )


def _foreign(folder: Path) -> ModelInfo:
    if not (folder / "config.json").is_file():
        raise ModelError(
            "The student is not there, or has no config.json.",
            value=folder.name,
            fix="Give the folder of a Hugging Face model: `student: {model: PATH}`.",
        )
    found = read_config(folder)
    parameters, macs = planned_counts(found)
    return ModelInfo("torch", config=found, parameters=parameters, macs=macs)
