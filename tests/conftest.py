"""Fixtures that several test files share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact, Graph, PassRecord, TensorSpec, create_artifact
from compress.data.encoded import Encoded
from compress.tasks.image_classification import ImageClassification
from compress.tasks.text_classification import TextClassification

VOCABULARY = 50


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for PyTorch: faster for tiny models, and equal sums on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fake_nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return ``install(driver=True, devices=1, processes=(), energy=0)``: a stand-in for ``pynvml``, which it returns.

    Each device runs all the ``processes``; without a driver NVML cannot start; without ``energy`` (mJ) there is none.
    """

    class NVMLError(Exception):
        pass

    def install(*, driver: bool = True, devices: int = 1, processes: Any = (), energy: int | None = 0) -> ModuleType:
        fake: Any = ModuleType("pynvml")
        fake.open = 0

        def start() -> None:
            if not driver:
                raise NVMLError
            fake.open += 1

        def stop() -> None:
            fake.open -= 1

        def used(handle: int) -> int:
            if energy is None:
                raise NVMLError
            return energy

        fake.NVMLError, fake.nvmlInit, fake.nvmlShutdown = NVMLError, start, stop
        fake.nvmlDeviceGetCount = lambda: devices
        fake.nvmlDeviceGetHandleByIndex = lambda index: index
        fake.nvmlDeviceGetName = lambda handle: "Fake GPU"
        fake.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(total=1024, used=512)
        fake.NVML_CLOCK_SM, fake.NVML_CLOCK_MEM, fake.NVML_TEMPERATURE_GPU = 1, 2, 0
        fake.nvmlDeviceGetClockInfo = lambda handle, clock: {1: 1980, 2: 2619}[clock]
        fake.nvmlDeviceGetTemperature = lambda handle, sensor: 41
        fake.nvmlDeviceGetPowerUsage = lambda handle: 120_400
        fake.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x1
        fake.nvmlSystemGetDriverVersion = lambda: "1.0"
        fake.nvmlDeviceGetComputeRunningProcesses = lambda handle: list(processes)
        fake.nvmlDeviceGetTotalEnergyConsumption = used
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


@pytest.fixture
def tiny_encoded() -> Encoded:
    """24 examples of 3 to 9 tokens with all-ones masks and targets 0 or 1."""
    rng = np.random.default_rng(7)
    ids = [rng.integers(1, VOCABULARY, size) for size in rng.integers(3, 10, 24)]
    masks = [np.ones(len(row), dtype=np.int64) for row in ids]
    targets = rng.integers(0, 2, 24)
    return Encoded({"input_ids": ids, "attention_mask": masks}, {"input_ids": 0, "attention_mask": 0}, targets)


@pytest.fixture
def tiny_onnx(tmp_path: Path) -> Callable[..., Artifact]:
    """Return ``build(name, seed=0, labels=2, hidden=8)``: an ONNX artifact with ONNX Runtime's own operators.

    logits = mean over the unmasked tokens of embedding[input_ids], times weight, plus bias.
    """

    def build(name: str = "tiny", *, seed: int = 0, labels: int = 2, hidden: int = 8) -> Artifact:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.onnx").write_bytes(_tiny_graph(seed, labels, hidden))
        ids = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"))
        mask = TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence"))
        logits = TensorSpec(name="logits", dtype="float32", shape=("batch", labels))
        return create_artifact(
            folder,
            kind="onnx",
            task={"name": "text-classification", "labels": [str(i) for i in range(labels)], "max_length": 16},
            graphs={"model": Graph(file="model.onnx", inputs=(ids, mask), outputs=(logits,))},
            parameters=VOCABULARY * hidden + hidden * labels + labels,
            made_by=PassRecord(name="test", version=1, config={}),
        )

    return build


