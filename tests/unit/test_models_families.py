"""Every supported family: shapes, counts, surgery, saving and loading, on tiny random models."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from compress.errors import ModelError
from compress.models.counting import count_macs, count_parameters, planned_counts
from compress.models.depth import choose_layers, drop_layers
from compress.models.families import FAMILIES, dimensions, encoder_layers, family_of
from compress.models.heads import head_fits, with_fresh_head
from compress.models.loading import load_torch, save_torch
from compress.models.structure import Structure, apply_structure, is_dense, structure_of
from compress.pruning.importance import masked
from compress.pruning.selection import LayerUnits
from compress.pruning.surgery import prune_heads_and_neurons
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("negative", "neutral", "positive"), max_length=16)
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 61,
    "max_position_embeddings": 24,
}
DISTIL_SIZES = {
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 48,
    "vocab_size": 61,
    "max_position_embeddings": 24,
}
CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**SIZES),
    "roberta": lambda: RobertaConfig(**SIZES, pad_token_id=1),
    "xlm-roberta": lambda: XLMRobertaConfig(**SIZES, pad_token_id=1),
    "camembert": lambda: CamembertConfig(**SIZES, pad_token_id=1),
    "distilbert": lambda: DistilBertConfig(**DISTIL_SIZES),
    "electra": lambda: ElectraConfig(**SIZES, embedding_size=16),
}
KEEP = [
    LayerUnits((0, 2, 3), tuple(range(0, 48, 2))),
    LayerUnits((1,), (5,)),
    LayerUnits((0, 1, 2, 3), tuple(range(48))),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    config = CONFIGS[request.param]()
    for key, value in TASK.config_options().items():
        setattr(config, key, value)
    config.initializer_range = 0.3
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(config).eval()


def logits(model: PreTrainedModel) -> np.ndarray:
    rng = np.random.default_rng(5)
    ids = torch.from_numpy(rng.integers(3, 61, (4, 9)))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits.numpy()


def test_every_family_is_covered() -> None:
    assert sorted(CONFIGS) == sorted(name for family in FAMILIES for name in family.model_types)


def test_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="not supported") as caught:
        family_of("robertta")
    assert "roberta" in caught.value.fix
    with pytest.raises(ModelError, match="lacks a size"):
        dimensions({"model_type": "bert", "hidden_size": 32})


def test_layers_and_dimensions(model: PreTrainedModel) -> None:
    size = dimensions(model.config.to_dict())
    assert (size.layers, size.hidden, size.heads, size.neurons, size.head_size) == (3, 32, 4, 48, 8)
    assert size.positions == (22 if "rob" in model.config.model_type or "cam" in model.config.model_type else 24)
    for layer in encoder_layers(model):
        assert (layer.heads, layer.neurons) == (4, 48)
        assert layer.attention_out.in_features == 32
        assert layer.ffn_out.in_features == 48


def test_planned_counts_equal_those_of_the_model(model: PreTrainedModel) -> None:
    assert planned_counts(model.config.to_dict()) == (count_parameters(model), count_macs(model))


def test_macs_in_closed_form(model: PreTrainedModel) -> None:
    tokens, hidden, neurons = 10, 32, 48
    layer = tokens * (4 * hidden * hidden + 2 * hidden * neurons) + 2 * tokens**2 * hidden
    projection = tokens * 16 * 32 if model.config.model_type == "electra" else 0
    assert count_macs(model, tokens) == 3 * layer + projection + hidden * hidden + hidden * 3


def test_pruned_equals_masked(model: PreTrainedModel) -> None:
    masks = []
    for units in KEEP:
        heads, neurons = torch.zeros(1, 4), torch.zeros(1, 48)
        heads[0, list(units.heads)] = 1
        neurons[0, list(units.neurons)] = 1
        masks.append((heads, neurons))
    dense = logits(model)
    with masked(encoder_layers(model), masks):
        wanted = logits(model)
    structure = prune_heads_and_neurons(model, KEEP)
    np.testing.assert_allclose(logits(model), wanted, atol=1e-5)
    assert np.abs(dense - wanted).max() > 1e-2
    assert [layer.heads for layer in structure.layers] == [units.heads for units in KEEP]
    assert [layer.neurons for layer in structure.layers] == [24, 1, 48]
    assert [layer.heads for layer in encoder_layers(model)] == [3, 1, 4]


def test_macs_and_parameters_fall_by_what_was_removed(model: PreTrainedModel) -> None:
    parameters, macs = count_parameters(model), count_macs(model, 10)
    prune_heads_and_neurons(model, KEEP)
    heads, neurons = 1 + 3, 24 + 47
    assert parameters - count_parameters(model) == heads * (4 * 32 * 8 + 3 * 8) + neurons * (2 * 32 + 1)
    assert macs - count_macs(model, 10) == heads * (10 * 4 * 32 * 8 + 2 * 100 * 8) + neurons * 10 * 2 * 32


def test_save_and_load_rebuild_the_shapes(model: PreTrainedModel, tmp_path: Path) -> None:
    prune_heads_and_neurons(model, KEEP)
    save_torch(model, tmp_path, tokenizer_from=tmp_path)
    loaded = load_torch(tmp_path, TASK)
    np.testing.assert_array_equal(logits(loaded), logits(model))
    assert structure_of(loaded) == structure_of(model)
    assert not loaded.training
    second = tmp_path / "second"
    second.mkdir()
    save_torch(loaded, second, tokenizer_from=tmp_path)
    for name in ("config.json", "structure.json", "model.safetensors"):
        assert (second / name).read_bytes() == (tmp_path / name).read_bytes()


def test_depth_pruned_opens_plainly(model: PreTrainedModel, tmp_path: Path) -> None:
    three = logits(model)
    drop_layers(model, (0, 2))
    save_torch(model, tmp_path, tokenizer_from=tmp_path)
    assert not (tmp_path / "structure.json").exists()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    np.testing.assert_array_equal(logits(plain), logits(model))
    assert plain.config.num_hidden_layers == 2
    assert not np.array_equal(three, logits(plain))


def test_depth_and_width_together(model: PreTrainedModel, tmp_path: Path) -> None:
    prune_heads_and_neurons(model, KEEP)
    drop_layers(model, (1, 2))
    save_torch(model, tmp_path, tokenizer_from=tmp_path)
    loaded = load_torch(tmp_path, TASK)
    np.testing.assert_array_equal(logits(loaded), logits(model))
    assert [shape.neurons for shape in structure_of(loaded).layers] == [1, 48]


def test_fresh_head_keeps_the_encoder(model: PreTrainedModel) -> None:
    prune_heads_and_neurons(model, KEEP)
    task = TextClassification(("a", "b"), max_length=16)
    assert head_fits(model, TASK)
    assert not head_fits(model, task)
    assert not head_fits(model, TextClassification(TASK.labels[::-1], max_length=16))
    fresh = with_fresh_head(model, task, seed=1)
    assert head_fits(fresh, task)
    assert structure_of(fresh) == structure_of(model)
    for name, weight in model.base_model.state_dict().items():
        assert torch.equal(weight, fresh.base_model.state_dict()[name])
    assert logits(fresh).shape == (4, 2)
    np.testing.assert_array_equal(logits(with_fresh_head(model, task, seed=1)), logits(fresh))
    with pytest.raises(ModelError, match="no head"):
        with_fresh_head(model.base_model, task, seed=1)


def test_structure_of_another_model_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    structure = structure_of(model)
    assert is_dense(model)
    for change in ({"model_type": "other"}, {"layers": structure.layers[:2]}):
        with pytest.raises(ModelError, match="does not belong"):
            apply_structure(model, structure.model_copy(update=change))
    (tmp_path / "structure.json").write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(ModelError, match=r"structure\.json cannot be read"):
        Structure.read(tmp_path)


def test_damaged_weights_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    for folder in (dense, pruned):
        folder.mkdir()
    small = copy.deepcopy(model)
    prune_heads_and_neurons(small, KEEP)
    save_torch(model, dense, tokenizer_from=tmp_path)
    save_torch(small, pruned, tokenizer_from=tmp_path)
    (pruned / "model.safetensors").write_bytes((dense / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"do not fit structure\.json"):
        load_torch(pruned, TASK)
    (pruned / "structure.json").unlink()
    save_torch(small, dense, tokenizer_from=tmp_path)
    (dense / "structure.json").unlink()
    with pytest.raises(ModelError, match=r"do not fit config\.json"):
        load_torch(dense, TASK)


@pytest.mark.parametrize(
    ("layers", "total", "wanted"),
    [(1, 6, (0,)), (2, 6, (0, 5)), (3, 6, (0, 3, 5)), (6, 6, (0, 1, 2, 3, 4, 5)), (6, 12, (0, 2, 4, 7, 9, 11))],
)
def test_layers_are_spaced_evenly(layers: int, total: int, wanted: tuple[int, ...]) -> None:
    assert choose_layers(layers, total) == wanted


def test_layers_by_importance_and_by_position() -> None:
    assert choose_layers(2, 4, np.array([1.0, 5.0, 2.0, 4.0])) == (1, 3)
    assert choose_layers([3, 0], 4) == (0, 3)
    for wrong in (0, 5, [], [0, 0], [4]):
        with pytest.raises(Exception, match="cannot be kept"):
            choose_layers(wrong, 4)
