"""Every supported family keeps the same invariants; shown on tiny random models.

A new family is an entry in ``compress/models/families/catalogue.py`` and a line in ``MODELS`` below.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from compress.artifact import TensorSpec
from compress.errors import ModelError
from compress.export.onnx_export import export_onnx
from compress.models.counting import count_macs, count_parameters, encoder_macs, head_macs, neuron_macs, planned_counts
from compress.models.depth import drop_layers
from compress.models.families import FAMILIES, REFUSALS, dimensions, encoder_layers, family_of
from compress.models.heads import head_fits, with_fresh_head
from compress.models.loading import load_torch, save_torch
from compress.models.structure import is_dense, keep_units, structure_of
from compress.models.uniform import absorb, expressible, heads_are_free
from compress.pruning.masks import masked
from compress.tasks.base import Task
from compress.tasks.image_classification import ImageClassification
from compress.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ("negative", "neutral", "positive")
TASK = TextClassification(LABELS, max_length=16)
LAYERS, HIDDEN, HEADS, NEURONS, HEAD_SIZE, POSITIONS = 3, 32, 4, 48, 8, 24
SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
DISTIL = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": NEURONS}
TEXT = {"vocab_size": 61, "max_position_embeddings": POSITIONS}
IMAGE = {"image_size": 8, "patch_size": 2, "num_channels": 1}
MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "bert": lambda: (hf.BertForSequenceClassification, hf.BertConfig(**SIZES, **TEXT)),
    "camembert": lambda: (hf.CamembertForSequenceClassification, hf.CamembertConfig(**SIZES, **TEXT, pad_token_id=1)),
    "deit": lambda: (hf.DeiTForImageClassification, hf.DeiTConfig(**SIZES, **IMAGE)),
    "distilbert": lambda: (hf.DistilBertForSequenceClassification, hf.DistilBertConfig(**DISTIL, **TEXT)),
    "electra": lambda: (hf.ElectraForSequenceClassification, hf.ElectraConfig(**SIZES, **TEXT, embedding_size=16)),
    "roberta": lambda: (hf.RobertaForSequenceClassification, hf.RobertaConfig(**SIZES, **TEXT, pad_token_id=1)),
    "vit": lambda: (hf.ViTForImageClassification, hf.ViTConfig(**SIZES, **IMAGE)),
    "xlm-roberta": lambda: (
        hf.XLMRobertaForSequenceClassification,
        hf.XLMRobertaConfig(**SIZES, **TEXT, pad_token_id=1),
    ),
}
"""Model type -> the class with a head, and a config of the sizes above."""

Cut = Sequence[tuple[Sequence[int], Sequence[int]]]
"""For each layer the heads and neurons that stay."""
ALL = (range(HEADS), range(NEURONS))
CUTS: dict[str, Cut] = {
    "units": [((0, 2, 3), range(0, NEURONS, 2)), ((1,), (5,)), ALL],
    "sub-layers": [((), range(1, NEURONS, 2)), ((1, 3), ()), ((0, 1, 2), range(7))],
    "a layer": [ALL, ((), ()), ((0, 2), range(NEURONS))],
    "everything": [((), ())] * LAYERS,
}

QUICK = ("bert", "distilbert", "vit")
"""One family of each layout; the others are exported to ONNX in the slow tests."""


def build(name: str) -> PreTrainedModel:
    class_, config = MODELS[name]()
    for key, value in TASK.config_options().items():
        setattr(config, key, value)
    config.initializer_range = 0.3
    torch.manual_seed(3)
    model: PreTrainedModel = class_(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Four images, or four texts of nine tokens, one of them padded."""
    rng = np.random.default_rng(5)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.from_numpy(rng.normal(size=(4, 1, 8, 8)).astype(np.float32))}
    mask = torch.ones(4, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    return {"input_ids": torch.from_numpy(rng.integers(3, 61, (4, 9))), "attention_mask": mask}


def logits(model: PreTrainedModel) -> np.ndarray:
    with torch.inference_mode():
        return model(**inputs(model)).logits.numpy()


def task_of(model: PreTrainedModel) -> Task:
    return ImageClassification(LABELS) if model.main_input_name == "pixel_values" else TASK


def prune(model: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    for layer, (heads, neurons) in zip(encoder_layers(model), cut, strict=True):
        keep_units(layer, heads, neurons)
    return model


def mask_out(model: PreTrainedModel, cut: Cut) -> np.ndarray:
    """Return the logits of the dense model with every unit that a cut removes at zero."""
    masks = []
    for kept_heads, kept_neurons in cut:
        heads, neurons = torch.zeros(1, HEADS), torch.zeros(1, NEURONS)
        heads[0, list(kept_heads)] = 1
        neurons[0, list(kept_neurons)] = 1
        masks.append((heads, neurons))
    with masked(encoder_layers(model), masks):
        return logits(model)


def save(model: PreTrainedModel, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_torch(model, folder, tokenizer_from=folder)
    return folder


def test_every_family_is_covered() -> None:
    assert sorted(MODELS) == sorted(name for family in FAMILIES for name in family.model_types)


def test_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="not supported") as caught:
        family_of("robertta")
    assert "roberta" in caught.value.fix
    with pytest.raises(ModelError, match="lacks a size"):
        dimensions({"model_type": "bert", "hidden_size": 32})


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("albert", "share one set of weights"),
        ("modernbert", "fuses query, key and value"),
        ("deberta", "relative positions"),
        ("deberta-v2", "relative positions"),
        ("llama", "decoder"),
        ("gpt2", "decoder"),
        ("t5", "encoder with a decoder"),
        ("bart", "encoder with a decoder"),
    ],
)
def test_refused_families_say_why_and_what_to_do(model_type: str, why: str) -> None:
    with pytest.raises(ModelError, match=why) as caught:
        dimensions({"model_type": model_type})
    assert model_type in caught.value.value
    assert "ine-tune" in caught.value.fix


