"""The child's commands on a fake session and a fake clock: exact times, no waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact
from compress.bench.commands import WARMUP_CAP, WINDOW, Commands
from compress.bench.examples import load_rows, save_rows
from compress.data.encoded import Encoded
from compress.data.pictures import IMAGE, Picture
from compress.runtimes.base import Session
from compress.runtimes.target import Target, find_target
from compress.tasks.base import Row
from compress.tasks.text_classification import TextClassification

MS = 1_000_000


class Clock:
    """Nanoseconds that only a session moves on."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Model(Session):
    """Answers with (first token, longest length) and takes ``cost(batch)`` milliseconds."""

    def __init__(self, clock: Clock, cost: Callable[[np.ndarray], float]) -> None:
        self.clock, self.cost = clock, cost
        self.ran: list[np.ndarray] = []

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        ids = batch["input_ids"]
        self.ran.append(ids)
        self.clock.now += int(self.cost(ids) * MS)
        return {"logits": np.stack([ids[:, 0], np.full(len(ids), ids.shape[1])], axis=1).astype(np.float64)}


def examples(lengths: list[int]) -> Encoded:
    return Encoded({"input_ids": [np.full(n, i + 1) for i, n in enumerate(lengths)]}, {"input_ids": 0})


def commands(cost: Callable[[np.ndarray], float], lengths: list[int]) -> tuple[Commands, Model]:
    clock = Clock()
    model, run = Model(clock, cost), Commands(clock)
    run.attach(model, examples(lengths), "logits")
    return run, model


def test_round_times_each_example_alone_at_its_real_length_after_one_untimed() -> None:
    run, model = commands(lambda ids: ids.size * 0.5, [4, 2, 9])
    assert run.handle({"op": "round", "indices": [2, 0, 1]}) == {"ms": [4.5, 2.0, 1.0]}
    assert [ids.shape for ids in model.ran] == [(1, 9), (1, 9), (1, 4), (1, 2)]


def test_round_of_batches_pads_neighbours_to_the_longest() -> None:
    run, model = commands(lambda ids: ids.size * 0.5, [4, 2, 9])
    assert run.handle({"op": "round", "indices": [2, 0, 1], "batch": 2}) == {"ms": [9.0, 1.0]}
    assert [ids.shape for ids in model.ran] == [(2, 9), (2, 9), (1, 2)]
    assert run.do_warmup([2, 0, 1], seconds=0, batch=2)["first_ms"] == 9.0


def test_arrays_are_built_before_any_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run, model = commands(lambda ids: 1.0, [3, 3])
    batch = Encoded.batch

    def slow(self: Encoded, indices: list[int]) -> dict[str, np.ndarray]:
        model.clock.now += 1000 * MS
        return batch(self, indices)

    monkeypatch.setattr(Encoded, "batch", slow)
    assert run.do_round([0, 1, 0]) == {"ms": [1.0, 1.0, 1.0]}


def test_warmup_reports_the_first_inference_and_runs_every_input() -> None:
    costs = iter([50.0])
    run, model = commands(lambda ids: next(costs, 1.0), [3] * 12)
    warm = run.do_warmup(list(range(12)), seconds=0)
    assert warm == {"first_ms": 50.0, "settled": True, "warmup_s": pytest.approx(0.050 + 0.012 + 3 * WINDOW * 0.001)}
    assert len(model.ran) == 1 + 12 + 3 * WINDOW
    assert {int(ids[0, 0]) for ids in model.ran} == set(range(1, 13))


def test_warmup_goes_on_until_time_has_passed() -> None:
    run, model = commands(lambda ids: 1.0, [3])
    run.do_warmup([0], seconds=0.1)
    assert len(model.ran) == 2 + 100


def test_warmup_waits_for_the_medians_to_agree() -> None:
    def falling() -> Iterator[float]:
        yield from (20.0, 20.0, *(16.0, 8.0, 4.0, 2.0))
        while True:
            yield 1.0

    costs = falling()
    run, model = commands(lambda ids: next(costs), [3])
    assert run.do_warmup([0], seconds=0.01)["settled"]
    assert len(model.ran) == 2 + 4 + 3


def test_warmup_gives_up_on_a_latency_that_never_settles() -> None:
    growing = iter(2.0**n for n in range(100))
    run, model = commands(lambda ids: next(growing), [3])
    assert not run.do_warmup([0], seconds=0.1)["settled"]
    assert model.clock.now >= 0.1 * WARMUP_CAP * 1000 * MS


def test_throughput_repeats_whole_passes_over_its_groups() -> None:
    run, model = commands(lambda ids: 10.0, [9, 2, 8, 3])
    assert run.handle({"op": "throughput_prepare", "groups": [[1, 3], [2, 0]], "streams": 1}) == {}
    assert [ids.shape for ids in model.ran] == [(2, 3), (2, 9)], "one pass untimed"
    assert run.handle({"op": "throughput", "seconds": 0.05}) == {"per_s": pytest.approx(200.0), "seconds": 0.06}
    assert len(model.ran) == 2 + 3 * 2, "whole passes until the time is used up"
    assert run.do_throughput(seconds=0.0)["seconds"] == pytest.approx(0.02), "one pass at least"


def test_throughput_in_streams_says_where_a_runtime_has_none() -> None:
    run, model = commands(lambda ids: 10.0, [9, 2])
    answer = run.do_throughput_prepare([[0], [1]], streams=2)
    assert answer == {"cannot": "This runtime is opened for one batch at a time. 2 streams"}
    assert model.ran == []


