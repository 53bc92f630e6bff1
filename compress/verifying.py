"""Check an exported folder on the machine at hand: ``python verify.py [FOLDER] [--digests]``.

Compares every file with SHA256SUMS and with the manifest, then runs the golden inputs and compares the outputs with
those that were recorded when the model was made. Needs numpy and the model's runtime (onnxruntime, openvino, or torch
with transformers); Python 3.9 or newer. Reads nothing outside the folder and sends nothing anywhere. Exit codes: 0 all
is well, 1 something differs, 2 not such a folder, 3 the golden outputs could not be run. Made by mcompress, Apache-2.0.
"""

import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # that is the folder to be checked: nothing in it is imported

import hashlib
import importlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

SUMS = "SHA256SUMS"
_MANIFEST = re.compile(r"artifact(\.[\w.-]+)?\.json")
_DAMAGED = (OSError, ValueError, RuntimeError)
"""What reading an odd folder may raise: names that no file can have, links in a circle, bytes that are no text."""
_HALF = {"fp16": 2e-2, "bf16": 1e-1}
"""Trait -> share of the largest output by which golden outputs may differ: 8 bits round 8 times as coarsely as 11."""
_LEAST_COSINE = 0.95
_RUNTIMES = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",), "torch": ("transformers",)}
"""Kind -> modules that can run it, the usual one first."""
_AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}
_STRICT = {
    "local_files_only": True,
    "trust_remote_code": False,
    "use_safetensors": True,
    "attn_implementation": "eager",
}
"""What a folder's config.json may not ask for: downloads, code, pickles, kernels of others."""
Run = Callable[[Mapping[str, Any]], Any]
"""Input name -> array, to (n, labels) outputs."""


def verify(folder: Path, *, run: bool = True) -> dict[str, Any]:
    """Check a folder.

    Args:
        folder: what ``mcompress export`` wrote, or any artifact.
        run: whether to run the golden inputs as well.

    Returns:
        ``sums``: {"files", "problems", "unlisted"}, null where there is no SHA256SUMS; ``artifacts``: one
        {"manifest", "kind", "traits", "problems", "golden", "golden_status"} for each manifest, whose status is ok,
        differs, missing (no runtime here), none (nothing recorded) or skipped.
    """
    manifests = sorted(path.name for path in folder.iterdir() if is_manifest(path.name) and path.is_file())
    return {"sums": _check_sums(folder), "artifacts": [_check_artifact(folder, name, run) for name in manifests]}


def is_manifest(name: str) -> bool:
    """Say whether a file has the name of a manifest: ``artifact.json``, or ``artifact.fp16.json`` beside it."""
    return _MANIFEST.fullmatch(name) is not None


def exit_code(record: Mapping[str, Any]) -> int:
    """Return 0, 1, 2 or 3, as the head of this file says."""
    artifacts = record["artifacts"]
    if not (record["sums"] or {"files": 0})["files"] and not artifacts:
        return 2
    problems = any(part["problems"] for part in (record["sums"] or {"problems": ()}, *artifacts))
    if problems or any(artifact["golden_status"] == "differs" for artifact in artifacts):
        return 1
    return 3 if any(artifact["golden_status"] == "missing" for artifact in artifacts) else 0


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the result for people; nothing in a folder's names drives a terminal."""
    for line in _lines(record):
        yield "".join(character if character.isprintable() else "?" for character in line)


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    sums = record["sums"]
    if sums is not None:
        yield f"{SUMS}: {'FAILED' if sums['problems'] else 'ok'}, {sums['files']} files"
        yield from (f"  {problem}" for problem in sums["problems"])
        yield from (f"  not listed, not checked: {name}" for name in sums["unlisted"])
    for artifact in record["artifacts"]:
        traits = "".join(f" {trait}" for trait in artifact["traits"])
        yield f"{artifact['manifest']}: {'FAILED' if artifact['problems'] else 'ok'}, {artifact['kind']}{traits}"
        yield from (f"  {problem}" for problem in artifact["problems"])
        if artifact["golden"]:
            yield f"  golden outputs: {artifact['golden']}"


