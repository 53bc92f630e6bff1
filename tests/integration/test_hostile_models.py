"""Hostile and broken models, case by case: `validate` and `run` refuse each alike, with nothing written."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Change = Callable[[Path], object]


def edit(name: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / name
        plain = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(plain | values), encoding="utf-8")

    return change


def put(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def header(length: int | None = None, size: int = 0, **tensors: Any) -> Change:
    """Write a safetensors file whose header says what it likes."""

    def change(folder: Path) -> None:
        text = json.dumps(tensors).encode()
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text) if length is None else length) + text)
            file.truncate(max(size, 8 + len(text) + 32))

    return change


def weight(value: float) -> Change:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["classifier.weight"][0, 0] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def rename(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


def outside(name: str) -> Change:
    def change(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / f"outside-{name}")
        (folder / name).symlink_to(folder.parent / f"outside-{name}")

    return change


def folder_for(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def strange_token(folder: Path) -> None:
    plain = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    plain["model"]["vocab"]["film"] = 5_000_000
    (folder / "tokenizer.json").write_text(json.dumps(plain), encoding="utf-8")


def panicking(folder: Path) -> None:
    """A tokenizer whose template names tokens that it does not have: its Rust code panics, which is no Exception."""
    plain = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    plain["post_processor"]["special_tokens"] = {}
    (folder / "tokenizer.json").write_text(json.dumps(plain), encoding="utf-8")


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
MODELS: dict[str, tuple[Change, str]] = {
    "pickle": (rename("model.safetensors", "pytorch_model.bin"), "pickle checkpoint"),
    "pickle beside other safetensors": (
        both(rename("model.safetensors", "pytorch_model.bin"), put("x.safetensors", b"")),
        "pickle checkpoint",
    ),
    "pickle named by an index": (
        both(
            rename("model.safetensors", "pytorch_model.bin"),
            put("model.safetensors.index.json", b'{"weight_map": {"a": "pytorch_model.bin"}}'),
        ),
        "no safetensors file of its folder",
    ),
    "torch file": (rename("model.safetensors", "model.pt"), "pickle checkpoint"),
    "header of a gigabyte": (header(1 << 30, (1 << 30) + 8), "a header of 1,073,741,824 bytes"),
    "header beyond the file": (header(1 << 62), "the header is said to have"),
    "overlapping tensors": (header(a=F32, b=F32), "begins at byte 0, not at 8"),
    "tensor beyond the file": (
        header(a={"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}),
        "in a file that has 32 for them",
    ),
    "tensor of a wrong size": (header(a=F32 | {"dtype": "F64"}), "has 8 bytes for 2 elements of F64"),
    "empty weights": (put("model.safetensors", b""), "the file has 0"),
    "weights that are text": (put("model.safetensors", b"not weights at all"), "not a whole safetensors file"),
    "nan": (weight(float("nan")), "not finite"),
    "infinity": (weight(float("inf")), "not finite"),
    "other shapes": (edit("config.json", intermediate_size=48), "do not fit config.json"),
    "more layers": (edit("config.json", num_hidden_layers=3), "do not fit config.json"),
    "fewer layers": (edit("config.json", num_hidden_layers=1), "do not fit config.json"),
    "more labels": (edit("config.json", id2label={str(i): f"l{i}" for i in range(5)}), "do not fit config.json"),
    "a gigantic width": (edit("config.json", hidden_size=1 << 30), "do not fit config.json"),
    "a million layers": (edit("config.json", num_hidden_layers=10**6), "do not fit config.json"),
    "a billion labels": (edit("config.json", num_labels=10**9), "do not fit config.json"),
    "a gigantic vocabulary": (edit("config.json", vocab_size=10**9), "do not fit config.json"),
    "negative width": (edit("config.json", hidden_size=-32), "not a whole number above 0"),
    "words for numbers": (edit("config.json", num_attention_heads="four"), "not a whole number above 0"),
    "no heads": (edit("config.json", num_attention_heads=0), "not a whole number above 0"),
    "unknown activation": (edit("config.json", hidden_act="__import__('os')"), "do not fit config.json"),
    "remote code": (edit("config.json", auto_map={"AutoModel": "evil.Model"}), "needs remote code"),
    "remote attention": (edit("config.json", attn_implementation="evil/kernel"), "implementation from elsewhere"),
    "quantized": (edit("config.json", quantization_config={"quant_method": "gptq"}), "quantized already"),
    "labels as a list": (edit("config.json", id2label=["a", "b", "c"]), "labels in a way that cannot be read"),
    "labels without numbers": (
        edit("config.json", id2label={"a": "b", "c": "d"}),
        "labels in a way that cannot be read",
    ),
    "two labels of one name": (edit("config.json", id2label={"0": "a", "1": "a", "2": "b"}), "the same name"),
    "no room for a text": (edit("tokenizer_config.json", model_max_length=2), "takes less than 4 tokens"),
    "a length that is text": (edit("tokenizer_config.json", model_max_length="long"), "tokens"),
    "a negative length": (edit("tokenizer_config.json", model_max_length=-5), "takes less than 4 tokens"),
    "a broken tokenizer": (put("tokenizer.json", b'{"model": 3}'), "tokenizer cannot be opened or does not work"),
    "a token beyond the table": (strange_token, "more tokens than the model has embeddings"),
    "weights outside": (outside("model.safetensors"), "leads outside its folder"),
    "config outside": (outside("config.json"), "leads outside its folder"),
    "tokenizer outside": (outside("tokenizer.json"), "leads outside its folder"),
    "a folder for the config": (folder_for("config.json"), "config.json"),
    "a folder for the weights": (folder_for("model.safetensors"), "has the name of a file and is none"),
    "an empty config": (put("config.json", b""), "config.json cannot be read"),
    "a deep config": (put("config.json", b'{"a":' * 5000 + b"1" + b"}" * 5000), "nested too deeply"),
    "a config with a key twice": (put("config.json", b'{"model_type": "bert", "model_type": "gpt2"}'), "stands twice"),
    "a config in latin-1": (put("config.json", '{"é": 1}'.encode("latin-1")), "not UTF-8"),
    "a config in utf-16": (put("config.json", '{"a": 1}'.encode("utf-16")), "not UTF-8"),
    "a config that is a list": (put("config.json", b"[1]"), "not a JSON object"),
    "an adapter": (put("adapter_config.json", b"{}"), "an adapter, not a whole model"),
    "a false structure": (
        put("structure.json", b'{"model_type": "bert", "layers": [{"heads": [0], "neurons": 9999999}]}'),
        "structure.json does not belong",
    ),
    "a structure of absurd ranks": (
        put("structure.json", b'{"model_type": "bert", "ranks": {"classifier": 99999999}}'),
        "structure.json cannot be read",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(refusals, tmp_path, case: str) -> None:
    change, phrase = MODELS[case]
    folder = Path(shutil.copytree(refusals.lab.model, tmp_path / "model"))
    change(folder)
    refusals.of_recipe("models", phrase, refusals.lab.recipe("hostile", [{"export": {}}], model=str(folder)))


@pytest.mark.parametrize(
    ("model", "phrase"),
    [
        ("x" * 5000, "name too long"),
        ("a\0b", "The model cannot be read"),
        ("~nobody-of-this-name/model", "home directory"),
        ("./nowhere", "does not exist"),
        ("/dev/null", "model"),
        ("${DATA}/train.csv", "model"),
        ("", "no config.json"),
    ],
)
def test_places_of_models(refusals, model: str, phrase: str) -> None:
    refusals.of_recipe("models", phrase, refusals.lab.recipe("hostile", [{"export": {}}], model=model))


def test_a_hub_id_when_offline(refusals, monkeypatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    recipe = refusals.lab.recipe("hostile", [{"export": {}}], model="someone/some-model")
    refusals.of("models", "neither a folder here nor a hub id", ("run", recipe, "--out", refusals.out))


# Code of the model's author


def code(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def mapped(**entries: Any) -> Change:
    def change(folder: Path) -> None:
        plain = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        plain["auto_map"] |= entries
        (folder / "config.json").write_text(json.dumps(plain), encoding="utf-8")

    return change


def classes(entry: Any) -> Change:
    return mapped(AutoModelForSequenceClassification=entry)


NAMED: dict[str, tuple[Change, str, int]] = {
    "a file that is not there": (classes("absent.Model"), "is not there", 2),
    "an import that is not there": (lambda folder: (folder / "pooling.py").unlink(), "is not there", 2),
    "a file outside": (outside("pooling.py"), "leads outside its folder", 2),
    "a name that leads outside": (classes("../evil.Model"), "something other than a class", 2),
    "another repository": (classes("someone/else--modeling.Model"), "code of another repository", 2),
    "a tokenizer of another repository": (mapped(AutoTokenizer=["a/b--c.T", None]), "code of another repository", 2),
    "an import from outside": (code("pooling.py", "from ..evil import Mean"), "imports from outside its folder", 2),
    "no class for texts": (
        edit("config.json", auto_map={"AutoModel": "modeling_bag.Bag"}),
        "no class that classifies",
        2,
    ),
    "a structure of a known family": (put("structure.json", b"{}"), "has code of its own and a structure.json", 2),
    "a map that is none": (edit("config.json", auto_map=3), "something other than a class", 2),
    "a class of another kind": (classes("pooling.Mean"), "does not define the class", 2),
    "a class that is not there": (classes("modeling_bag.Nothing"), "does not define the class", 2),
    "a class from elsewhere": (
        both(
            code("modeling_bag.py", "from transformers import BertForSequenceClassification as Bert"),
            classes("modeling_bag.Bert"),
        ),
        "does not define the class",
        2,
    ),
    "no Python": (code("pooling.py", "def"), "is no Python", 2),
    "NUL bytes": (put("pooling.py", b"a\0b"), "is no Python", 2),
    "a deep expression": (code("pooling.py", "(" * 5000 + ")" * 5000), "is no Python", 2),
    "a large file": (code("pooling.py", "#" * (2**20 + 1)), "is too large", 2),
    "code that raises": (code("pooling.py", "raise RuntimeError('no')"), "RuntimeError: no", 2),
    "code that exits": (code("pooling.py", "import sys\nsys.exit(0)"), "SystemExit: 0", 2),
    "code that lacks a package": (code("pooling.py", "import einops_of_nobody"), "einops_of_nobody", 3),
    "code that fails on a text": (
        code("pooling.py", "from torch import nn\nclass Mean(nn.Module):\n  def forward(self, *a): return 1 / 0"),
        "ZeroDivisionError",
        2,
    ),
    "weights of other sizes": (edit("config.json", width=8), "do not fit config.json", 2),
    "nan": (weight(float("nan")), "not finite", 2),
}


@pytest.mark.parametrize("case", NAMED)
def test_models_whose_code_is_named(refusals, own_code, tmp_path, case: str) -> None:
    change, phrase, exit_code = NAMED[case]
    folder = Path(shutil.copytree(own_code("bag"), tmp_path / "model"))
    change(folder)
    recipe = refusals.lab.recipe("hostile", [{"export": {}}], model=str(folder), trust_remote_code=str(folder))
    verbs = ("validate", recipe), ("run", recipe, "--out", refusals.out)
    refusals.of("models with code", phrase, *verbs, code=exit_code)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        (True, "not a yes"),
        ("true", "not a yes"),
        (1, "not a yes"),
        (["${MODEL}"], "not a yes"),
        ("", "not a yes"),
        ("other/model", "names another model"),
        ("${MODEL}", "names another model"),
        ("~", "names another model"),
        (None, "needs remote code"),
    ],
)
def test_names_that_trust_nobody(refusals, own_code, name: Any, phrase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is none: whoever sets the environment would decide whose code runs."""
    monkeypatch.setenv("MODEL", str(own_code("bag")))
    changes = {"model": "${MODEL}", "trust_remote_code": name}
    refusals.of_recipe("models with code", phrase, refusals.lab.recipe("hostile", [{"export": {}}], **changes))


