"""Layouts that are an artifact's own files: as it was measured, for Transformers, for TensorRT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from compress.artifact import MANIFEST, Artifact, Kind, PassRecord, create_artifact
from compress.errors import ModelError, UsageError
from compress.models.loading import COMPANIONS, CONFIG
from compress.models.structure import STRUCTURE
from compress.reading import read_json
from compress.report.card import Variant
from compress.shipping.layouts import Laid, Layout
from compress.shipping.shipment import LAYOUT, Shipment

_TOKENIZER_CONFIG = "tokenizer_config.json"
_EVERY: frozenset[Kind] = frozenset({"torch", "onnx", "openvino", "tensorrt", "executorch"})


class ArtifactLayout(Layout):
    """The artifact as it was measured, with the same digest."""

    name: ClassVar[str] = "artifact"
    kinds: ClassVar[frozenset[Kind]] = _EVERY
    what: ClassVar[str] = "the artifact as it was measured, byte for byte"

    def write(self, shipment: Shipment, out: Path) -> Laid:
        copy(shipment.artifact.path, out, (*shipment.artifact.manifest.files, MANIFEST))
        return Laid(variants=(variant_of(shipment.artifact, shipment.step),))


class TensorrtLayout(ArtifactLayout):
    """An engine, its record and the ONNX file that it was built from."""

    name: ClassVar[str] = "tensorrt"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"tensorrt"})
    what: ClassVar[str] = "raw engine, its record, and its ONNX file"


class TransformersLayout(Layout):
    """What ``from_pretrained`` opens: weights, config with labels, tokenizer that truncates as the run did."""

    name: ClassVar[str] = "transformers"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"torch"})
    what: ClassVar[str] = "from_pretrained of Transformers"

    def write(self, shipment: Shipment, out: Path) -> Laid:
        source = shipment.artifact
        if STRUCTURE in source.manifest.files:
            raise UsageError(
                "The layers of this model have different widths, which config.json cannot say.",
                value=shipment.step or source.path.name,
                fix="Ship its ONNX export (`export: {format: onnx}`), or use `--layout artifact`, which "
                "`compress.load_model` opens.",
            )
        names = tuple(source.manifest.files)
        copy(source.path, out, names)
        set_longest(out, shipment)
        derive(source, out, names, layout=self.name, graph=source.manifest.graphs["model"].file)
        return Laid(variants=(variant_of(source, shipment.step),))


def copy(source: Path, out: Path, names: Iterable[str]) -> None:
    """Copy files of one folder to the same places in another."""
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)


def copy_companions(shipment: Shipment, out: Path) -> tuple[str, ...]:
    """Copy configuration and tokenizer or preprocessor, let the tokenizer truncate as the run did; return the names."""
    names = tuple(name for name in (CONFIG, *COMPANIONS) if name in shipment.artifact.manifest.files)
    copy(shipment.artifact.path, out, names)
    set_longest(out, shipment)
    return names


def variant_of(artifact: Artifact, step: str | None, file: str | None = None) -> Variant:
    """Return the card's line about one model of a folder."""
    return Variant(
        file=file or artifact.manifest.graphs["model"].file,
        step=step or "",
        traits=artifact.manifest.traits,
        size_bytes=artifact.size_bytes,
    )


def set_longest(folder: Path, shipment: Shipment) -> None:
    """Let the tokenizer of a folder truncate where the run did, when a stock loader is asked to truncate."""
    path = folder / _TOKENIZER_CONFIG
    if shipment.max_length is None or not path.is_file():
        return
    try:
        config = dict(read_json(path)) | {"model_max_length": shipment.max_length}
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{path.name} cannot be read.", value=f"{shipment.artifact.path.name}: {error}", fix="Save the model again."
        ) from error
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def derive(
    source: Artifact,
    out: Path,
    names: tuple[str, ...],
    *,
    layout: str,
    graph: str,
    name: str = MANIFEST,
    **changes: Any,
) -> Artifact:
    """Record files of a folder as the same model in another layout; its parent is the artifact that was measured.

    Args:
        source: the measured artifact.
        out: the folder.
        names: the files of this model in it.
        layout: name of the layout.
        graph: the file that holds the graph.
        name: of the manifest.
        **changes: fields of the manifest that are not the source's.
    """
    manifest = source.manifest
    first = manifest.graphs["model"].model_copy(update={"file": graph})
    fields: dict[str, Any] = {
        key: getattr(manifest, key)
        for key in ("kind", "task", "traits", "parameters", "macs", "versions", "seed", "data", "golden")
    }
    fields |= {
        "graphs": {"model": first},
        "parents": {"model": source.digest},
        "made_by": PassRecord(name=LAYOUT, version=1, config={"layout": layout}),
    }
    return create_artifact(out, only=names, name=name, **fields | changes)
