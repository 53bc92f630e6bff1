"""The contract of a layout: how an artifact's files lie in a folder, for one loader or server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from compress.artifact import Kind
from compress.errors import UsageError
from compress.registry import Registry
from compress.report.card import Load, Variant
from compress.shipping.shipment import Shipment


@dataclass(frozen=True)
class Laid:
    """What a layout wrote.

    Attributes:
        loads: snippets that open it, for the card; none = those of the artifact's kind.
        variants: the models in the folder, the one that was asked for first.
        kind: of the artifact in the folder, where it is not that of the shipment.
        left_out: sentences: what could have been there and is not, and why.
    """

    loads: tuple[Load, ...] = ()
    variants: tuple[Variant, ...] = ()
    left_out: tuple[str, ...] = ()
    kind: Kind | None = None


class Layout(ABC):
    """One way to lay out a folder. A subclass is a module here and a test."""

    name: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    """Kinds of artifacts that it takes."""
    what: ClassVar[str]
    """For whom, in a few words."""

    @abstractmethod
    def write(self, shipment: Shipment, out: Path) -> Laid:
        """Fill an empty folder; card, record, checksums and ``verify.py`` are added by ``shipping.writing``.

        Raises:
            UsageError: this artifact cannot be laid out so; the fix names a layout that can hold it.
            MissingCapabilityError: a package that it needs is not installed.
        """

    def require(self, shipment: Shipment) -> None:
        """Refuse an artifact of another kind.

        Raises:
            UsageError: it is one.
        """
        kind = shipment.artifact.kind
        if kind in self.kinds:
            return
        steps = shipment.report.steps if shipment.report else ()
        fitting = [step.id for step in steps if step.kind in self.kinds and step.status == "done"]
        named = ", ".join(fitting[:8])
        raise UsageError(
            f"The layout {self.name!r} takes artifacts of kind {' or '.join(sorted(self.kinds))}.",
            value=f"{shipment.step or shipment.artifact.path.name} is {kind}",
            fix=f"Name a step that made one: {named}."
            if fitting
            else "Choose another layout, or add a step that makes one (`export: {format: onnx}`).",
        )


layouts: Registry[Layout] = Registry("layout", Layout)  # type: ignore[type-abstract]
for _name, _class in {
    "artifact": "plain:ArtifactLayout",
    "transformers": "plain:TransformersLayout",
    "tensorrt": "plain:TensorrtLayout",
    "onnxruntime": "onnx_files:OnnxruntimeLayout",
    "transformers.js": "onnx_files:TransformersJsLayout",
    "openvino": "openvino_ir:OpenvinoLayout",
    "kserve": "serving.kserve:KserveLayout",
    "triton": "serving.triton:TritonLayout",
}.items():
    layouts.register(_name, f"compress.shipping.{_class}")
