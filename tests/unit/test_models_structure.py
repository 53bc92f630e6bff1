"""structure.json, what stands for a removed sub-layer, and which layers stay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from compress.distillation.internals import last_attention, read_internals
from compress.errors import ModelError, UsageError
from compress.models.depth import choose_layers
from compress.models.families import encoder_layers
from compress.models.removed import BiasOnly, NoAttention
from compress.models.structure import (
    LayerShape,
    Structure,
    apply_structure,
    is_dense,
    keep_units,
    kept_heads,
    structure_of,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 12}


@pytest.fixture
def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, vocab_size=20, max_position_embeddings=8)).eval()


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_schema_1_is_still_read(model: BertForSequenceClassification, tmp_path: Path) -> None:
    old = {
        "schema_version": 1,
        "model_type": "bert",
        "layers": [{"heads": [0, 2], "neurons": 5}, {"heads": [1], "neurons": 12}],
    }
    (tmp_path / "structure.json").write_text(json.dumps(old))
    structure = Structure.read(tmp_path)
    assert structure is not None
    apply_structure(model, structure)
    assert structure_of(model) == structure
    assert [kept_heads(layer) for layer in encoder_layers(model)] == [(0, 2), (1,)]


def test_schema_2_holds_all_that_config_cannot_say(tmp_path: Path) -> None:
    structure = Structure(
        model_type="bert",
        layers=(LayerShape(heads=(), neurons=0),),
        ranks={"b": 3, "a": 2},
        channels={"stem": (8, 1)},
    )
    structure.write(tmp_path)
    assert Structure.read(tmp_path) == structure
    written = json.loads((tmp_path / "structure.json").read_text())
    assert written["schema_version"] == 2
    assert list(written["ranks"]) == ["a", "b"]
    assert written["layers"] == [{"heads": [], "neurons": 0}]


def test_structure_of_another_model_is_refused(model: BertForSequenceClassification, tmp_path: Path) -> None:
    structure = structure_of(model)
    assert is_dense(model)
    other = (LayerShape(heads=(4,), neurons=1), structure.layers[1])
    for change in ({"model_type": "other"}, {"layers": structure.layers[:1]}, {"layers": other}):
        with pytest.raises(ModelError, match="does not belong"):
            apply_structure(model, structure.model_copy(update=change))
    (tmp_path / "structure.json").write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(ModelError, match=r"structure\.json cannot be read"):
        Structure.read(tmp_path)


@pytest.mark.parametrize(
    ("heads", "neurons"), [((4,), (0,)), ((1, 0), (0,)), ((0, 0), (0,)), ((0,), (12,)), ((-1,), ())]
)
def test_units_that_are_not_there_cannot_be_kept(
    model: BertForSequenceClassification, heads: tuple[int, ...], neurons: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match="cannot be kept"):
        keep_units(encoder_layers(model)[0], heads, neurons)
    assert is_dense(model)


def test_a_gone_sublayer_has_no_projections_and_no_units_to_keep(model: BertForSequenceClassification) -> None:
    layer = encoder_layers(model)[0]
    keep_units(layer, (), ())
    assert (layer.heads, layer.neurons, kept_heads(layer)) == (0, 0, ())
    for name in ("query", "key", "value", "attention_out", "ffn_in", "ffn_out"):
        with pytest.raises(ModelError, match="was removed"):
            getattr(layer, name)
    with pytest.raises(UsageError, match="cannot be kept"):
        keep_units(layer, (0,), ())
    keep_units(layer, (), ())


def test_dropout_treats_every_token_of_a_bias_by_itself(model: BertForSequenceClassification) -> None:
    bias = BiasOnly(encoder_layers(model)[0].ffn_out)
    states = torch.zeros(5, 7, 12)
    assert bias.eval()(states).shape == (16,)
    assert bias.train()(states).shape == (5, 7, 16)
    assert torch.equal(bias(states)[3, 4], bias.bias)


@pytest.mark.parametrize("inside", [False, True])
def test_no_attention_answers_like_an_attention_module(inside: bool) -> None:
    config = ViTConfig(**SIZES, image_size=4, patch_size=2, num_channels=1)
    bias = BiasOnly(encoder_layers(ViTForImageClassification(config))[0].attention_out).eval()
    stand_in = NoAttention("o_proj" if inside else None, bias)
    states = torch.ones(2, 3, 16)
    output, weights = stand_in(states, None, attention_mask=None)
    assert weights is None
    assert torch.equal(output, bias.bias if inside else states)
    assert [name for name, _ in stand_in.named_parameters()] == (["o_proj.bias"] if inside else [])


def test_relations_come_from_the_last_layer_with_attention(model: BertForSequenceClassification) -> None:
    first, second = encoder_layers(model)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    keep_units(second, (), range(12))
    keep_units(first, (0, 1, 3), range(12))
    internals = read_internals(model, inputs, layers=(0, 1), relations=True)
    assert internals.relations is not None
    assert internals.relations.shape == (2, 3, 3 * 3 * 4)
    assert len(internals.hidden) == 2
    assert torch.equal(internals.hidden[1], model.bert(**inputs).last_hidden_state)
    assert last_attention(model).query is first.query
    keep_units(first, (), range(12))
    assert read_internals(model, inputs).relations is None
    with pytest.raises(UsageError, match="no layer of the model has attention"):
        read_internals(model, inputs, relations=True)


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
