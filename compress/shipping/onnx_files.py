"""ONNX files under the names that ONNX Runtime's users, Optimum and transformers.js know, several in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from compress.artifact import MANIFEST, Artifact, Kind
from compress.errors import UsageError
from compress.models.loading import COMPANIONS, CONFIG, read_config
from compress.report.card import Load
from compress.shipping.layouts import Laid, Layout
from compress.shipping.plain import copy_companions, derive, variant_of
from compress.shipping.shipment import Shipment

_SUFFIXES = (("int8", "_quantized"), ("int4", "_q4"), ("fp16", "_fp16"), ("bf16", "_bf16"))
"""Trait -> what follows ``model`` in the name; the first that fits, plain float32 has none."""
_DTYPES = {"": "fp32", "_quantized": "q8", "_q4": "q4", "_fp16": "fp16"}
"""The end of a name -> what transformers.js calls it."""
_ORT = {
    "text-classification": "ORTModelForSequenceClassification",
    "image-classification": "ORTModelForImageClassification",
}


class OnnxruntimeLayout(Layout):
    """``model.onnx``, ``model_quantized.onnx``, ``model_fp16.onnx``: what the run made of one model, side by side."""

    name: ClassVar[str] = "onnxruntime"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"onnx"})
    what: ClassVar[str] = "model.onnx, model_quantized.onnx, model_fp16.onnx in one folder"
    folder: ClassVar[str] = ""
    """Where the ONNX files lie, with a slash."""

    def write(self, shipment: Shipment, out: Path) -> Laid:
        source = shipment.artifact
        companions = copy_companions(shipment, out)
        variants, left_out = [], [f"{step}: {why}" for step, why in shipment.lost.items()]
        taken: dict[str, str] = {}
        for step, artifact in self._models(shipment):
            file = f"{self.folder}model{suffix_of(artifact)}.onnx"
            if reason := self._why_not(artifact) or (f"{file} is {taken[file]}'s" if file in taken else ""):
                left_out.append(f"{step}: {reason}")
                continue
            taken[file] = step
            (out / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(artifact.file(), out / file)
            name = MANIFEST if artifact is source else f"artifact.{step}.json"
            derive(artifact, out, (*companions, file), layout=self.name, graph=file, name=name)
            variants.append(variant_of(artifact, step, file))
        return Laid(tuple(self._loads(shipment, variants[0].file)), tuple(variants), tuple(left_out))

    def _models(self, shipment: Shipment) -> Iterator[tuple[str, Artifact]]:
        if reason := self._why_not(shipment.artifact):
            raise UsageError(
                f"The layout {self.name!r} cannot hold this model.",
                value=f"{shipment.step or shipment.artifact.path.name}: {reason}",
                fix="Use `--layout artifact`, or name another step.",
            )
        yield shipment.step or "", shipment.artifact
        yield from shipment.siblings.items()

    def _why_not(self, artifact: Artifact) -> str:
        beside = sorted(set(artifact.manifest.files) - {artifact.manifest.graphs["model"].file, CONFIG, *COMPANIONS})
        return f"{beside[0]} lies beside the graph, which knows it by that name" if beside else ""

    def _loads(self, shipment: Shipment, file: str) -> Iterator[Load]:
        yield Load("python", 'import compress\npredictor = compress.load("FOLDER")  # checks every file')
        yield Load("python", f'import onnxruntime\nsession = onnxruntime.InferenceSession("FOLDER/{file}")')
        task = str(shipment.artifact.manifest.task["name"])
        if task in _ORT and _type_of(shipment.artifact):
            model = _ORT[task]
            yield Load(
                "python",
                f"from optimum.onnxruntime import {model}  # pip install optimum-onnx[onnxruntime]\n"
                f'model = {model}.from_pretrained("FOLDER", file_name="{file}")',
            )


class TransformersJsLayout(OnnxruntimeLayout):
    """The ``onnx/`` folder that transformers.js looks into, with config and tokenizer at the top."""

    name: ClassVar[str] = "transformers.js"
    what: ClassVar[str] = "onnx/ folder for transformers.js in browsers and Node.js"
    folder: ClassVar[str] = "onnx/"

    def _why_not(self, artifact: Artifact) -> str:
        if reason := super()._why_not(artifact):
            return reason
        if not _type_of(artifact):
            return "transformers.js needs a config.json with a model_type that it knows, and the model came without one"
        return "" if suffix_of(artifact) in _DTYPES else f"transformers.js knows no {suffix_of(artifact)[1:]} files"

    def _loads(self, shipment: Shipment, file: str) -> Iterator[Load]:
        task, dtype = shipment.artifact.manifest.task["name"], _DTYPES[suffix_of(shipment.artifact)]
        if task in _ORT:
            yield Load(
                "js",
                "import { env, pipeline } from '@huggingface/transformers';\n"
                "env.allowRemoteModels = false;\nenv.localModelPath = 'PARENT_OF_FOLDER';\n"
                f"const ask = await pipeline('{task}', 'NAME_OF_FOLDER', {{ dtype: '{dtype}' }});",
            )
        yield from super()._loads(shipment, file)


def _type_of(artifact: Artifact) -> str:
    """Return what config.json calls the architecture, if it is one of Transformers'."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    found = read_config(artifact.path).get("model_type") if CONFIG in artifact.manifest.files else None
    return found if isinstance(found, str) and found in CONFIG_MAPPING_NAMES else ""


def suffix_of(artifact: Artifact) -> str:
    """Return what follows ``model`` in the name of an ONNX file."""
    return next((suffix for trait, suffix in _SUFFIXES if trait in artifact.traits), "")