# ONNX


@pytest.fixture(scope="module")
def onnx_folder(tiny_exported, lab, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "model"
    shutil.copytree(tiny_exported().path, folder, ignore=shutil.ignore_patterns("artifact.json"))
    shutil.copy(lab.model / "config.json", folder)
    return folder


def graph(change: Callable[[Any], object]) -> Change:
    def edited(folder: Path) -> None:
        import onnx

        model = onnx.load(folder / "model.onnx")
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return edited


def external(location: str, **entries: object) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return change


def operator(domain: str, name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        from onnx import helper

        model.opset_import.append(helper.make_opsetid(domain, 1))
        node = next(node for node in model.graph.node if "logits" in node.output)
        node.output[list(node.output).index("logits")] = "before"
        model.graph.node.append(helper.make_node(name, ["before"], ["logits"], domain=domain))

    return change


def hidden_function(model: Any) -> None:
    """A function of the file's own that stands for a standard operator, and calls a foreign one."""
    from onnx import helper

    inner = helper.make_node("Evil", ["x"], ["y"], domain="evil")
    model.functions.append(helper.make_function("mine", "F", ["x"], ["y"], [inner], [helper.make_opsetid("evil", 1)]))


def first_float(change: Callable[[np.ndarray], None]) -> Callable[[Any], None]:
    def edited(model: Any) -> None:
        from onnx import numpy_helper

        tensor = next(t for t in model.graph.initializer if t.data_type == 1 and len(t.dims) == 2)
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return edited


def set_to(value: float) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__((0, 0), value)


def bomb(model: Any) -> None:
    """A node that makes 10^12 numbers, whatever the input is; it takes part in the answer."""
    from onnx import TensorProto, helper, numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(np.array([10**6, 10**6], np.int64), "much"))
    node = next(node for node in model.graph.node if "logits" in node.output)
    node.output[list(node.output).index("logits")] = "before"
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["much"], ["matrix"]),
            helper.make_node("ReduceSum", ["matrix"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sum"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["before", "number"], ["logits"]),
        ]
    )