def _tiny_graph(seed: int, labels: int, hidden: int) -> bytes:
    from onnx import TensorProto, checker, helper, numpy_helper

    rng = np.random.default_rng(seed)
    constants = {
        "embedding": rng.normal(size=(VOCABULARY, hidden)).astype(np.float32),
        "weight": rng.normal(size=(hidden, labels)).astype(np.float32),
        "bias": rng.normal(size=labels).astype(np.float32),
        "last_axis": np.array([2], dtype=np.int64),
        "sequence_axis": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last_axis"], ["mask_3d"]),
        helper.make_node("Mul", ["embedded", "mask_3d"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "sequence_axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "sequence_axis"], ["tokens"], keepdims=1),
        helper.make_node("Div", ["total", "tokens"], ["pooled"]),
        helper.make_node("Gemm", ["pooled", "weight", "bias"], ["logits"]),
    ]
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] the a film was is and not but never good bad dull fine great slow order
card train she he it works i my please cancel why for same with an ##s ##ed ##ing . , ; ' ? : half second first"""


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return ``build(family="bert", pruned=False)``: a folder with a random two-layer classifier and its tokenizer.

    Families: bert, roberta, distilbert. Hidden 32, 4 heads of 8, 64 neurons, 3 labels, up to 64 tokens; pruned
    ones keep 1 and 3 heads, 24 and 40 neurons. Weights are large enough that every sentence gets other logits.
    """
    made: dict[tuple[str, bool], Path] = {}

    def build(family: str = "bert", pruned: bool = False) -> Path:
        if (family, pruned) not in made:
            made[family, pruned] = tmp_path_factory.mktemp(family)
            _write_classifier(made[family, pruned], family, pruned)
        return made[family, pruned]

    return build


@pytest.fixture(scope="session")
def tiny_exported(
    tiny_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Artifact]:
    """Return ``build(family="bert", pruned=False)``: the ONNX artifact of ``tiny_classifier``, exported once."""
    made: dict[tuple[str, bool], Artifact] = {}

    def build(family: str = "bert", pruned: bool = False) -> Artifact:
        if (family, pruned) not in made:
            made[family, pruned] = _export(tiny_classifier(family, pruned), tmp_path_factory.mktemp("onnx"))
        return made[family, pruned]

    return build


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return ``build(family="resnet")``: a folder with a random image classifier and its preprocessor.

    Families: resnet (stem 16, stages of 16 and 24 channels, 16 x 16 grey pixels), vit (2 layers, hidden 32, 4
    heads, 64 neurons, 8 x 8 grey pixels in patches of 2). 3 labels. BatchNorms have random statistics and scales.
    """
    made: dict[str, Path] = {}

    def build(family: str = "resnet") -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            _write_images(made[family], family)
        return made[family]

    return build


@pytest.fixture(scope="session")
def plant_outliers() -> Callable[..., None]:
    """Return ``plant(model, factor=256, channel=0)``: give every layer an outlier channel, in place.

    One channel of the values grows by ``factor`` and the column of the attention's output projection that reads it
    shrinks by it. Attention only averages values, so in float the model computes the same, bit for bit where the
    factor is a power of 2; nothing else could be scaled without a change, for what LayerNorm gives also goes into
    the residual, and Gelu is not homogeneous. One 8-bit range for the averaged values must then hold values that are
    256 times as large as the rest: with static ranges every other channel rounds to 0 or a few steps.
    """

    def plant(model: Any, factor: float = 256.0, channel: int = 0) -> None:
        import torch

        from compress.models.families import encoder_layers

        with torch.no_grad():
            for layer in encoder_layers(model):
                layer.value.weight[channel] *= factor
                layer.value.bias[channel] *= factor
                layer.attention_out.weight[:, channel] /= factor

    return plant


def image_task() -> ImageClassification:
    return ImageClassification(("bad", "fine", "good"))


def _write_images(folder: Path, family: str) -> None:
    import torch

    from compress.models.fresh_images import fresh_resnet, fresh_vit
    from compress.models.loading import load_torch, save_torch

    torch.set_num_threads(1)
    if family == "vit":
        sizes = {"patch_size": 2, "layers": 2, "hidden": 32, "heads": 4, "intermediate": 64}
        fresh_vit(image_task(), folder, image_size=8, num_channels=1, seed=0, **sizes)
    else:
        fresh_resnet(
            image_task(), folder, image_size=16, num_channels=1, stem=16, widths=(16, 24), depths=(1, 2), seed=0
        )
    model = load_torch(folder, image_task())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    save_torch(model, folder, tokenizer_from=folder)


def tiny_task() -> TextClassification:
    return TextClassification(("bad", "fine", "good"), max_length=32)


def _write_classifier(folder: Path, family: str, pruned: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizer

    from compress.models.families import encoder_layers
    from compress.models.loading import save_torch
    from compress.models.structure import keep_units

    torch.set_num_threads(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if family == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    positions = 66 if family == "roberta" else 64
    options = {"max_position_embeddings": positions, "num_labels": 3, "initializer_range": 0.2, "pad_token_id": 0}
    types = {"type_vocab_size": 1} if family == "roberta" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, vocab_size=len(WORDS.split()), **sizes, **options, **types)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    if pruned:
        for layer, heads, neurons in zip(encoder_layers(model), ([2], [0, 1, 3]), (24, 40), strict=True):
            keep_units(layer, heads, range(neurons))
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS.split())}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    save_torch(model, folder, tokenizer_from=folder)


def _export(source: Path, folder: Path) -> Artifact:
    from compress.export.companions import copy_companions
    from compress.export.onnx_export import export_onnx
    from compress.export.signature import read_graph
    from compress.models.loading import load_torch

    notes = export_onnx(load_torch(source, tiny_task()), folder / "model.onnx")
    copy_companions(source, folder)
    return create_artifact(
        folder,
        kind="onnx",
        task=tiny_task().dump(),
        graphs={"model": read_graph(folder / "model.onnx")},
        parameters=1000,
        macs=2000,
        notes=notes,
        made_by=PassRecord(name="test", version=1, config={}),
    )