def test_refusals_are_real_model_types_without_a_family() -> None:
    refused = [name for refusal in REFUSALS for name in refusal.model_types]
    assert len(set(refused)) == len(refused)
    assert not {name for family in FAMILIES for name in family.model_types} & set(refused)
    assert set(refused) <= set(hf.CONFIG_MAPPING)


def test_layers_and_dimensions(model: PreTrainedModel) -> None:
    size = dimensions(model.config.to_dict())
    assert (size.layers, size.hidden, size.heads, size.neurons, size.head_size) == (3, 32, 4, 48, 8)
    kind = model.config.model_type
    tokens = {"vit": 16 + 1, "deit": 16 + 2, "bert": 24, "electra": 24, "distilbert": 24}
    assert size.positions == tokens.get(kind, POSITIONS - 2)
    assert size.images == (kind in ("vit", "deit"))
    for layer in encoder_layers(model):
        assert (layer.heads, layer.neurons) == (4, 48)
        assert layer.attention_out.in_features == 32
        assert layer.ffn_out.in_features == 48


def test_planned_counts_equal_those_of_the_model(model: PreTrainedModel) -> None:
    assert planned_counts(model.config.to_dict()) == (count_parameters(model), count_macs(model))


def outside_macs(model: PreTrainedModel, tokens: int) -> int:
    """Return the multiply-accumulates of embeddings, pooler and head, in closed form."""
    if model.config.model_type in ("vit", "deit"):
        return 16 * (2 * 2 * 1) * HIDDEN + HIDDEN * 3
    projection = tokens * 16 * HIDDEN if model.config.model_type == "electra" else 0
    return projection + HIDDEN * HIDDEN + HIDDEN * 3


def test_macs_in_closed_form(model: PreTrainedModel) -> None:
    tokens = {"vit": 17, "deit": 18}.get(model.config.model_type, 10)
    layer = tokens * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * NEURONS) + 2 * tokens**2 * HIDDEN
    assert count_macs(model, tokens) == LAYERS * layer + outside_macs(model, tokens)
    size = dimensions(model.config.to_dict())
    assert encoder_macs(size, tokens) == LAYERS * layer
    if size.images:
        assert head_macs(size) == head_macs(size, tokens)
        assert neuron_macs(size) == neuron_macs(size, tokens)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_pruned_equals_masked(model: PreTrainedModel, cut: Cut) -> None:
    dense, wanted = logits(model), mask_out(model, cut)
    prune(model, cut)
    np.testing.assert_allclose(logits(model), wanted, atol=1e-5)
    assert np.abs(dense - wanted).max() > 1e-2
    assert [shape.heads for shape in structure_of(model).layers] == [tuple(heads) for heads, _ in cut]
    assert [shape.neurons for shape in structure_of(model).layers] == [len(neurons) for _, neurons in cut]
    assert [(x.heads, x.neurons) for x in encoder_layers(model)] == [(len(h), len(n)) for h, n in cut]


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_counts_of_what_is_left(model: PreTrainedModel, cut: Cut) -> None:
    parameters = count_parameters(model)
    prune(model, cut)
    heads, neurons = sum(len(h) for h, _ in cut), sum(len(n) for _, n in cut)
    tokens = {"vit": 17, "deit": 18}.get(model.config.model_type, 10)
    units = heads * (4 * tokens * HIDDEN * HEAD_SIZE + 2 * tokens**2 * HEAD_SIZE) + neurons * 2 * tokens * HIDDEN
    assert count_macs(model, tokens) == units + outside_macs(model, tokens)
    gone_heads, gone_neurons = LAYERS * HEADS - heads, LAYERS * NEURONS - neurons
    gone = gone_heads * (4 * HIDDEN * HEAD_SIZE + 3 * HEAD_SIZE) + gone_neurons * (2 * HIDDEN + 1)
    assert parameters - count_parameters(model) == gone


