"""The whole protocol on tiny ONNX artifacts: real child processes, ONNX Runtime, control groups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from compress.artifact import Artifact
from compress.bench.launch import Child, ChildError
from compress.bench.limits import create_group
from compress.bench.protocol import Measurement, MeasureSettings, Subject, fits, measure, predict
from compress.data.encoded import Encoded
from compress.errors import MissingCapabilityError, RunError, UsageError
from compress.runtimes.target import Target, find_target

TINY = MeasureSettings(
    inputs=6,
    launches=1,
    rounds=3,
    seconds=60,
    warmup_seconds=0,
    throughput_batch=4,
    throughput_batches=[1],
    throughput_seconds=0.01,
)
MIB = 2**20
ONE_THREAD = find_target("ort-cpu-1t")


def reference(artifact: Artifact, encoded: Encoded) -> np.ndarray:
    """(n, labels) float32 by ONNX Runtime in this process, one example at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(artifact.file()), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], encoded.batch([i]))[0] for i in range(len(encoded))])


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture
def permitted_group() -> None:
    group = create_group(64 * MIB)
    if group is None:
        pytest.skip("this user may not make memory control groups here")
    group.close()


def test_two_subjects_side_by_side(tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path) -> None:
    before = children()
    subjects = [Subject(name, tiny_onnx(name, seed=i), tiny_encoded, ONE_THREAD) for i, name in enumerate("ab")]
    messages: list[str] = []
    rows = measure(
        subjects,
        settings=TINY.model_copy(update={"launches": 2}),
        work=tmp_path,
        emit=lambda message, done=None, total=None: messages.append(message),
        seed=3,
    )
    assert [(row.subject, row.status, row.reason) for row in rows] == [("a", "ok", ""), ("b", "ok", "")]
    for row, subject in zip(rows, subjects, strict=True):
        np.testing.assert_array_equal(row.outputs, reference(subject.artifact, tiny_encoded))
        assert np.array(row.samples_ms).shape == (2, 3, 6)
        assert np.array(row.samples_ms).min() > 0
        assert row.flat_ms.shape == (36,)
        assert row.input_tokens == [int(tiny_encoded.lengths[i]) for i in row.input_indices]
        assert row.import_rss_bytes is not None
        assert row.peak_rss_bytes is not None
        assert 10 * MIB < row.import_rss_bytes <= row.peak_rss_bytes
        assert (row.throughput_per_s or 0) > 0
        assert [(point["batch"], len(point["per_s"]) >= 3) for point in row.throughputs] == [(1, True), (4, True)]
        assert (row.load_ms or 0) > 0
        assert (row.first_ms or 0) > 0
        assert (row.throughput_batch, row.threads, len(row.pinned_cores)) == (4, 1, 1)
        assert row.size_bytes == (subject.artifact.path / "model.onnx").stat().st_size
        assert row.frameworks == ["onnxruntime"], "the child of an ONNX artifact loads neither torch nor transformers"
        assert row.placement["providers"] == ["CPUExecutionProvider"]
        assert row.placement["operators"]["Gemm"] == 1
        assert row.placement["integer_operators"] == 0
    assert rows[0].input_indices == rows[1].input_indices
    assert len(set(rows[0].input_indices)) == 6
    assert rows[0].pinned_cores == rows[1].pinned_cores
    assert any("timing" in message for message in messages)
    assert children() <= before
    assert list(tmp_path.glob("tmp*")) == []


