"""The loss terms by hand; padding, batch splits and unlabelled examples do not leak into them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.data.encoded import Encoded
from compress.distillation.examples import LABELLED, TARGETS, Examples
from compress.distillation.losses import hidden_loss, relation_heads, relation_loss, task_loss, uniform_layers
from compress.distillation.teacher import TeacherOutputs
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("no", "yes", "maybe"))


def test_hidden_loss_counts_real_tokens_only() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    wanted = torch.cat([(student - teacher)[0], (student - teacher)[1, :1]]).square().mean()
    assert torch.allclose(hidden_loss([student], [teacher], mask), wanted)
    teacher[1, 1:] = 99.0
    assert torch.allclose(hidden_loss([student], [teacher], mask), wanted)
    assert torch.allclose(hidden_loss([student, teacher], [teacher, teacher], mask), wanted / 2)


def relations_by_hand(student: np.ndarray, teacher: np.ndarray, lengths: list[int], heads: int) -> float:
    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    total, rows = 0.0, sum(lengths) * heads
    for index, length in enumerate(lengths):
        for part in range(3):
            for head in range(heads):
                maps = []
                for states in (student, teacher):
                    width = states.shape[-1] // 3
                    size = width // heads
                    start = part * width + head * size
                    a = states[index, :length, start : start + size].astype(np.float64)
                    maps.append(softmax(a @ a.T / np.sqrt(size)))
                total += float((maps[1] * np.log(maps[1] / maps[0])).sum())
    return total / rows


def test_relation_loss_by_hand_with_different_widths() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 3 * 4)), rng.normal(size=(2, 5, 3 * 8))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    loss = relation_loss(torch.tensor(student).float(), torch.tensor(teacher).float(), mask, heads=2)
    assert float(loss) == pytest.approx(relations_by_hand(student, teacher, [5, 2], 2), rel=1e-5)
    same = torch.tensor(teacher).float()
    assert float(relation_loss(same, same, mask, heads=4)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "most", "wanted"),
    [(384, 384, 12, 12), (352, 384, 12, 8), (96, 384, 12, 12), (7, 384, 12, 1)],
)
def test_relation_heads(student: int, teacher: int, most: int, wanted: int) -> None:
    assert relation_heads(student, teacher, most) == wanted


def test_uniform_layers() -> None:
    assert uniform_layers(6, 6) == (0, 1, 2, 3, 4, 5)
    assert uniform_layers(3, 6) == (1, 3, 5)
    assert uniform_layers(4, 12) == (2, 5, 8, 11)
    assert uniform_layers(1, 6) == (5,)


def test_unlabelled_examples_contribute_nothing_to_the_task_loss() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([0, 1, 2])
    labelled = torch.tensor([True, True, False])
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    loss = task_loss(TASK, logits, targets, labelled)
    assert torch.allclose(loss, each[:2].sum() / 3)
    loss.backward()
    assert torch.equal(logits.grad[2], torch.zeros(3))
    none = task_loss(TASK, logits, targets, torch.zeros(3, dtype=torch.bool))
    assert float(torch.autograd.grad(none, logits)[0].abs().sum()) == 0.0


def test_label_smoothing_equals_soft_targets() -> None:
    logits, targets = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]]), torch.tensor([0, 2])
    wanted = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.2)
    assert torch.allclose(task_loss(TASK, logits, targets, smoothing=0.2), wanted)


def test_examples_pad_tokens_and_teacher_outputs_alike(tiny_encoded: Encoded) -> None:
    lengths = tiny_encoded.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths), [lengths.sum() + 3]])
    hidden = np.arange(offsets[-1] * 2, dtype=np.float16).reshape(-1, 2)
    teacher = TeacherOutputs(np.eye(25, dtype=np.float32), {"teacher_hidden_0": hidden}, offsets)
    extra = Encoded({name: [np.ones(3, dtype=np.int64)] for name in tiny_encoded.inputs}, tiny_encoded.padding)
    examples = Examples(tiny_encoded, extra, teacher)
    assert len(examples) == 25
    assert examples.lengths == [*lengths, 3]
    batch = examples.collate([examples[i] for i in (2, 24, 5)])
    longest = max(lengths[2], 3, lengths[5])
    assert batch["input_ids"].shape == (3, longest)
    assert batch["teacher_hidden_0"].shape == (3, longest, 2)
    assert batch[LABELLED].tolist() == [True, False, True]
    assert batch[TARGETS].tolist() == [tiny_encoded.targets[2], 0, tiny_encoded.targets[5]]
    assert torch.equal(batch["attention_mask"].sum(dim=1), torch.tensor([lengths[2], 3, lengths[5]]))
    np.testing.assert_array_equal(batch["teacher_hidden_0"][1, :3], hidden[offsets[24] : offsets[25]])
    assert float(batch["teacher_hidden_0"][1, 3:].abs().sum()) == 0.0
    assert torch.equal(batch["teacher_logits"].argmax(dim=1), torch.tensor([2, 24, 5]))