def test_pruning_twice_equals_pruning_once(model: PreTrainedModel) -> None:
    once = prune(copy.deepcopy(model), [((2,), (6, 18)), ((), (5,)), ((0, 3), ())])
    twice = prune(model, CUTS["units"])
    prune(twice, [((1,), (3, 9)), ((), (0,)), ((0, 3), ())])
    assert structure_of(twice) == structure_of(once)
    np.testing.assert_array_equal(logits(twice), logits(once))
    prune(twice, [((0,), (0, 1)), ((), (0,)), ((0, 1), ())])
    np.testing.assert_array_equal(logits(twice), logits(once))


@pytest.mark.parametrize("cut", [CUTS["units"], CUTS["sub-layers"], CUTS["everything"]], ids=str)
def test_save_and_load_rebuild_the_shapes(model: PreTrainedModel, cut: Cut, tmp_path: Path) -> None:
    prune(model, cut)
    first = save(model, tmp_path / "first")
    loaded = load_torch(first, task_of(model))
    np.testing.assert_array_equal(logits(loaded), logits(model))
    assert structure_of(loaded) == structure_of(model)
    assert not any(module.training for module in loaded.modules())
    second = save(loaded, tmp_path / "second")
    for name in ("config.json", "structure.json", "model.safetensors"):
        assert (second / name).read_bytes() == (first / name).read_bytes()


SCRIPT = """
import sys
from pathlib import Path
import numpy as np, torch
from compress.models.loading import load_torch
from compress.tasks.base import task_from
import json
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    model = load_torch(folder, task_from(json.loads((folder / "task.json").read_text())))
    with torch.inference_mode():
        batch = {name: torch.from_numpy(values) for name, values in np.load(folder / "inputs.npz").items()}
        np.save(folder / "logits.npy", model(**batch).logits.numpy())
"""


def test_a_new_process_gives_equal_logits(tmp_path: Path) -> None:
    wanted = {}
    for name in sorted(MODELS):
        model = prune(build(name), CUTS["sub-layers"])
        folder = save(model, tmp_path / name)
        (folder / "task.json").write_text(json.dumps(task_of(model).dump()))
        np.savez(folder / "inputs.npz", **{key: value.numpy() for key, value in inputs(model).items()})
        wanted[folder] = logits(model)
    subprocess.run([sys.executable, "-c", SCRIPT, *map(str, wanted)], check=True, capture_output=True)
    for folder, values in wanted.items():
        np.testing.assert_array_equal(np.load(folder / "logits.npy"), values)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        *((name, "sub-layers") for name in QUICK),
        *(pytest.param(name, "sub-layers", marks=pytest.mark.slow) for name in sorted({*MODELS} - {*QUICK})),
        *(pytest.param(name, "everything", marks=pytest.mark.slow) for name in sorted(MODELS)),
    ],
)
def test_onnx_equals_torch_and_holds_nothing_of_what_is_gone(name: str, cut: str, tmp_path: Path) -> None:
    model = prune(build(name), CUTS[cut])
    pixels = TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 1, 8, 8))
    names = [pixels] if "pixel_values" in inputs(model) else ["input_ids", "attention_mask"]
    export_onnx(model, tmp_path / "model.onnx", inputs=names)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {key: value.numpy() for key, value in inputs(model).items()}
    np.testing.assert_allclose(session.run(["logits"], feed)[0], logits(model), atol=1e-4)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    attentions = sum(bool(heads) for heads, _ in CUTS[cut])
    ffns = sum(len(neurons) > 0 for _, neurons in CUTS[cut])
    outside = 1 if name == "electra" else 0
    assert operators.count("Softmax") == attentions
    assert operators.count("MatMul") == 6 * attentions + 2 * ffns + outside


def open_plainly(folder: Path) -> PreTrainedModel:
    """Open a folder as a user of Transformers would."""
    assert not (folder / "structure.json").exists()
    images = "image_size" in json.loads((folder / "config.json").read_text())
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    plain: PreTrainedModel = auto.from_pretrained(folder).eval()
    return plain


def test_depth_pruned_opens_plainly(model: PreTrainedModel, tmp_path: Path) -> None:
    three = logits(model)
    drop_layers(model, (0, 2))
    plain = open_plainly(save(model, tmp_path))
    np.testing.assert_array_equal(logits(plain), logits(model))
    assert dimensions(plain.config.to_dict()).layers == 2
    assert not np.array_equal(three, logits(plain))