def absurd_dims(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 10**12


def linked_weights(folder: Path) -> None:
    secret = folder.parent / "secret.bin"
    secret.write_bytes(bytes(1 << 16))
    (folder / "weights.bin").symlink_to(secret)
    graph(external("weights.bin"))(folder)


ONNX: dict[str, tuple[Change, str]] = {
    "weights one folder up": (graph(external("../secret.bin")), "outside its folder"),
    "weights at an absolute path": (graph(external("/etc/hostname")), "outside its folder"),
    "weights through a link": (linked_weights, "outside its folder"),
    "weights that are not there": (graph(external("absent.bin")), "not there"),
    "weights in a folder": (both(lambda f: (f / "w").mkdir(), graph(external("w"))), "not there"),
    "weights from beyond the end": (
        both(put("w.bin", bytes(64)), graph(external("w.bin", offset=1 << 40, length=1 << 20))),
        "not a valid ONNX model",
    ),
    "weights of a negative length": (
        both(put("w.bin", bytes(64)), graph(external("w.bin", length=-4))),
        "not a valid ONNX model",
    ),
    "a domain of somebody's own": (graph(operator("evil", "Anything")), "evil::Anything"),
    "an operator ONNX Runtime lacks": (
        graph(operator("com.microsoft", "Anything")),
        "cannot answer the built-in examples",
    ),
    "an operator ONNX lacks": (graph(operator("", "Anything")), "not a valid ONNX model"),
    "a domain inside a function": (graph(hidden_function), "evil::Evil"),
    "nan": (graph(first_float(set_to(np.nan))), "not finite"),
    "infinity": (graph(first_float(set_to(np.inf))), "not finite"),
    "a shape without its bytes": (graph(absurd_dims), "not a valid ONNX model"),
    "a value of an absurd size": (graph(bomb), "a value of an absurd size"),
    "half a file": (lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:5000]), "ONNX"),
    "an empty file": (put("model.onnx", b""), "ONNX"),
    "a file of another kind": (put("model.onnx", b"\x80\x04pickle"), "not a valid ONNX model"),
    "config of other labels": (
        edit("config.json", id2label={"0": "a", "1": "b"}),
        "disagree about the number of labels",
    ),
    "config of a tiny table": (edit("config.json", max_position_embeddings=2), "takes less than 4 tokens"),
    "config that says too much": (
        edit("config.json", max_position_embeddings=4096),
        "cannot take a text of 512 tokens",
    ),
    "config outside": (outside("config.json"), "leads outside its folder"),
    "tokenizer outside": (outside("tokenizer.json"), "leads outside its folder"),
    "a broken tokenizer": (put("tokenizer.json", b"{}"), "tokenizer cannot be opened or does not work"),
    "a tokenizer that panics": (panicking, "tokenizer cannot be opened or does not work"),
    "a token beyond the table": (strange_token, "cannot"),
}


@pytest.mark.parametrize("case", ONNX)
def test_onnx_files(refusals, onnx_folder, tmp_path, case: str) -> None:
    change, phrase = ONNX[case]
    folder = Path(shutil.copytree(onnx_folder, tmp_path / "model"))
    change(folder)
    recipe = refusals.lab.recipe("hostile", [{"quantize": {}}], model=str(folder / "model.onnx"), max_length=512)
    refusals.of_recipe("ONNX files", phrase, recipe)
    words = ("check", folder / "model.onnx", "--target", "tensorrt")
    refusals.or_answer("ONNX files, check", words, (0, 1, 2))


def test_the_counts(refusals, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\nrefused:", ", ".join(f"{key} {count}" for key, count in sorted(refusals.counts.items())))
