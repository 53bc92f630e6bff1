"""The terms of the distillation loss; padding never counts, and no term depends on the batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from compress.tasks.base import Task


def task_loss(
    task: Task,
    logits: torch.Tensor,
    targets: torch.Tensor,
    labelled: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the task's loss, averaged over the batch; unlabelled examples contribute nothing.

    Args:
        task: gives the loss.
        logits: (batch, labels) float32.
        targets: as the task encodes them, (batch, ...).
        labelled: (batch,) bool; None: every example has a label.
        smoothing: label smoothing of a single-label task (Szegedy et al. 2016, eq. 7-8): the target is
            ``(1 - smoothing) * one-hot + smoothing / labels``.
    """
    share = 1.0
    if labelled is not None and not bool(labelled.all()):
        share = float(labelled.float().mean())
        logits, targets = logits[labelled], targets[labelled]
        if share == 0.0:
            return logits.sum()
    loss = task.loss(logits, targets)
    if smoothing:
        uniform = -functional.log_softmax(logits, dim=-1).mean()
        loss = (1 - smoothing) * loss + smoothing * uniform
    return share * loss


def hidden_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Return the token-wise mean squared error of hidden states (ZipLM, arXiv:2302.04089, section 3.3).

    Args:
        student: for each compared layer (batch, tokens, hidden), mapped to the teacher's width.
        teacher: the same shapes.
        attention_mask: (batch, tokens), 1 for tokens and 0 for padding; None: there is no padding.

    Returns:
        The mean over layers, real tokens and features.
    """
    mask = _real(attention_mask, student[0]).unsqueeze(-1)
    tokens = mask.sum()
    terms = [
        ((s - t.to(s.dtype)).square() * mask).sum() / (tokens * s.shape[-1])
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()


def relation_loss(
    student: torch.Tensor, teacher: torch.Tensor, attention_mask: torch.Tensor | None, heads: int
) -> torch.Tensor:
    """Return the self-attention relation loss of MiniLMv2 (Wang et al. 2021, arXiv:2012.15828, eq. 5-7).

    Queries, keys and values are each split anew into ``heads`` relation heads, so that neither the widths
    nor the numbers of attention heads of the two models have to agree. For A in (Q, K, V):
    ``R = softmax(A A^T / sqrt(d_r))``, and the loss adds up ``KL(R_teacher || R_student)``, averaged over
    relation heads and real tokens.

    Args:
        student, teacher: (batch, tokens, 3 * width) each, Q, K and V side by side; widths may differ.
        attention_mask: (batch, tokens); None: there is no padding.
        heads: relation heads; divides both widths.
    """
    real = _real(attention_mask, student)
    total = student.new_zeros(())
    for s, t in zip(student.chunk(3, dim=-1), teacher.chunk(3, dim=-1), strict=True):
        log_s, log_t = _relations(s, real, heads), _relations(t.to(s.dtype), real, heads)
        divergence = (log_t.exp() * (log_t - log_s)).sum(dim=-1)
        total = total + (divergence * real.unsqueeze(1)).sum() / (real.sum() * heads)
    return total


def relation_heads(student_width: int, teacher_width: int, most: int) -> int:
    """Return the largest number of relation heads, at most ``most``, that divides both widths."""
    common = math.gcd(student_width, teacher_width)
    return max(heads for heads in range(1, most + 1) if common % heads == 0)


def uniform_layers(student: int, teacher: int) -> tuple[int, ...]:
    """Return the teacher layer that each student layer imitates: evenly spaced, last with last.

    With N student and M teacher layers, student layer i (from 1) imitates ``round(i * M / N)`` (TinyBERT,
    arXiv:1909.10351, section 3.1); counted from 0 here.
    """
    return tuple(math.floor((i + 1) * teacher / student + 0.5) - 1 for i in range(student))


def _real(attention_mask: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    """Return (batch, tokens) float32: 1 for tokens and 0 for padding."""
    return states.new_ones(states.shape[:2]) if attention_mask is None else attention_mask.to(torch.float32)


def _relations(states: torch.Tensor, real: torch.Tensor, heads: int) -> torch.Tensor:
    """Return log softmax(A A^T / sqrt(d_r)) over real tokens: (batch, heads, tokens, tokens)."""
    batch, tokens, width = states.shape
    split = states.view(batch, tokens, heads, width // heads).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / math.sqrt(width // heads)
    hidden = (1.0 - real)[:, None, None, :] * -1e9
    return functional.log_softmax(scores + hidden, dim=-1)
