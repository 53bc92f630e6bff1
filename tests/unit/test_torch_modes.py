"""How an opened torch model computes: precision, compiled, and the switches that are put back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.runtimes.target import Target, find_target
from compress.runtimes.torch_session import TorchSession, set_tf32, tf32

IDS = {"input_ids": np.array([[1, 2, 3], [4, 5, 0]], dtype=np.int64)}


class Bag(torch.nn.Module):
    """Mean of embeddings, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = torch.nn.Embedding(8, 16), torch.nn.Linear(16, 2)

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.out(self.table(input_ids).mean(1)))


class Pixels(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []
        self.out = torch.nn.Linear(4, 2)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.seen.append(pixel_values.dtype)
        return SimpleNamespace(logits=self.out(pixel_values))


@pytest.fixture
def opened() -> Iterator[Callable[..., TorchSession]]:
    sessions: list[TorchSession] = []

    def build(model: torch.nn.Module, name: str = "input_ids", **fields: object) -> TorchSession:
        target = Target.model_validate({"name": "mine", "runtime": "torch", "threads": 1, **fields})
        sessions.append(TorchSession(model.eval(), {"model": [name]}, target))  # type: ignore[arg-type]
        return sessions[-1]

    yield build
    for session in sessions:
        session.close()


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 11), ("bf16", 8)])
def test_half_precision_is_off_by_its_rounding_and_no_more(
    precision: str, bits: int, opened: Callable[..., TorchSession]
) -> None:
    exact = opened(Bag()).run(IDS)["logits"]
    session = opened(Bag(), precision=precision)
    rounded = session.run(IDS)["logits"]
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 8 * 2.0**-bits
    dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    assert session.placement()["dtype"] == dtype


def test_pixels_follow_the_precision_of_the_model(opened: Callable[..., TorchSession]) -> None:
    model = Pixels()
    opened(model, "pixel_values", precision="bf16").run({"pixel_values": np.ones((1, 4), dtype=np.float32)})
    assert model.seen == [torch.bfloat16]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_answers_alike_at_every_length(opened: Callable[..., TorchSession]) -> None:
    plain, compiled = opened(Bag()), opened(Bag(), compile=True)
    for length in (3, 5, 6):
        ids = {"input_ids": np.arange(2 * length, dtype=np.int64).reshape(2, length) % 8}
        np.testing.assert_allclose(compiled.run(ids)["logits"], plain.run(ids)["logits"], rtol=1e-5, atol=1e-6)
    assert (plain.placement()["compiled"], compiled.placement()["compiled"]) == (False, True)


def test_the_device_clock_is_of_a_gpu(opened: Callable[..., TorchSession]) -> None:
    assert opened(Bag()).device_ms(IDS) is None


@pytest.mark.parametrize("before", [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize(("name", "during"), [("torch-cuda", "ieee"), ("torch-cuda-tf32", "tf32")])
def test_tf32_is_set_while_open_and_put_back(
    before: tuple[bool, bool], name: str, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, old = torch.device("cpu"), tf32()
    monkeypatch.setattr(torch, "device", lambda name: cpu)
    try:
        set_tf32(before)
        session = TorchSession(Bag(), {"model": ["input_ids"]}, find_target(name))  # type: ignore[arg-type]
        assert torch.backends.cuda.matmul.fp32_precision == during
        assert tf32() == (during == "tf32",) * 2
        session.close()
        session.close()
        assert tf32() == before
    finally:
        set_tf32(old)


def test_a_session_on_the_cpu_leaves_the_switches_of_a_gpu_alone(opened: Callable[..., TorchSession]) -> None:
    old = tf32()
    try:
        set_tf32((True, False))
        opened(Bag())
        assert tf32() == (True, False)
    finally:
        set_tf32(old)