def test_row_survives_json_without_outputs_or_paths(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    subject = Subject("a", tiny_onnx(), tiny_encoded, ONE_THREAD)
    (row,) = measure([subject], settings=TINY, work=tmp_path)
    text = row.model_dump_json()
    assert "outputs" not in json.loads(text)
    assert str(tmp_path) not in text
    again = Measurement.model_validate_json(text)
    assert again == row.model_copy(update={"outputs": None})


def test_second_clock_runs_in_the_same_children_and_leaves_the_memory_figures_alone(
    tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    from compress.tasks.base import task_from

    artifact = tiny_exported()
    task = task_from(artifact.manifest.task)
    rows = [{"text": f"a {word} film", "text_pair": None, "label": "?"} for word in ("good", "bad", "slow", "fine")]
    encoded = task.encode(artifact.path, [{"text": row["text"]} for row in rows])
    subjects = [Subject(name, artifact, encoded, ONE_THREAD, rows) for name in "ab"]
    measured = measure(subjects, settings=TINY.model_copy(update={"launches": 2}), work=tmp_path)
    for row in measured:
        assert (row.status, row.not_measured) == ("ok", {})
        assert np.array(row.end_to_end_ms).shape == (2, 5, 4)
        assert np.array(row.end_to_end_ms).min() > 0
        assert row.frameworks == ["onnxruntime"]
        phases = {phase["name"]: phase for phase in row.memory_phases}
        assert list(phases) == ["import", "load", "first", "steady", "peak"]
        assert phases["import"]["rss_bytes"] == row.import_rss_bytes
        assert phases["peak"]["rss_bytes"] == row.peak_rss_bytes
        assert max(phase["rss_bytes"] for phase in row.memory_phases) == row.peak_rss_bytes
        np.testing.assert_array_equal(row.outputs, reference(artifact, encoded))


def test_artifact_without_a_tokenizer_has_no_second_clock_and_says_why(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    subject = Subject("a", tiny_onnx(), tiny_encoded, ONE_THREAD, [{"text": "a", "text_pair": None}] * 24)
    (row,) = measure([subject], settings=TINY, work=tmp_path)
    assert (row.status, row.end_to_end_ms) == ("ok", [])
    assert "tokenizer.json" in row.not_measured["end_to_end"]
    assert row.not_measured["end_to_end"] in row.warnings
    assert str(tmp_path) not in row.model_dump_json()
    assert row.throughput_per_s is not None


def test_corrupt_model_is_a_failed_row_and_the_others_go_on(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    bad = tiny_onnx("bad")
    (bad.path / "model.onnx").write_bytes(b"not a graph")
    subjects = [
        Subject("bad", bad, tiny_encoded, ONE_THREAD),
        Subject("good", tiny_onnx("good"), tiny_encoded, ONE_THREAD),
    ]
    failed, good = measure(subjects, settings=TINY, work=tmp_path)
    assert (failed.status, failed.samples_ms, failed.outputs) == ("failed", [], None)
    assert "model.onnx" in failed.reason
    assert str(tmp_path) not in failed.reason
    assert good.status == "ok"
    assert np.array(good.samples_ms).shape == (1, 3, 6)


@pytest.mark.parametrize("name", ["tensorrt", "torch-cuda"])
def test_absent_target_is_a_row_with_the_reason(
    name: str, tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    from compress.runtimes.base import runtimes

    target = find_target(name)
    if runtimes.get(target.runtime)().available(target).ok:
        pytest.skip(f"{name} can run here")
    kind = next(iter(runtimes.get(target.runtime).kinds))
    artifact = tiny_onnx()
    other = Artifact(artifact.path, artifact.manifest.model_copy(update={"kind": kind}))
    (row,) = measure([Subject("a", other, tiny_encoded, target)], settings=TINY, work=tmp_path)
    assert (row.status, row.samples_ms) == ("skipped", [])
    assert "NVIDIA driver" in row.reason or "not installed" in row.reason
    with pytest.raises(MissingCapabilityError):
        predict(other, target, tiny_encoded, work=tmp_path)


def test_pair_that_makes_no_sense_does_not_fit(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    target = find_target("torch-cpu-1t")
    assert not fits("onnx", target)
    assert fits("onnx", find_target("openvino-cpu-1t"))
    with pytest.raises(UsageError):
        predict(tiny_onnx(), target, tiny_encoded, work=tmp_path)


def test_subjects_must_bring_the_same_examples(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    artifact = tiny_onnx()
    subjects = [
        Subject("a", artifact, tiny_encoded, ONE_THREAD),
        Subject("b", artifact, tiny_encoded.select([0, 1]), ONE_THREAD),
    ]
    with pytest.raises(UsageError, match="same examples"):
        measure(subjects, settings=TINY, work=tmp_path)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_predict_equals_the_runtime_in_process(
    batch_size: int, tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    artifact = tiny_onnx(labels=3)
    outputs = predict(artifact, find_target("ort-cpu-1t"), tiny_encoded, work=tmp_path, batch_size=batch_size)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, reference(artifact, tiny_encoded), rtol=1e-6, atol=1e-6)


def test_predict_on_a_broken_model_is_a_run_error(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    artifact = tiny_onnx()
    (artifact.path / "model.onnx").write_bytes(b"")
    with pytest.raises(RunError, match="could not be run"):
        predict(artifact, find_target("ort-cpu-1t"), tiny_encoded, work=tmp_path)


def test_openvino_agrees_with_onnxruntime(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    artifact = tiny_onnx()
    subject = Subject("a", artifact, tiny_encoded, find_target("openvino-cpu-1t"))
    (row,) = measure([subject], settings=TINY, work=tmp_path)
    assert (row.status, row.reason) == ("ok", "")
    np.testing.assert_allclose(row.outputs, reference(artifact, tiny_encoded), rtol=1e-5, atol=1e-5)
    assert any("f32" in name for name in row.placement["operators"])
    assert "torch" not in row.frameworks


def test_library_chatter_does_not_reach_the_answers() -> None:
    script = (
        "import os, sys; from compress.bench import worker; answers = worker._take_stdout();"
        "os.write(1, b'from C\\n'); print('from Python', flush=True); print('answer', file=answers, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "answer\n"
    assert sorted(done.stderr.split("\n")) == ["", "from C", "from Python"]


def test_child_that_dies_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import compress.bench.launch as launch

    script = "import os, sys; sys.stdin.readline(); sys.stderr.write('/root/secret/lib.so: bad kernel\\n'); os.abort()"
    real = subprocess.Popen
    monkeypatch.setattr(
        launch.subprocess, "Popen", lambda command, **rest: real([sys.executable, "-c", script], **rest)
    )
    with Child(find_target("ort-cpu-1t")) as child, pytest.raises(ChildError) as caught:
        child.ask("open")
    assert caught.value.status == "failed"
    assert "SIGABRT" in caught.value.reason
    assert "lib.so: bad kernel" in caught.value.reason
    assert "/root" not in caught.value.reason
    assert not child.alive


def test_children_are_killed_when_the_parent_is_interrupted(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    before = children()
    seen: list[int] = []

    def interrupt(message: str, done: int | None = None, total: int | None = None) -> None:
        if "timing" in message:
            seen.extend(children() - before)
            raise KeyboardInterrupt

    subjects = [Subject(name, tiny_onnx(name), tiny_encoded, ONE_THREAD) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        measure(subjects, settings=TINY, work=tmp_path, emit=interrupt)
    assert len(seen) == 2
    assert children() <= before
    assert list(tmp_path.glob("tmp*")) == []


@pytest.mark.usefixtures("permitted_group")
def test_group_kills_a_real_allocation_and_goes_away() -> None:
    group = create_group(64 * MIB)
    assert group is not None
    code = "print('started', flush=True); block = b'x' * (256 << 20); print('alive', len(block))"
    done = subprocess.run(group.wrap([sys.executable, "-c", code]), capture_output=True, text=True)
    assert done.stdout == "started\n"
    assert done.returncode < 0
    assert group.oom_kills() == 1
    group.close()
    assert not group.folder.exists()


@pytest.mark.usefixtures("permitted_group")
def test_out_of_memory_is_a_row(tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path) -> None:
    target = Target(name="thimble", runtime="onnxruntime", threads=1, memory_bytes=32 * MIB, evidence="proxy")
    (row,) = measure([Subject("a", tiny_onnx(), tiny_encoded, target)], settings=TINY, work=tmp_path)
    assert (row.status, row.evidence, row.outputs) == ("oom", "proxy", None)
    assert "32 MiB" in row.reason


@pytest.mark.usefixtures("permitted_group")
def test_edge_target_runs_under_its_limit(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    (row,) = measure([Subject("a", tiny_onnx(), tiny_encoded, find_target("edge-512m"))], settings=TINY, work=tmp_path)
    assert (row.status, row.evidence, row.memory_limit_bytes) == ("ok", "proxy", 512 * MIB)
    assert (row.memory_limit_by or "").startswith("cgroup v")
    assert (row.peak_rss_bytes or 0) < 512 * MIB


@pytest.mark.usefixtures("permitted_group")
def test_a_model_of_91_mb_does_not_fit_128_mib(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    large, small = tiny_onnx("large", hidden=437_500), tiny_onnx("small")
    assert large.size_bytes == pytest.approx(91e6, rel=0.01)
    pairs = [(large, "edge-128m"), (small, "edge-128m"), (large, "edge-512m")]
    subjects = [Subject(artifact.path.name, artifact, tiny_encoded, find_target(name)) for artifact, name in pairs]
    rows = measure(subjects, settings=TINY, work=tmp_path)
    assert [(row.subject, row.target, row.status) for row in rows] == [
        ("large", "edge-128m", "oom"),
        ("small", "edge-128m", "ok"),
        ("large", "edge-512m", "ok"),
    ]
    assert "128 MiB" in rows[0].reason
    assert rows[0].samples_ms == []


@pytest.mark.parametrize(("limit", "status"), [(8 * MIB, "oom"), (4096 * MIB, "ok")])
def test_without_groups_the_peak_is_compared_afterwards(
    limit: int,
    status: str,
    tiny_onnx: Callable[..., Artifact],
    tiny_encoded: Encoded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compress.bench.launch.create_group", lambda limit: None)
    target = Target(name="edge", runtime="onnxruntime", threads=1, memory_bytes=limit, evidence="proxy")
    (row,) = measure([Subject("a", tiny_onnx(), tiny_encoded, target)], settings=TINY, work=tmp_path)
    assert (row.status, row.memory_limit_by) == (status, "checked afterwards")
    assert ("above the limit" in row.reason) == (status == "oom")
    assert any("did not bind" in warning for warning in row.warnings)


def test_worker_is_pinned_and_single_threaded(
    tiny_onnx: Callable[..., Artifact], tiny_encoded: Encoded, tmp_path: Path
) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system cannot pin processes")
    tiny_encoded.save(tmp_path / "encoded.npz")
    target = find_target("ort-cpu-1t")
    with Child(target) as child:
        child.open(str(tiny_onnx().path), target, str(tmp_path / "encoded.npz"))
        (pid,) = (p.pid for p in psutil.Process().children() if "compress.bench.worker" in p.cmdline())
        assert sorted(os.sched_getaffinity(pid)) == child.cores == [max(os.sched_getaffinity(0))]
        assert psutil.Process(pid).environ()["OMP_NUM_THREADS"] == "1"


def test_child_dies_with_its_parent_although_its_input_stays_open() -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'compress.bench.worker'])\n"
        "print(child.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.stdin.write('{"op": "nothing", "cores": []}\n')
        parent.stdin.flush()
        assert "error" in parent.stdout.readline()
        parent.kill()
        gone, alive = psutil.wait_procs([child], timeout=10)
    assert (len(gone), alive) == (1, [])