def difference(found: Any, wanted: Any, traits: frozenset[str]) -> str:
    """Return how far outputs are from the golden ones if it is too far, else the empty string.

    Float32 must agree to 1e-3 of the largest output (at least 1e-3), FP16 to 2e-2 of it, BF16 to 1e-1. Integer
    kernels round differently on different CPUs: there the mean cosine must be at least 0.95.

    Args:
        found, wanted: (n, labels) floats.
        traits: of the artifact.
    """
    import numpy as np

    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    if found.shape != wanted.shape:
        return f"outputs of shape {found.shape} instead of {wanted.shape}"
    if traits & {"int8", "int4"}:
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        cosine = ((found * wanted).sum(axis=1) / np.maximum(norms, 1e-12)).mean()
        return "" if cosine >= _LEAST_COSINE else f"mean cosine {cosine:.3f}, not {_LEAST_COSINE} or more"
    gap, size = np.abs(found - wanted).max(), np.abs(wanted).max()
    allowed = next((share for trait, share in _HALF.items() if trait in traits), 1e-3) * max(1.0, size)
    return "" if gap <= allowed else f"largest difference {gap:.3g} where outputs reach {size:.3g}"


def run_golden(inputs: Mapping[str, Any], dtypes: Mapping[str, str], traits: frozenset[str], run: Run) -> Any:
    """Run golden inputs and return the outputs, (n, labels).

    Scales of dynamic INT8 depend on what else is in the batch and on padding: there rows run at their real length.

    Args:
        inputs: name -> rows, as the manifest holds them.
        dtypes: input name -> its type.
        traits: of the artifact.
        run: what runs a batch.
    """
    import numpy as np

    batch = {name: np.array(rows, dtype=dtypes.get(name, "int64")) for name, rows in inputs.items()}
    if not traits & {"int8", "int4"}:
        return run(batch)
    mask, outputs = batch.get("attention_mask"), []
    for i in range(len(next(iter(batch.values())))):
        row = {name: array[i : i + 1] for name, array in batch.items()}
        if mask is not None:
            row = {name: array[:, : int(mask[i].sum())] for name, array in row.items()}
        outputs.append(run(row))
    return np.concatenate(outputs)


def _check_sums(folder: Path) -> "dict[str, Any] | None":
    if not (folder / SUMS).is_file():
        return None
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except _DAMAGED as error:
        return {"files": 0, "problems": [f"{SUMS} cannot be read: {error}"], "unlisted": []}
    listed, problems = {}, []
    for line in text.splitlines():
        digest, mark, name = line.partition("  ")
        if not mark or len(digest) != 64 or not name:
            problems.append(f"not a line of checksums: {line[:80]!r}")
        else:
            listed[name] = digest
    if not listed:
        problems.append(f"{SUMS} lists no file")
    problems += [problem for name in listed if (problem := _check_file(folder, name, listed[name]))]
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    there = {path.relative_to(folder).as_posix() for path in found} - {SUMS}
    return {"files": len(listed), "problems": problems, "unlisted": sorted(there - set(listed))}


def _check_file(folder: Path, name: str, digest: str) -> str:
    path, found = folder / name, hashlib.sha256()
    try:
        if ".." in PurePosixPath(name).parts or not path.resolve().is_relative_to(folder.resolve()):
            return f"leads outside the folder: {name}"
        if not path.is_file():
            return f"missing: {name}"
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
    except _DAMAGED as error:
        return f"cannot be read: {name[:80]}: {error}"
    return "" if found.hexdigest() == digest else f"changed: {name}"


