"""OpenVINO IR: ``openvino_model.xml`` and ``.bin``, converted from the ONNX artifact and compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compress.artifact import Artifact, Golden, Kind
from compress.errors import MissingCapabilityError, ParityError
from compress.passes.base import library_versions
from compress.runtimes.openvino import read_model
from compress.shipping.layouts import Laid, Layout
from compress.shipping.plain import copy_companions, derive, variant_of
from compress.shipping.shipment import Shipment
from compress.verifying import difference, run_golden

if TYPE_CHECKING:
    import openvino

FILE = "openvino_model.xml"


class OpenvinoLayout(Layout):
    """The IR computes what the ONNX file does: the golden outputs of the one must be those of the other."""

    name: ClassVar[str] = "openvino"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    what: ClassVar[str] = "OpenVINO IR, openvino_model.xml and .bin"

    def write(self, shipment: Shipment, out: Path) -> Laid:
        if find_spec("openvino") is None:
            raise MissingCapabilityError(
                "The layout 'openvino' is converted by OpenVINO, which is not installed.",
                fix="pip install 'mcompress[openvino]'",
            )
        import openvino

        source = shipment.artifact
        companions = copy_companions(shipment, out)
        core = openvino.Core()
        openvino.save_model(read_model(core, source.file()), out / FILE, compress_to_fp16=False)
        golden = _compared(core, source, out / FILE)
        made = derive(
            source,
            out,
            (*companions, FILE, Path(FILE).with_suffix(".bin").name),
            layout=self.name,
            graph=FILE,
            kind="openvino",
            golden=golden,
            versions=dict(source.manifest.versions) | library_versions(("openvino",)),
        )
        return Laid(variants=(variant_of(made, shipment.step, FILE),), kind="openvino")


def _compared(core: openvino.Core, source: Artifact, file: Path) -> Golden | None:
    """Run the golden inputs on the saved IR and return what came out.

    Raises:
        ParityError: it is not what the ONNX file gave.
    """
    golden = source.manifest.golden
    if golden is None:
        return None
    compiled: Any = core.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    output, wanted = next(iter(golden.outputs.items()))
    names = {port.any_name for port in compiled.inputs}

    def run(batch: Mapping[str, Any]) -> np.ndarray:
        return np.array(compiled({name: array for name, array in batch.items() if name in names})[output])

    dtypes = {spec.name: spec.dtype for spec in source.manifest.graphs["model"].inputs}
    found = run_golden(golden.inputs, dtypes, source.traits, run)
    if gap := difference(found, wanted, source.traits):
        raise ParityError(
            "OpenVINO does not give the outputs of the ONNX file.",
            value=gap,
            fix="Ship the ONNX file, or quantize for OpenVINO (`target: openvino-cpu-1t`).",
        )
    return Golden(inputs=golden.inputs, outputs={output: found.astype(np.float32).tolist()})