@pytest.mark.parametrize("cut", [CUTS["units"], CUTS["sub-layers"]], ids=["units", "sub-layers"])
def test_depth_and_width_together(model: PreTrainedModel, cut: Cut, tmp_path: Path) -> None:
    prune(model, cut)
    drop_layers(model, (1, 2))
    loaded = load_torch(save(model, tmp_path), task_of(model))
    np.testing.assert_array_equal(logits(loaded), logits(model))
    assert [shape.neurons for shape in structure_of(loaded).layers] == [len(neurons) for _, neurons in cut[1:]]


def test_absorbed_uniform_widths_open_plainly(model: PreTrainedModel, tmp_path: Path) -> None:
    """Equal numbers, different units in each layer."""
    prune(model, [(range(HEADS), neurons) for neurons in (range(16), range(8, 24), range(0, 48, 3))])
    assert not is_dense(model)
    assert expressible(structure_of(model), HEADS)
    assert absorb(model)
    assert is_dense(model)
    plain = open_plainly(save(model, tmp_path))
    np.testing.assert_array_equal(logits(plain), logits(model))
    assert dimensions(plain.config.to_dict()).neurons == 16
    assert planned_counts(plain.config.to_dict()) == (count_parameters(model), count_macs(model))


def test_fewer_heads_open_plainly_where_config_can_say_their_size(model: PreTrainedModel, tmp_path: Path) -> None:
    prune(model, [(heads, range(NEURONS)) for heads in ((0, 3), (1, 2), (2, 3))])
    free = heads_are_free(model.config.model_type)
    assert free == (model.config.model_type in ("vit", "deit"))
    assert expressible(structure_of(model), HEADS) == free
    config = copy.deepcopy(model.config.to_dict())
    assert absorb(model) == free
    if not free:
        assert model.config.to_dict() == config
        return
    plain = open_plainly(save(model, tmp_path))
    np.testing.assert_array_equal(logits(plain), logits(model))
    size = dimensions(plain.config.to_dict())
    assert (size.heads, size.head_size, size.hidden) == (2, HEAD_SIZE, HIDDEN)
    assert structure_of(plain) == structure_of(model)
    assert planned_counts(plain.config.to_dict()) == (count_parameters(model), count_macs(model))


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_unequal_or_missing_widths_are_not_absorbed(model: PreTrainedModel, cut: Cut) -> None:
    structure, config = structure_of(prune(model, cut)), model.config.to_dict()
    assert not expressible(structure, HEADS)
    assert not absorb(model)
    assert (structure_of(model), model.config.to_dict()) == (structure, config)


def test_what_is_left_of_a_sublayer_learns(model: PreTrainedModel) -> None:
    prune(model, CUTS["everything"]).train()
    names = [name for name, _ in model.named_parameters()]
    layer = family_of(model.config.model_type)
    dense = {name for name, _ in build(model.config.model_type).named_parameters()}
    assert set(names) < dense
    biases = [name for name in names if name.endswith((f"{layer.attention_out}.bias", f"{layer.ffn_out}.bias"))]
    assert len(biases) == 2 * LAYERS
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(**inputs(model)).logits, torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(not torch.equal(after[name], before[name]) for name in biases)


def test_fresh_head_keeps_the_encoder(model: PreTrainedModel) -> None:
    prune(model, CUTS["sub-layers"])
    kind = type(task_of(model))
    options = {"labels": ("a", "b"), **({} if kind is ImageClassification else {"max_length": 16})}
    task = kind(**options)
    assert head_fits(model, task_of(model))
    assert not head_fits(model, task)
    assert not head_fits(model, kind(**{**options, "labels": LABELS[::-1]}))
    fresh = with_fresh_head(model, task, seed=1)
    assert head_fits(fresh, task)
    assert structure_of(fresh) == structure_of(model)
    for name, weight in model.base_model.state_dict().items():
        assert torch.equal(weight, fresh.base_model.state_dict()[name])
    assert logits(fresh).shape == (4, 2)
    np.testing.assert_array_equal(logits(with_fresh_head(model, task, seed=1)), logits(fresh))
    with pytest.raises(ModelError, match="no head"):
        with_fresh_head(model.base_model, task, seed=1)


def test_damaged_weights_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    small = prune(copy.deepcopy(model), CUTS["units"])
    dense, pruned = save(model, tmp_path / "dense"), save(small, tmp_path / "pruned")
    (pruned / "model.safetensors").write_bytes((dense / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"do not fit structure\.json"):
        load_torch(pruned, task_of(model))
    save(small, dense)
    (dense / "structure.json").unlink()
    with pytest.raises(ModelError, match=r"do not fit config\.json"):
        load_torch(dense, task_of(model))
