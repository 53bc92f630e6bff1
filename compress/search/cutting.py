"""Cut an encoder down: rank its units once, choose widths for a budget, remove the rest, refit what stays."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.artifact import hash_json
from compress.data.encoded import Encoded
from compress.models.families import encoder_layers
from compress.models.structure import keep_units
from compress.pruning.allocation import choose_widths, uniform_widths
from compress.pruning.costs import CostTable
from compress.pruning.importance import importances
from compress.pruning.ladder import Ladders, Widths
from compress.pruning.ranking import Ranking
from compress.store import Store
from compress.tasks.base import Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Emit = Callable[..., None]
SCORED = 256
"""Examples on which candidates of the local search are scored, at most."""


@dataclass(frozen=True)
class Method:
    """How units are ranked, chosen and made up for.

    Attributes:
        importance: a registered importance.
        reconstruct: refit the output projections of the cut model on the examples.
        search: candidates scored on real inputs, the first by the measured loss of every sub-layer alone, the
            rest by local search from it; 0: the ranking's losses decide, if they are comparable.
        uniform: all heads stay and every layer gets the same number of neurons.
        batch_size: examples per forward pass.
        seed: of the local search.
    """

    importance: str
    reconstruct: bool = True
    search: int = 0
    uniform: bool = False
    batch_size: int = 32
    seed: int = 0


class Cutter:
    """A model with its ranking: gives the cut model for any budget; the model itself is never changed.

    Args:
        model: a supported encoder with the task's head, pruned before or not.
        task: gives losses and divergences.
        examples: labelled training examples.
        ranking: of this model.
        method: how to choose and refit.
        emit: progress sink.
    """

    def __init__(
        self, model: PreTrainedModel, task: Task, examples: Encoded, ranking: Ranking, method: Method, emit: Emit
    ) -> None:
        self.model, self._task, self.examples = model, task, examples
        self.ranking, self._method, self._emit = ranking, method, emit
        self._curves: Ladders | None = None
        self._chosen: dict[tuple[str, float], Widths] = {}

    @property
    def present(self) -> Widths:
        """The widths of the model as it is."""
        return present_widths(self.model)

    def choose(self, costs: CostTable, budget: float) -> Widths:
        """Return the best widths that cost at most ``budget``.

        Raises:
            UsageError: even the smallest widths cost more.
        """
        if self._method.uniform:
            return uniform_widths(self.present, costs, budget)
        place = (costs.dumps(), budget)
        if place not in self._chosen:
            self._chosen[place] = self._search(costs, budget)
        return self._chosen[place]

    def cut(self, widths: Widths, *, refit: bool = True) -> PreTrainedModel:
        """Return a copy with these widths: the weakest units removed, and what stays compensated and refitted.

        Without ``refit`` the shapes are right and the weights merely cut out: enough to be timed.
        """
        pruned = copy.deepcopy(self.model)
        for index, (layer, heads, neurons) in enumerate(
            zip(encoder_layers(pruned), widths.heads, widths.neurons, strict=True)
        ):
            ladders = self.ranking.ladders
            kept = ladders.heads[index].kept(heads), ladders.neurons[index].kept(neurons)
            keep_units(layer, *kept)
        if refit:
            for sublayer, out in enumerate(_outputs(pruned)):
                self._compensate(sublayer, widths.sublayers[sublayer], out)
            if self._method.reconstruct:
                self._reconstruct(pruned)
        return pruned

    def _search(self, costs: CostTable, budget: float) -> Widths:
        ladders = self.ranking.ladders
        if not self._method.search and self.ranking.comparable:
            return choose_widths(ladders, costs, budget)
        from compress.pruning.candidates import CandidateScorer
        from compress.pruning.spdy import search, sensitivity_curves

        few = self.examples.select(range(min(SCORED, len(self.examples))))
        score = CandidateScorer(self.model, self._task, self.ranking, few, self._method.batch_size)
        if self._curves is None:
            self._curves = sensitivity_curves(ladders, costs, score, count=self._counting("sensitivity of sub-layers"))
        found = search(
            self._curves,
            costs,
            budget,
            score,
            steps=max(self._method.search - 1, 0),
            seed=self._method.seed,
            count=self._counting("searching widths"),
        )
        return found.widths

    def _compensate(self, sublayer: int, width: int, out: torch.nn.Linear | None) -> None:
        import torch

        ladder = self.ranking.ladders.sublayers[sublayer]
        if out is None or width == ladder.units:
            return
        weights = self.ranking.weights(sublayer, ladder.kept(width))
        if weights is not None:
            with torch.no_grad():
                out.weight.copy_(torch.from_numpy(weights))

    def _reconstruct(self, pruned: PreTrainedModel) -> None:
        from compress.pruning.reconstruction import reconstruct

        count = self._counting("refitting sub-layers")
        reconstruct(pruned, self.model, self.examples, self._method.batch_size, count=count)

    def _counting(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._emit(what, done, total)


def present_widths(model: PreTrainedModel) -> Widths:
    """Return the widths of a model as it is."""
    layers = encoder_layers(model)
    return Widths(tuple(layer.heads for layer in layers), tuple(layer.neurons for layer in layers))


def rank_units(
    model: PreTrainedModel, digest: str, task: Task, examples: Encoded, method: Method, store: Store, emit: Emit
) -> Ranking:
    """Return the ranking of a model from the store; one database serves every budget and target.

    Args:
        model: a supported encoder with the task's head.
        digest: of the artifact that it comes from.
        task: gives the loss.
        examples: labelled training examples.
        method: which importance.
        store: keeps the ranking.
        emit: progress sink.
    """
    importance, plugin = importances.get(method.importance)(), importances.versions(method.importance)
    used = {
        "ranking": 2,
        "model": digest,
        "layers": len(encoder_layers(model)),
        "importance": [method.importance, plugin] if plugin else method.importance,
        "task": task.dump(),
        "examples": _digest(examples) if importance.uses_data else "",
        "device": model.device.type,
    }

    def build(folder: object) -> None:
        importance.rank(
            model,
            task,
            examples,
            method.batch_size,
            lambda done, total: emit(f"{method.importance} importance", done, total),
        ).save(folder)  # type: ignore[arg-type]

    folder, _ = store.get_or_build(hash_json(used), f"ranking by {method.importance}", build)
    return Ranking.load(folder)


def _outputs(model: PreTrainedModel) -> list[torch.nn.Linear | None]:
    """Return the output projections in the order of sub-layers; None where the sub-layer is gone."""
    out: list[torch.nn.Linear | None] = []
    for layer in encoder_layers(model):
        out += [layer.attention_out if layer.heads else None, layer.ffn_out if layer.neurons else None]
    return out


def _digest(examples: Encoded) -> str:
    digest = hashlib.sha256()
    for name in sorted(examples.inputs):
        digest.update(name.encode())
        for row in examples.inputs[name]:
            digest.update(row.tobytes())
    if examples.targets is not None:
        digest.update(examples.targets.tobytes())
    return digest.hexdigest()
