"""Tables of costs against counted models, and their levels, arithmetic and JSON form."""

from __future__ import annotations

import pytest
from transformers import BertConfig, BertForSequenceClassification

from compress.errors import DataError, UsageError
from compress.models.counting import count_macs, count_parameters
from compress.models.families import dimensions, encoder_layers
from compress.models.structure import keep_units
from compress.pruning.costs import CostTable, macs_table, neuron_levels, parameters_table
from compress.pruning.ladder import Widths

CONFIG = BertConfig(
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=20,
    max_position_embeddings=16,
)
SIZE = dimensions(CONFIG.to_dict())
DENSE = Widths((4, 4), (20, 20))
SMALL = Widths((1, 3), (8, 16))
TABLE = CostTable("ms", 1.0, {0: 0.0, 2: 0.5, 4: 0.9}, {0: 0.0, 8: 1.0, 16: 3.0}, min_heads=2)


def test_macs_and_parameters_equal_those_of_a_pruned_model() -> None:
    model = BertForSequenceClassification(CONFIG)
    macs = macs_table(SIZE, grid=8)
    macs = macs_table(SIZE, grid=8, fixed=count_macs(model) - macs.total(DENSE))
    parameters = parameters_table(SIZE, grid=8)
    outside = count_parameters(model) - parameters.total(DENSE)
    parameters = parameters_table(SIZE, grid=8, outside=outside)
    assert outside == sum(p.numel() for name, p in model.named_parameters() if "encoder" not in name)
    for layer, heads, neurons in zip(encoder_layers(model), SMALL.heads, SMALL.neurons, strict=True):
        keep_units(layer, range(heads), range(neurons))
    assert macs.total(SMALL) == count_macs(model)
    assert parameters.total(SMALL) == count_parameters(model)


def test_levels_are_on_the_grid_and_the_dense_width_is_always_one() -> None:
    assert neuron_levels(20, 8) == [0, 8, 16, 20]
    assert neuron_levels(16, 8) == [0, 8, 16]
    assert neuron_levels(16, 64) == [0, 16]
    with pytest.raises(UsageError, match="grid"):
        neuron_levels(16, 0)


def test_levels_stay_below_the_present_width_and_above_the_minimum() -> None:
    table = macs_table(SIZE, grid=8, min_heads=2, min_neurons=1)
    assert table.levels(0, 4) == (2, 3, 4)
    assert table.levels(1, 20) == (8, 16, 20)
    assert table.levels(3, 12) == (8, 12)
    assert table.levels(2, 1) == (1,)
    assert table.levels(3, 0) == (0,)
    assert table.at_least().levels(0, 2) == (0, 1, 2)


def test_a_width_between_two_levels_costs_in_proportion() -> None:
    assert TABLE.cost(0, 3) == pytest.approx(0.7)
    assert TABLE.cost(1, 12) == pytest.approx(2.0)
    assert TABLE.total(Widths((2, 0), (8, 16))) == pytest.approx(1.0 + 0.5 + 1.0 + 0.0 + 3.0)


def test_scaling_reaches_every_cost() -> None:
    widths = Widths((2, 4), (8, 0))
    assert TABLE.scale(1.5).total(widths) == pytest.approx(1.5 * TABLE.total(widths))
    assert TABLE.scale(1.5).min_heads == 2


def test_json_round_trip_is_exact_and_deterministic() -> None:
    table = CostTable("ms", 0.1, {4: 1 / 3, 0: 0.0}, {8: 0.7, 0: 1e-9}, min_neurons=8)
    assert CostTable.loads(table.dumps()) == table
    assert CostTable.loads(table.dumps()).dumps() == table.dumps()


@pytest.mark.parametrize("text", ["", "[]", '{"unit": "ms"}', TABLE.dumps().replace("ms", "s")])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        CostTable.loads(text)