def _check_artifact(folder: Path, name: str, run: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"manifest": name, "kind": "?", "traits": [], "problems": [], "golden": ""}
    record["golden_status"] = "skipped"
    try:
        manifest = json.loads((folder / name).read_text(encoding="utf-8"))
        record["kind"], record["traits"] = str(manifest["kind"]), [str(trait) for trait in manifest["traits"]]
        files = {str(file): str(entry["sha256"]) for file, entry in manifest["files"].items()}
        graph = manifest["graphs"]["model"]
        dtypes = {str(entry["name"]): str(entry["dtype"]) for entry in graph["inputs"]}
        file = str(graph["file"])
    except (KeyError, TypeError, AttributeError, *_DAMAGED) as error:
        record["problems"] = [f"the manifest cannot be read: {type(error).__name__}: {error}"]
        return record
    record["problems"] = [problem for each, digest in files.items() if (problem := _check_file(folder, each, digest))]
    if file not in files:
        record["problems"].append(f"the graph's file is not among the files: {file}")
    if run and not record["problems"]:  # what was changed is not opened
        traits = frozenset(record["traits"])
        record["golden_status"], record["golden"] = _check_golden(
            folder, manifest, record["kind"], traits, file, dtypes
        )
    return record


def _check_golden(
    folder: Path,
    manifest: Mapping[str, Any],
    kind: str,
    traits: frozenset[str],
    file: str,
    dtypes: dict[str, str],
) -> tuple[str, str]:
    golden = manifest.get("golden")
    if golden is None:
        return "none", "none on record"
    if "custom-code" in traits:
        return "missing", "not run: it needs Python code of the model's author, and nobody's code runs here"
    modules = _RUNTIMES.get(kind, ())
    module = next((name for name in modules if _is_here(name)), None)
    if module is None:
        return "missing", f"not run: install {' or '.join(modules) or f'a runtime for {kind}'}"
    if module == "onnxruntime" and "bf16" in traits:
        return "missing", "not run: ONNX Runtime has no BF16 kernels for CPUs"
    try:
        output, wanted = next(iter(golden["outputs"].items()))
        run = _OPENERS[module](folder, file, str(manifest["task"]["name"]), output)
        found = run_golden(golden["inputs"], dtypes, traits, run)
        gap = difference(found, wanted, traits)
    except ImportError as error:
        return "missing", f"not run: {error}"
    except Exception as error:
        return "differs", f"{module} failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    version = getattr(importlib.import_module(module), "__version__", "")
    return ("differs" if gap else "ok"), f"{gap or 'reproduced'} ({module} {version})"


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _open_onnxruntime(folder: Path, file: str, task: str, output: str) -> Run:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda batch: session.run([output], {name: batch[name] for name in names})[0]


def _open_openvino(folder: Path, file: str, task: str, output: str) -> Run:
    import openvino

    model = openvino.Core().compile_model(str(folder / file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = {port.any_name for port in model.inputs}
    return lambda batch: model({name: array for name, array in batch.items() if name in names})[output]


def _open_transformers(folder: Path, file: str, task: str, output: str) -> Run:
    import torch
    import transformers

    if (folder / "structure.json").is_file():
        # its layers have different widths, which config.json cannot say
        model: Any = importlib.import_module("compress").load_model(folder)
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        auto = getattr(transformers, _AUTO.get(task) or config["architectures"][0])  # the task may be a plug-in's
        model = auto.from_pretrained(folder, **_STRICT, dtype=torch.float32)
    model = model.eval()

    def run(batch: Mapping[str, Any]) -> Any:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in batch.items()})[output].numpy()

    return run


_OPENERS = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino, "transformers": _open_transformers}


def main(words: list[str]) -> int:
    """Check the folder that the command line names; without one, that of this file."""
    named = [word for word in words if word != "--digests"]
    folder = Path(named[0]) if named else Path(__file__).resolve().parent
    if len(named) > 1 or not folder.is_dir():
        print("usage: python verify.py [FOLDER] [--digests]", file=sys.stderr)
        return 2
    record = verify(folder, run="--digests" not in words)
    code = exit_code(record)
    for line in lines(record):
        print(line.encode("ascii", "backslashreplace").decode())
    print({0: "all is well", 1: "FAILED", 2: "no SHA256SUMS and no artifact.json here"}.get(code, "not all was run"))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
