"""The importance ``obs``: structured optimal brain surgery, priced in what the task's loss loses."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from compress.pruning.hessian import Moments, gather
from compress.pruning.importance import Count, Importance
from compress.pruning.ladder import Ladder, Ladders
from compress.pruning.obs import damped, removal_order
from compress.pruning.ranking import Projection, Ranking, packed, unpacked
from compress.pruning.stream import Sublayer, sublayers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.encoded import Encoded
    from compress.tasks.base import Task


class Surgeon(Importance):
    """Structured OBS of every output projection (ZipLM, arXiv:2302.04089) under Kronecker-factored curvature.

    ZipLM measures the error of a sub-layer's own output. Here its features count by how much the loss depends on
    them: the projection W is ranked as ``G^(1/2) W``, so that a ladder's cost estimates the rise of the loss, and
    costs of different sub-layers may be added. What the remaining weights become does not depend on G.

    Args:
        damp: added to the diagonal of the inputs' second moment, relative to its mean.
    """

    uses_data: ClassVar[bool] = True

    def __init__(self, damp: float = 1e-2) -> None:
        self.damp = damp

    def rank(
        self, model: PreTrainedModel, task: Task, examples: Encoded, batch_size: int, count: Count | None = None
    ) -> Ranking:
        moments = gather(model, task, examples, batch_size, count)
        ladders, projections = [], []
        for part, moment in zip(sublayers(model), moments, strict=True):
            projection = _projection(part, moment.inputs, self.damp)
            projections.append(projection)
            ladders.append(_ladder(projection, moment))
        return Ranking(Ladders(tuple(ladders[::2]), tuple(ladders[1::2])), True, tuple(projections))


def _projection(part: Sublayer, inputs: torch.Tensor, damp: float) -> Projection:
    if not part.units:
        return Projection(torch.zeros(len(part.projection.bias), 0).numpy(), packed(inputs.cpu().numpy()), 1)
    weight = part.projection.weight.detach().float().cpu().numpy()
    return Projection(weight, packed(damped(inputs, damp).cpu().numpy()), part.columns // part.units)


def _ladder(projection: Projection, moment: Moments) -> Ladder:
    """Return the ladder of a sub-layer; it and ``Projection.weights`` see the same, rounded second moment."""
    weight = torch.from_numpy(projection.weight).double()
    hessian = torch.from_numpy(unpacked(projection.moment, weight.shape[1])).double()
    values, vectors = torch.linalg.eigh(moment.outputs.cpu())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    order, loss = removal_order(root @ weight, hessian, projection.size)
    return Ladder(order, 0.5 * loss)
