"""Exports: every layout of one small run opens with its stock loader, and ``verify.py`` finds what was changed."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from pydantic import ValidationError
from typer.testing import CliRunner, Result

import compress
from compress.artifact import create_artifact, open_artifact
from compress.cli.app import app
from compress.errors import ModelError
from compress.export.golden import open_session
from compress.models.loading import load_torch
from compress.shipping import writing as shipping
from compress.tasks.base import task_from

TEXTS = ["the film was great", "a dull train , never fine", "not good but not slow and it works"]
BLOCKED = ("compress", "torch", "transformers", "tokenizers", "onnx", "pydantic")
"""What ``verify.py`` of an ONNX folder must do without."""
RUNNER = """
import importlib.abc, runpy, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("No module named " + repr(name))
sys.meta_path.insert(0, Block())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def call(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(autouse=True)
def environment(lab, monkeypatch) -> None:
    for name in ("MCOMPRESS_HOME", "COLUMNS", "OMP_NUM_THREADS", "NO_COLOR"):
        monkeypatch.setenv(name, lab.environment[name])


@pytest.fixture(scope="module")
def shipped(lab, ran, tmp_path_factory) -> Callable[[str], Path]:
    """Return ``shipped(layout)``: the INT8 step of the run in that layout, made once; leave it as it is."""
    root = tmp_path_factory.mktemp("shipped")

    def make(layout: str) -> Path:
        if not (root / layout).exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MCOMPRESS_HOME", str(lab.home))
                shown = call("export", f"{ran}:int8", root / layout, "--layout", layout).stdout
            assert all(len(line) <= 80 or "/" in line for line in shown.splitlines())
        return root / layout

    return make


def logits_of(folder: Path | str) -> np.ndarray:
    with compress.load(folder, threads=1) as predictor:
        return predictor.logits(TEXTS)


def check(folder: Path, *words: str, blocked: tuple[str, ...] = BLOCKED) -> tuple[int, str]:
    """Run a folder's own program where neither our package nor torch can be imported."""
    line = [sys.executable, "-c", RUNNER.format(blocked=set(blocked)), str(folder / "verify.py"), *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_an_export_is_the_measured_artifact_with_card_record_and_checksums(ran, shipped) -> None:
    folder, source = shipped("artifact"), open_artifact(ran / "deliverables" / "int8")
    assert open_artifact(folder).digest == source.digest
    for name in ("report.html", "report.md", "report.json", "recipe.resolved.yaml"):
        assert (folder / "record" / name).read_bytes() == (ran / name).read_bytes()
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    assert card.data.eval_results
    assert "(record/report.html)" in card.content
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {line.split(": ")[0] for line in done.stdout.splitlines()} == files - {"SHA256SUMS"}


def test_the_program_in_an_export_fits_an_old_python(shipped) -> None:
    tree = ast.parse((shipped("artifact") / "verify.py").read_text(encoding="utf-8"), feature_version=(3, 9))
    named = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert named <= {*sys.stdlib_module_names, "numpy", "onnxruntime", "openvino", "torch", "transformers"}


def test_onnx_files_lie_side_by_side_under_the_names_that_stock_loaders_know(ran, shipped) -> None:
    steps = {"": "export", "_quantized": "int8", "_fp16": "fp16"}
    for layout, place in (("onnxruntime", ""), ("transformers.js", "onnx/")):
        folder = shipped(layout)
        assert {path.name for path in (folder / place).glob("*.onnx")} == {f"model{end}.onnx" for end in steps}
        for end, step in steps.items():
            original = ran / "deliverables" / step
            manifest = folder / ("artifact.json" if step == "int8" else f"artifact.{step}.json")
            artifact = open_artifact(manifest)
            assert artifact.manifest.graphs["model"].file == f"{place}model{end}.onnx"
            assert open_session(folder / place / f"model{end}.onnx").get_outputs()[0].name == "logits"
            if original.exists():
                np.testing.assert_array_equal(logits_of(manifest), logits_of(original))
                assert list(artifact.manifest.parents.values()) == [open_artifact(original).digest]
        assert json.loads((folder / "config.json").read_text())["id2label"]["0"] == "bad"
        assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 64
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f'"FOLDER/{place}model_quantized.onnx"' in card
        assert f"| {place}model_fp16.onnx | fp16 | fp16 |" in card
        code, said = check(folder)
        assert (code, said.count("golden outputs: reproduced (onnxruntime")) == (0, 3), said
    assert "dtype: 'q8'" in (shipped("transformers.js") / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_gets_an_ir_that_answers_as_the_onnx_file(ran, tmp_path) -> None:
    import openvino

    folder = tmp_path / "ir"
    call("export", f"{ran}:export", folder, "--layout", "openvino")
    assert openvino.Core().read_model(folder / "openvino_model.xml").input("input_ids").partial_shape.rank == 2
    text = (folder / "openvino_model.xml").read_text(encoding="utf-8")
    assert not any(str(place) in text for place in (ran.parent, tmp_path, Path.home()))
    call("export", f"{ran}:export", tmp_path / "onnx")
    np.testing.assert_allclose(logits_of(folder), logits_of(tmp_path / "onnx"), atol=1e-4)
    code, said = check(folder)
    assert code == 0
    assert "golden outputs: reproduced (openvino" in said
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: openvino" in card
    assert "those of the onnx artifact that it was converted from" in card
    call("export", folder, tmp_path / "again")
    assert 'compile_model("FOLDER/openvino_model.xml"' in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")


def test_transformers_opens_a_torch_model_that_truncates_as_the_run_did(ran, lab, tmp_path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "hub"
    call("export", lab.taken_in(), folder, "--layout", "transformers")
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    tokens = AutoTokenizer.from_pretrained(folder)("fine " * 300, truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape == (1, 64)
    with compress.load(lab.taken_in(), threads=1) as predictor:
        wanted = predictor.logits(["fine " * 300])
    np.testing.assert_allclose(model(**tokens).logits.detach().numpy(), wanted, atol=1e-5)
    assert model.config.id2label[2] == "good"
    assert "reproduced (transformers" in check(folder, blocked=("compress",))[1]


def test_verify_finds_what_was_changed(shipped, tmp_path) -> None:
    def broken(name: str, change: Callable[[Path], Any]) -> Path:
        folder = Path(shutil.copytree(shipped("artifact"), tmp_path / name))
        change(folder)
        return folder

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def answer_otherwise(folder: Path) -> None:
        manifest = json.loads((folder / "artifact.json").read_text())
        rows = manifest["golden"]["outputs"]["logits"]
        manifest["golden"]["outputs"]["logits"] = [[-value for value in row] for row in rows]
        (folder / "artifact.json").write_text(json.dumps(manifest))
        (folder / "SHA256SUMS").unlink()

    def lead_outside(folder: Path) -> None:
        sums = folder / "SHA256SUMS"
        sums.write_text(sums.read_text() + f"{'0' * 64}  ../secret\nnonsense\n")

    cases = {
        "byte": (lambda folder: flip(folder / "model.onnx"), 1, "changed: model.onnx"),
        "gone": (lambda folder: (folder / "tokenizer.json").unlink(), 1, "missing: tokenizer.json"),
        "report": (lambda folder: flip(folder / "record" / "report.html"), 1, "changed: record/report.html"),
        "answers": (answer_otherwise, 1, "mean cosine -"),
        "outside": (lead_outside, 1, "leads outside the folder: ../secret"),
        "more": (lambda folder: (folder / "extra.bin").write_bytes(b"x"), 0, "not listed, not checked: extra.bin"),
    }
    for name, (change, code, text) in cases.items():
        folder = broken(name, change)
        result = call("verify", folder, code=code)
        assert text in result.stdout
        assert check(folder)[0] == code
        assert json.loads(call("verify", folder, "--json", code=code).stdout)["artifacts"][0]["kind"] == "onnx"
    assert call("verify", broken("answers-unrun", answer_otherwise), "--digests").exit_code == 0


def test_a_damaged_sibling_is_left_out_and_said_so(ran, tmp_path) -> None:
    copy = Path(shutil.copytree(ran, tmp_path / "copy"))
    (copy / "deliverables" / "fp16" / "model.onnx").write_bytes(b"damaged")
    shown = call("export", f"{copy}:int8", tmp_path / "out", "--layout", "onnxruntime").stdout
    assert "left out: fp16: The file 'model.onnx' of an artifact is missing or was changed" in " ".join(shown.split())
    assert {path.name for path in (tmp_path / "out").glob("*.onnx")} == {"model.onnx", "model_quantized.onnx"}


def test_nothing_that_opens_a_model_lets_onnx_runtime_report_to_its_makers(shipped, tmp_path) -> None:
    folder = shipped("artifact")
    plain = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    asks = {
        "verify": [str(folder / "verify.py")],
        "load": ["-c", "import sys, compress; compress.load(sys.argv[1], threads=1)('fine')", str(folder)],
    }
    for name, words in asks.items():
        home = tmp_path / name
        home.mkdir()
        places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "MCOMPRESS_HOME": str(home / "store")}
        subprocess.run([sys.executable, *words], env=plain | places, check=True, capture_output=True, timeout=120)
        assert [path.name for path in home.rglob("*") if "Microsoft" in path.parts] == []


def damaged(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        manifest = json.loads((folder / "artifact.json").read_text())
        change(manifest)
        (folder / "artifact.json").write_text(json.dumps(manifest))

    return rewrite


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (lambda folder: (folder / "artifact.d.json").mkdir(), 0, "all is well"),
        (lambda folder: (folder / "artifact_x.json").write_text("{}"), 0, "not listed, not checked: artifact_x.json"),
        (lambda folder: (folder / "onnx").symlink_to("/etc"), 0, "not listed, not checked: onnx"),
        (lambda folder: (folder / "__pycache__").mkdir() or (folder / "__pycache__" / "x.pyc").touch(), 0, "x.pyc"),
        (lambda folder: (folder / "artifact.json").write_text("[" * 100_000), 1, "cannot be read"),
        (lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff"), 1, "SHA256SUMS cannot be read"),
        (lambda folder: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  a\0b\n"), 1, "FAILED"),
        (lambda folder: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  {'n' * 5000}\n"), 1, "FAILED"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), 1, "lists no file"),
        (damaged(lambda manifest: manifest.update(traits=[{}], kind=[])), 1, "artifact.json"),
        (damaged(lambda manifest: manifest.update(traits=["\x1b[2K\rfine"])), 1, "?[2K?fine"),
    ],
)
def test_verify_stands_odd_folders(shipped, tmp_path, change: Any, code: int, text: str) -> None:
    folder = Path(shutil.copytree(shipped("artifact"), tmp_path / "odd"))
    change(folder)
    found, said = check(folder, "--digests")
    assert (found, text in said) == (code, True), said
    assert call("verify", folder, "--digests").exit_code == code if code == 0 else True
    assert "\x1b" not in said


def test_nothing_in_a_folder_is_imported_by_its_own_program(shipped, tmp_path) -> None:
    folder = Path(shutil.copytree(shipped("artifact"), tmp_path / "shadow"))
    for name in ("hashlib", "json", "re", "numpy", "onnxruntime", "collections", "__future__"):
        (folder / f"{name}.py").write_text("print('EVIL')")
    for words in ([str(folder / "verify.py")], ["verify.py"]):
        done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=120)
        assert (done.returncode, "EVIL" in done.stdout + done.stderr) == (0, False), done.stderr


def test_an_empty_list_of_checksums_is_nothing_to_check(tmp_path) -> None:
    (tmp_path / "SHA256SUMS").touch()
    (tmp_path / "model.onnx").touch()
    assert "nothing to check" in call("verify", tmp_path, code=2).stderr


def test_config_json_asks_for_no_kernel_and_no_pickle(ran, lab, tmp_path) -> None:
    call("export", lab.taken_in(), tmp_path / "hub", "--layout", "transformers")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    foreign = Path(shutil.copytree(tmp_path / "hub", tmp_path / "foreign"))
    (foreign / "config.json").write_text(json.dumps(config | {"attn_implementation": "somebody/kernel"}))
    with pytest.raises(ModelError, match="an implementation from elsewhere"):
        load_torch(foreign, task_from(open_artifact(tmp_path / "hub").manifest.task))
    pickled = Path(shutil.copytree(tmp_path / "hub", tmp_path / "pickled"))
    weights = safetensors.torch.load_file(pickled / "model.safetensors")
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    manifest = json.loads((pickled / "artifact.json").read_text())
    del manifest["files"]["model.safetensors"]
    manifest["files"]["pytorch_model.bin"] = {
        "sha256": hashlib.sha256((pickled / "pytorch_model.bin").read_bytes()).hexdigest(),
        "bytes": 1,
    }
    manifest["graphs"]["model"]["file"] = "pytorch_model.bin"
    (pickled / "artifact.json").write_text(json.dumps(manifest))
    (pickled / "SHA256SUMS").unlink()
    code, said = check(pickled, blocked=("compress",))
    assert code == 1
    assert "transformers failed" in said


def test_verify_says_what_it_could_not_run(shipped, tmp_path) -> None:
    code, said = check(shipped("artifact"), blocked=(*BLOCKED, "onnxruntime", "openvino"))
    assert code == 3
    assert "not run: install onnxruntime or openvino" in said
    assert "nothing to check" in call("verify", tmp_path, code=2).stderr
    assert "not a folder" in call("verify", tmp_path / "none", code=2).stderr


def test_an_export_without_a_report_says_so_and_one_of_an_export_keeps_it(shipped, ran, tmp_path) -> None:
    bare = Path(shutil.copytree(ran / "deliverables" / "int8", tmp_path / "bare"))
    call("export", bare, tmp_path / "again")
    assert "No report came with it" in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    call("export", shipped("artifact"), tmp_path / "further", "--layout", "onnxruntime")
    assert (tmp_path / "further" / "record" / "report.json").is_file()
    assert "model-index" in (tmp_path / "further" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "further" / "model_quantized.onnx").is_file()


def test_the_folder_that_is_written_is_the_one_that_was_named(ran, tmp_path, monkeypatch) -> None:
    for name in ("work", "empty", "real"):
        (tmp_path / name).mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    monkeypatch.chdir(tmp_path / "work")
    for place in ("new/..", ".", ""):
        assert "current one" in call("export", f"{ran}:int8", place, code=2).stderr
    monkeypatch.chdir(tmp_path / "empty")
    assert "current one" in call("export", f"{ran}:int8", ".", code=2).stderr
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"
    (tmp_path / "link").symlink_to("real")
    call("export", f"{ran}:int8", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.onnx").is_file()

    written = shipping.write_sums

    def meanwhile(folder: Path) -> None:
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "thesis.txt").write_text("years")
        written(folder)

    monkeypatch.setattr(shipping, "write_sums", meanwhile)
    call("export", f"{ran}:int8", tmp_path / "late", code=4)
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["thesis.txt"]


def test_an_export_of_an_export_has_the_same_card(ran, shipped, tmp_path) -> None:
    call("export", shipped("artifact"), tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == (shipped("artifact") / "README.md").read_text()
    call("export", shipped("onnxruntime"), tmp_path / "third")
    card = (tmp_path / "third" / "README.md").read_text(encoding="utf-8")
    assert card.count("# int8") == 1
    assert 'InferenceSession("FOLDER/model_quantized.onnx")' in card


def test_artifacts_whose_files_cannot_lie_in_an_export_are_refused(ran, shipped, tmp_path) -> None:
    def another(name: str, changes: dict[str, Any], **files: str) -> Path:
        folder = tmp_path / name
        source = open_artifact(ran / "deliverables" / "int8")
        shutil.copytree(source.path, folder, ignore=shutil.ignore_patterns("artifact.json", "README.md"))
        for file, text in files.items():
            (folder / file).write_text(text)
        kept = ("kind", "task", "traits", "graphs", "made_by")
        create_artifact(folder, **{key: getattr(source.manifest, key) for key in kept} | changes)
        return folder

    for file in ("verify.py", "README.md", "SHA256SUMS", "artifact.fp.16.json"):
        said = call("export", another(f"of {file}", {}, **{file: "mine"}), tmp_path / "out", code=2).stderr
        assert "belongs to an export" in said
    beside = another("beside", {}, **{"weights.bin": "0"})
    said = call("export", beside, tmp_path / "out", "--layout", "onnxruntime", code=2).stderr
    assert "weights.bin lies beside the graph" in said
    config = json.dumps({"id2label": {"0": "bad"}})
    plain = another("plain", {}, **{"config.json": config})
    said = call("export", plain, tmp_path / "out", "--layout", "transformers.js", code=2).stderr
    assert "model_type" in said
    call("export", plain, tmp_path / "files", "--layout", "onnxruntime")
    assert "optimum" not in (tmp_path / "files" / "README.md").read_text(encoding="utf-8")
    odd = another("odd", {}, **{"tokenizer_config.json": "[1]"})
    assert "cannot be read" in call("export", odd, tmp_path / "x", "--layout", "onnxruntime", code=2).stderr

    copy = Path(shutil.copytree(ran, tmp_path / "copy"))
    (tmp_path / "secret").write_text("secret")
    (copy / "report.html").unlink()
    (copy / "report.html").symlink_to(tmp_path / "secret")
    call("export", f"{copy}:int8", tmp_path / "unlinked")
    assert not (tmp_path / "unlinked" / "record" / "report.html").exists()
    with pytest.raises(ValidationError):
        another("newline", {}, **{"a\nb": "x"})


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(ran, shipped, tmp_path, monkeypatch) -> None:
    def refused(*words: object, code: int = 2) -> str:
        before = sorted(tmp_path.rglob("*"))
        said = call("export", *words, code=code).stderr
        assert sorted(tmp_path.rglob("*")) == before
        return said

    assert "'int8'" in refused(f"{ran}:int", tmp_path / "x")
    assert "not empty" in refused(f"{ran}:int8", shipped("artifact"))
    assert "Did you mean 'onnxruntime'" in refused(ran, tmp_path / "x", "--layout", "onnxruntme")
    assert "Name a step that made one" in refused(f"{ran}:int8", tmp_path / "x", "--layout", "transformers")
    assert "neither a run nor an artifact" in refused(tmp_path, tmp_path / "x")

    copy = Path(shutil.copytree(ran, tmp_path / "copy"))
    report = json.loads((copy / "report.json").read_text())
    report["verdict"]["step"] = "fp16"
    (copy / "report.json").write_text(json.dumps(report))
    call("export", copy, tmp_path / "chosen")
    assert open_artifact(tmp_path / "chosen").traits == {"fp16"}
    report["verdict"]["step"] = None
    (copy / "report.json").write_text(json.dumps(report))
    assert "ships nothing" in refused(copy, tmp_path / "none")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("compress.shipping.writing.write_sums", fail)
    assert "No space left" in refused(f"{ran}:int8", tmp_path / "x", code=4)
