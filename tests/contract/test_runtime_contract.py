"""What every registered runtime promises, on the tiny classifier in a kind that the runtime opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
import pytest

from compress.artifact import Artifact, Kind
from compress.data.encoded import Encoded
from compress.data.splits import TaskData
from compress.errors import MissingCapabilityError
from compress.predictor import Predictor
from compress.runtimes.base import Availability, Runtime, Session, runtimes
from compress.runtimes.target import Target, builtin_targets
from compress.tasks.base import task_from

DEVICES = ("cpu", "cuda")


@pytest.fixture(params=list(runtimes))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def runtime(name: str) -> Runtime:
    return runtimes.get(name)()


@pytest.fixture
def artifact(runtime: Runtime, artifact_of: Callable[[str], Artifact | None]) -> Artifact:
    found = [made for kind in sorted(runtime.kinds) if (made := artifact_of(kind)) is not None]
    if not found:
        pytest.skip(f"no artifact of kind {' or '.join(sorted(runtime.kinds))} can be made here")
    return found[0]


@pytest.fixture
def session(runtime: Runtime, artifact: Artifact) -> Iterator[Session]:
    """An open session on the first device that the runtime can use here."""
    reasons = []
    for device in DEVICES:
        target = place(runtime.name, device)
        found = runtime.available(target)
        if found.ok:
            with runtime.open(artifact, target) as opened:
                yield opened
            return
        reasons.append(found.reason)
    pytest.skip("; ".join(dict.fromkeys(reasons)))


@pytest.fixture
def encoded(artifact: Artifact, data: TaskData) -> Encoded:
    return task_from(artifact.manifest.task).encode(artifact.path, data["validation"].rows)


def place(name: str, device: str) -> Target:
    emulated = {"emulate": "max", "evidence": "emulated"} if name.endswith("-arm64") else {}
    return Target.model_validate({"name": "contract", "runtime": name, "device": device, "threads": 1, **emulated})


def test_declarations_make_sense(name: str) -> None:
    runtime = runtimes.get(name)
    assert runtime.name == name
    assert runtime.kinds
    assert runtime.kinds <= frozenset(get_args(Kind))
    assert runtime.package.isidentifier()
    assert runtime.__doc__
    assert any(target.runtime == name for target in builtin_targets().values()), "ship a target that names it"


@pytest.mark.parametrize("device", DEVICES)
def test_availability_is_yes_or_a_reason(runtime: Runtime, device: str) -> None:
    found = runtime.available(place(runtime.name, device))
    assert found.ok is not bool(found.reason.strip())


def test_opening_what_is_not_here_says_why(
    runtime: Runtime, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(runtime), "available", lambda *_: Availability(False, "the card is in the other room"))
    with pytest.raises(MissingCapabilityError) as caught:
        runtime.open(artifact, place(runtime.name, "cpu"))
    assert "the card is in the other room" in caught.value.value
    assert caught.value.fix


def test_outputs_are_those_that_the_manifest_lists(session: Session, artifact: Artifact, encoded: Encoded) -> None:
    graph = artifact.manifest.graphs["model"]
    outputs = session.run(encoded.batch([0, 1]))
    assert set(outputs) == {spec.name for spec in graph.outputs}
    assert {array.dtype for array in outputs.values()} == {np.dtype(np.float32)}
    assert outputs["logits"].shape == (2, graph.outputs[0].shape[1])
    assert isinstance(session.placement(), dict)


def test_unknown_inputs_are_ignored(session: Session, encoded: Encoded) -> None:
    batch = encoded.batch([0, 1])
    extra: dict[str, Any] = {**batch, "pixel_values": np.zeros((2, 3), dtype=np.int64)}
    np.testing.assert_array_equal(session.run(extra)["logits"], session.run(batch)["logits"])


def test_padding_changes_nothing(session: Session, encoded: Encoded) -> None:
    assert len(set(encoded.lengths)) > 1
    together = session.run(encoded.batch(range(4)))["logits"]
    alone = np.concatenate([session.run(encoded.batch([i]))["logits"] for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_runs_are_repeatable_and_leave_their_inputs_alone(session: Session, encoded: Encoded) -> None:
    batch = encoded.batch([2, 3])
    before = {name: array.copy() for name, array in batch.items()}
    first = session.run(batch)["logits"].copy()
    session.run(encoded.batch([0]))
    np.testing.assert_array_equal(session.run(batch)["logits"], first)
    for name, array in batch.items():
        np.testing.assert_array_equal(array, before[name])


def test_threads_that_share_a_predictor_get_what_one_gets(
    session: Session, runtime: Runtime, artifact: Artifact, data: TaskData
) -> None:
    predictor = Predictor(artifact, task_from(artifact.manifest.task), session, place(runtime.name, "cpu"))
    texts = [row["text"] for row in data["train"].rows]
    wanted = [predictor.logits([text]) for text in texts]
    starts = list(range(len(texts))) * 3
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: predictor.logits(texts[i : i + 2]), starts))
    for i, logits in zip(starts, found, strict=True):
        np.testing.assert_array_equal(logits, np.concatenate(wanted[i : i + 2]))


def test_golden_outputs_are_reproduced(session: Session, artifact: Artifact) -> None:
    golden = artifact.manifest.golden
    if golden is None:
        pytest.skip("an engine carries no golden outputs")
    batch = {name: np.array(rows, dtype=np.int64) for name, rows in golden.inputs.items()}
    np.testing.assert_allclose(session.run(batch)["logits"], golden.outputs["logits"], rtol=1e-3, atol=1e-4)


def test_closing_ends_it_and_may_be_repeated(session: Session, encoded: Encoded) -> None:
    session.run(encoded.batch([0]))
    session.close()
    session.close()
    with pytest.raises((AttributeError, KeyError, RuntimeError, TypeError)):
        session.run(encoded.batch([0]))