@pytest.mark.parametrize(("batch", "widths"), [(1, [4, 2, 9]), (2, [4, 4, 9])])
def test_predict_writes_float32_in_order(batch: int, widths: list[int], tmp_path: Path) -> None:
    run, _ = commands(lambda ids: 1.0, [4, 2, 9])
    assert run.do_predict(str(tmp_path / "out.npy"), batch) == {"examples": 3}
    outputs = np.load(tmp_path / "out.npy")
    assert outputs.dtype == np.float32
    np.testing.assert_array_equal(outputs, np.array([[1, 2, 3], widths]).T)


def test_predict_can_be_limited_to_some_examples(tmp_path: Path) -> None:
    run, _ = commands(lambda ids: 1.0, [4, 2, 9])
    run.do_predict(str(tmp_path / "out.npy"), 1, [2, 0])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[:, 0], [3, 1])


class SlowTask(TextClassification):
    """Decoding takes 3 ms of the session's clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(("a", "b"))
        object.__setattr__(self, "clock", clock)

    def predictions(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        self.clock.now += 3 * MS  # type: ignore[attr-defined]
        return super().predictions(outputs)


def test_end_to_end_covers_preprocessing_model_and_decoding_of_each_input_alone() -> None:
    run, model = commands(lambda ids: ids.shape[1] * 0.5, [3])
    seen: list[list[str]] = []

    def encode(rows: Sequence[Row]) -> Encoded:
        model.clock.now += 7 * MS * len(rows)
        seen.append([str(row["text"]) for row in rows])
        return examples([len(str(row["text"])) for row in rows])

    run.attach_task(SlowTask(model.clock), encode, [{"text": "abcd"}, {"text": "ab"}, {"text": "abc"}])
    assert run.handle({"op": "end_to_end"}) == {"ms": [12.0, 11.0, 11.5]}
    assert seen == [["abcd"], ["ab"], ["abc"]]
    assert run.do_end_to_end(batch=2) == {"ms": [7 * 2 + 2.0 + 3, 7 + 1.5 + 3]}
    assert [ids.shape for ids in model.ran[3:]] == [(2, 4), (1, 3)]


def test_end_to_end_opens_the_artifacts_own_tokenizer_once_and_agrees_with_the_model(
    tiny_exported: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.tasks import text_classification
    from compress.tasks.base import task_from

    artifact = tiny_exported()
    rows = [{"text": text, "text_pair": None, "label": "?"} for text in ("a fine film", "bad", "good and slow")]
    task = task_from(artifact.manifest.task)
    encoded = task.encode(artifact.path, [{"text": row["text"]} for row in rows])
    encoded.save(tmp_path / "encoded.npz")
    run, opened = Commands(), []
    real = text_classification._open_tokenizer
    monkeypatch.setattr(text_classification, "_open_tokenizer", lambda folder: opened.append(folder) or real(folder))
    run.do_open(str(artifact.path), find_target("ort-cpu-1t").model_dump(), str(tmp_path / "encoded.npz"))
    ran: list[dict[str, np.ndarray]] = []
    session = run._session
    monkeypatch.setattr(session, "run", lambda feed: ran.append(feed) or type(session).run(session, feed))
    run.do_warmup([0, 1, 2], seconds=0)
    first = [phase["name"] for phase in run.do_memory()["memory_phases"]]
    assert first == ["import", "load", "first", "steady", "peak"]
    del ran[:]
    run.do_prepare_end_to_end(str(save_rows(rows, task.columns, tmp_path, "rows")))
    answer = run.do_end_to_end()
    session.close()
    assert len(answer["ms"]) == 3
    assert min(answer["ms"]) > 0
    assert len(opened) == 1
    assert len(ran) == 6, "every input once untimed, then timed"
    for i, feed in enumerate(ran[3:]):
        for name, array in encoded.batch([i]).items():
            np.testing.assert_array_equal(feed[name], array)


def test_rows_keep_their_text_and_lose_their_labels(tmp_path: Path) -> None:
    rows = [{"text": 'ä "quoted"\nline\u2028', "text_pair": None, "label": "x"}, {"text": "b", "text_pair": "c"}]
    path = save_rows(rows, ("text", "text_pair"), tmp_path, "rows")
    assert load_rows(path) == [{"text": rows[0]["text"], "text_pair": None}, rows[1]]


def test_pictures_are_kept_as_their_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((4, 5, 3), (6, 2, 1))]
    rows = [{IMAGE: Picture.of_pixels(each), "label": "x"} for each in pixels]
    path = save_rows(rows, (IMAGE,), tmp_path, "rows")
    assert path.suffix == ".npz"
    loaded = load_rows(path)
    assert loaded == [{IMAGE: row[IMAGE]} for row in rows], "equal by the digest of their pixels"


def test_memory_of_a_gpu_is_the_allocators_and_the_drivers_figure(
    fake_nvml: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = commands(lambda ids: 1.0, [3])
    assert run.do_memory()["gpu_process_bytes"] is None
    monkeypatch.setattr(model, "memory", lambda: {"gpu_allocator_bytes": 77})
    run._on_gpu = True
    for held in (500, 300):
        fake_nvml(processes=[SimpleNamespace(pid=os.getpid(), usedGpuMemory=held)])
        answer = run.do_memory()
    assert (answer["gpu_allocator_bytes"], answer["gpu_process_bytes"]) == (77, 500)


def test_torch_session_tells_its_allocator_on_a_gpu_only(
    monkeypatch: pytest.MonkeyPatch, tiny_classifier: Callable[..., Path]
) -> None:
    import torch

    from compress.runtimes.torch_session import TorchSession

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    session = TorchSession(torch.nn.Linear(1, 1), {}, Target(name="t", runtime="torch", threads=1))  # type: ignore[arg-type]
    assert session.memory() == {}
    session._device = torch.device("cuda")
    assert session.memory() == {"gpu_allocator_bytes": 123}
    session.close()
