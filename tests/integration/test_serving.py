"""Serving bundles: one is started for real and asked over HTTP; Triton's folders are read and its tokenizer is run."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from typer.testing import CliRunner

import compress
from compress.artifact import open_artifact
from compress.cli.app import app
from compress.tasks.base import task_from

NAME = "verbs-export"
TEXTS = [
    "the film was great",
    "a dull train , never fine",
    "good",
    "not good but not slow and it works",
    "she was slow but he was never dull , and the train was fine and the order works " * 4,
]
WORDS = ("the", "film", "train", "good", "dull", "slow", "never", "works")
JSON = {"content-type": "application/json"}


def python_of_the_server() -> str:
    """Find the interpreter of the environment that `make test` makes for the server, whose versions are not ours."""
    named = os.environ.get("MCOMPRESS_SERVING_PYTHON")
    found = Path(named) if named else Path(sys.prefix) / "serving" / "bin" / "python"
    if not found.is_file():
        if os.environ.get("CI"):
            pytest.fail(f"no environment with the server: {found}; `make test` makes it")
        pytest.skip(f"no environment with the server: {found}; `make test` makes it")
    return str(found)


def export(source: str, out: Path, layout: str) -> Path:
    done = CliRunner().invoke(app, ["export", source, str(out), "--layout", layout])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def run_with_a_best_batch(lab, ran, tmp_path_factory) -> Iterator[Path]:
    """The run, with a report in which batches of 4 are fastest."""
    run = shutil.copytree(ran, tmp_path_factory.mktemp("serving") / "run")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    for row in report["rows"]:
        row["throughputs"] = [
            {"batch": 1, "streams": 1, "per_s": 800.0, "best": False},
            {"batch": 4, "streams": 1, "per_s": 1000.0, "best": True},
        ]
    (run / "report.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCOMPRESS_HOME", str(lab.home))
        yield run


@pytest.fixture(scope="module")
def bundle(run_with_a_best_batch, tmp_path_factory) -> Path:
    return export(f"{run_with_a_best_batch}:export", tmp_path_factory.mktemp("kserve") / "bundle", "kserve")


@dataclass
class Served:
    """A server that runs, and how to ask it."""

    process: subprocess.Popen[str]
    host: str
    port: int
    log: Path

    def call(self, path: str, body: Any = None, headers: Mapping[str, str] = JSON) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", path, data, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def infer(self, *inputs: Mapping[str, Any], **more: Any) -> tuple[int, dict[str, Any]]:
        status, body = self.call(f"/v2/models/{NAME}/infer", {"inputs": inputs, **more})
        return status, json.loads(body)

    def logits(self, *inputs: Mapping[str, Any]) -> np.ndarray:
        status, answer = self.infer(*inputs)
        assert status == 200, answer
        output = next(each for each in answer["outputs"] if each["name"] == "logits")
        return np.array(output["data"], dtype=np.float32).reshape(output["shape"])

    def metric(self, name: str) -> float:
        text = self.call("/metrics")[1].decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def of_texts(texts: Sequence[str], name: str = "text", **changes: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(texts)], "data": list(texts), **changes}


def of_tokens(rows: Sequence[Sequence[int]], name: str = "input_ids", **changes: Any) -> dict[str, Any]:
    flat = [value for row in rows for value in row]
    return {"name": name, "datatype": "INT64", "shape": [len(rows), len(rows[0])], "data": flat, **changes}


@contextmanager
def start(bundle: Path, log: Path, *words: str, host: str = "127.0.0.1") -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    line = [python_of_the_server(), "-B", "-m", "server", "--http_port", str(port), *words]
    home = log.with_name("home")
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HOME": str(home), "TMPDIR": str(home)}
    environment.pop("CI", None)  # where ONNX Runtime keeps quiet by itself
    with log.open("w") as out:
        process = subprocess.Popen(line, cwd=bundle, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True)
    served = Served(process, host, port, log)
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if served.call(f"/v2/models/{NAME}/ready")[0] == 200:
                    break
            except OSError:
                time.sleep(0.1)
        yield served
        assert not list(home.iterdir()), "no identifier of ONNX Runtime's telemetry, no cache"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory) -> Iterator[Served]:
    with start(bundle, tmp_path_factory.mktemp("log") / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def predictor(bundle) -> Iterator[Any]:
    with compress.load(bundle, threads=1) as opened:
        yield opened


def at_once(count: int, do: Callable[[int], None]) -> None:
    barrier = threading.Barrier(count)

    def work(i: int) -> None:
        barrier.wait()
        do(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_served_model_answers_with_the_predictors_logits(served, predictor) -> None:
    wanted = predictor.logits(TEXTS)
    status, answer = served.infer(of_texts(TEXTS), id="7")
    assert (status, answer["id"], answer["model_name"]) == (200, "7", NAME)
    outputs = {each["name"]: each for each in answer["outputs"]}
    assert np.abs(np.array(outputs["logits"]["data"]).reshape(wanted.shape) - wanted).max() <= 1e-5
    decided = predictor(TEXTS)
    assert outputs["label"]["data"] == [each["label"] for each in decided]
    assert outputs["score"]["data"] == pytest.approx([each["score"] for each in decided], abs=1e-6)
    pairs = served.logits(of_texts(TEXTS[:2]), of_texts(TEXTS[2:4], "text_pair"))
    assert np.abs(pairs - predictor.logits(list(zip(TEXTS[:2], TEXTS[2:4], strict=True)))).max() <= 1e-5
    column = served.logits(of_texts(TEXTS, shape=[len(TEXTS), 1]))
    assert np.abs(column - wanted).max() <= 1e-5

    encoded = predictor.task.encode(predictor.artifact.path, [{"text": text} for text in TEXTS])
    padded = encoded.batch(range(len(TEXTS)))
    assert len({int(length) for length in encoded.lengths}) > 2
    tokens = served.logits(*(of_tokens(array.tolist(), name) for name, array in padded.items()))
    assert np.abs(tokens - wanted).max() <= 1e-5
    alone = served.logits(of_tokens([encoded.inputs["input_ids"][0].tolist()]))
    assert np.abs(alone - wanted[:1]).max() <= 1e-5

    text = TEXTS[0].encode()
    raw = len(text).to_bytes(4, "little") + text
    head = of_texts(TEXTS[:1]) | {"parameters": {"binary_data_size": len(raw)}}
    del head["data"]
    start_of_body = json.dumps({"inputs": [head]}).encode()
    headers = {"inference-header-content-length": str(len(start_of_body)), "content-type": "application/octet-stream"}
    status, body = served.call(f"/v2/models/{NAME}/infer", start_of_body + raw, headers)
    assert status == 200
    assert np.abs(np.array(json.loads(body)["outputs"][0]["data"]) - wanted[0]).max() <= 1e-5
    status, answer = served.infer(of_texts(TEXTS[:1]), outputs=[{"name": "label"}])
    assert [each["name"] for each in answer["outputs"]] == ["label"]


def test_200_requests_at_once_all_get_their_own_answer_and_are_counted(served, predictor) -> None:
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(200)]
    wanted, found = predictor.logits(texts), [np.zeros(0)] * len(texts)
    counters = ("request_predict_seconds_count", "model_batch_rows_sum", "model_batch_rows_count")
    before = [served.metric(name) for name in counters]

    def ask(i: int) -> None:
        found[i] = served.logits(of_texts([texts[i]]))[0]

    at_once(len(texts), ask)
    assert np.abs(np.stack(found) - wanted).max() <= 1e-5
    requests, rows, batches = (served.metric(name) - old for name, old in zip(counters, before, strict=True))
    assert requests == rows == 200
    assert 50 <= batches < 200, "batches of equal lengths, at most 4 each"
    assert served.metric("model_waiting_rows") == 0


def test_health_and_metadata_follow_the_protocol(served) -> None:
    for path in ("live", "ready"):
        assert served.call(f"/v2/health/{path}")[0] == 200
    assert json.loads(served.call("/v2/models")[1]) == {"models": [NAME]}
    told = json.loads(served.call(f"/v2/models/{NAME}")[1])
    names = ["text", "text_pair", "input_ids", "attention_mask", "token_type_ids"]
    assert [each["name"] for each in told["inputs"]] == names
    assert [(each["name"], each["datatype"]) for each in told["outputs"]] == [
        ("logits", "FP32"),
        ("label", "BYTES"),
        ("score", "FP32"),
    ]
    assert served.metric("process_resident_memory_bytes") > 0


def test_a_bad_request_gets_a_reason_and_no_traceback(served, bundle) -> None:
    infer = f"/v2/models/{NAME}/infer"
    good = of_texts(TEXTS[:1])
    longest = open_artifact(bundle).manifest.task["max_length"]
    cases: dict[str, list[dict[str, Any]]] = {
        "Unknown input 'texts'": [of_texts(TEXTS, "texts")],
        "not of type BYTES": [of_texts(TEXTS[:1], datatype="INT64", data=[5])],
        "has the type 'WORDS'": [of_texts(TEXTS, datatype="WORDS")],
        "do not fit": [of_texts(TEXTS, shape=[3])],
        "has the shape [-1]": [of_texts(TEXTS, shape=[-1])],
        "row 1, is empty": [of_texts(["good", "  "])],
        "is not a text in UTF-8": [of_texts(["\ud800"])],
        "characters; at most": [of_texts(["good " * 30_000])],
        "than its type BYTES": [of_texts([3])],
        "stands there twice": [good, good],
        "Neither 'text' nor 'input_ids'": [],
        "1 texts, but 2": [good, of_texts(TEXTS[:2], "text_pair")],
        "outside 0 to": [of_tokens([[1, 2_000_000]])],
        f"at most {longest}": [of_tokens([[1] * (longest + 1)])],
        "has the shape [2], not [rows, tokens]": [of_tokens([[1, 2]], shape=[2])],
        "no token that counts": [of_tokens([[1, 2]]), of_tokens([[0, 0]], "attention_mask")],
        "than its type INT64": [of_tokens([[1, 2]], data=[1, 1.5])],
        "rows in one request": [of_texts(["good"] * 5000)],
    }
    refusals = {reason: served.infer(*inputs) for reason, inputs in cases.items()}
    refusals["than its type BYTES says"] = served.infer(of_texts(["good " * 20_000, *["a"] * 100, 3]))
    refusals["Unexpected inference output"] = served.infer(good, outputs=[{"name": "probability"}])
    for reason, (status, answer) in refusals.items():
        assert status == 400, (reason, answer)
        assert reason in answer["error"], answer
        assert "\n" not in answer["error"]
    for body, headers in (
        (b"not JSON", JSON),
        (b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["\xff"]}]}', JSON),
        (b"[" * 50_000, JSON),
        ({}, JSON),
        ({"inputs": [good]}, {}),
        (b"{}", {"inference-header-content-length": "2"}),
        (b"{}", {"inference-header-content-length": "x"}),
    ):
        status, answer = served.call(infer, body, headers)
        assert status == 400, (body, answer)
        assert 10 < len(answer) < 500
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 30}}
    secret = b"\x1a\0\0\0patient Jane Doe has\xff\xff\xff\xff\xff\xff"
    for head in (
        {"inputs": [tensor]},
        {"inputs": [tensor | {"shape": ["a"]}]},
        {"inputs": [tensor | {"name": 5}]},
        {"inputs": [tensor], "id": 5},
        {"inputs": [tensor], "outputs": [{"name": "label", "parameters": "binary_data"}]},
        {"inputs": 5},
    ):
        words = json.dumps(head).encode()
        headers = {"inference-header-content-length": str(len(words)), "content-type": "application/octet-stream"}
        status, answer = served.call(infer, words + secret, headers)
        assert status == 400, (head, answer)
        assert b"Jane" not in answer
    status, answer = served.infer(of_texts(TEXTS, "\n" + "x" * 10_000))
    assert status == 400
    assert len(answer["error"]) <= 300
    assert served.call(f"/v2/repository/models/{NAME}/unload", {})[0] == 501
    assert served.call("/v2/models/another/infer", {"inputs": [good]})[0] == 404
    assert served.logits(good).shape == (1, 3)
    assert "Traceback" not in served.log.read_text()
    assert "Jane" not in served.log.read_text()


def test_too_many_at_once_are_told_to_come_again(served, bundle) -> None:
    queue = json.loads((bundle / "settings.json").read_text())["queue"]
    statuses: list[int] = []
    at_once(4, lambda _: statuses.append(served.infer(of_texts(["good"] * queue))[0]))
    assert set(statuses) == {200, 503}
    assert served.logits(of_texts(TEXTS[:1])).shape == (1, 3)


def test_nobody_but_this_machine_reaches_it_unless_it_is_told_so(served, bundle) -> None:
    assert json.loads((bundle / "settings.json").read_text())["host"] == "127.0.0.1"
    listening = [c.laddr for c in psutil.Process(served.process.pid).net_connections("inet") if c.status == "LISTEN"]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", served.port)]


def test_what_was_accepted_before_sigterm_is_answered(bundle, predictor, tmp_path) -> None:
    texts, count = [f"{word} the film was" for word in WORDS] * 40, 16
    wanted = predictor.logits(texts, batch_size=8)
    found: list[np.ndarray | None] = [None] * count
    words = ("--queue", str(2 * count * len(texts)), "--batch", "1", "--host", "127.0.0.2")
    with start(bundle, tmp_path / "log", *words, host="127.0.0.2") as server:
        assert [
            c.laddr.ip for c in psutil.Process(server.process.pid).net_connections("inet") if c.status == "LISTEN"
        ] == ["127.0.0.2"]

        def ask(i: int) -> None:
            found[i] = server.logits(of_texts(texts))

        askers = threading.Thread(target=at_once, args=(count, ask))
        askers.start()
        while server.metric("request_preprocess_seconds_count") < count:
            time.sleep(0.02)
        waiting = server.metric("model_waiting_rows")
        server.process.send_signal(signal.SIGTERM)
        askers.join()
        assert server.process.wait(timeout=30) == 0, server.log.read_text()
        with pytest.raises(OSError, match="refused"):
            server.call("/v2/health/live")
    assert waiting > 0, "nothing was in flight when the signal came"
    assert all(answer is not None and np.abs(answer - wanted).max() <= 1e-5 for answer in found)


def test_the_bundle_asks_for_what_was_measured(bundle, run_with_a_best_batch, tmp_path) -> None:
    settings = json.loads((bundle / "settings.json").read_text())
    assert (settings["batch"], settings["streams"], settings["threads"]) == (4, 1, 1)
    parts = list(yaml.safe_load_all((bundle / "kubernetes.yaml").read_text()))
    assert [part["kind"] for part in parts] == ["Deployment", "Service", "HorizontalPodAutoscaler", "NetworkPolicy"]
    (container,) = parts[0]["spec"]["template"]["spec"]["containers"]
    resources = container["resources"]
    assert resources["requests"]["cpu"] == "1"
    asked = int(resources["requests"]["memory"].removesuffix("Mi")) * 2**20
    assert 192 * 2**20 + (bundle / "model.onnx").stat().st_size <= asked <= 288 * 2**20
    longest = open_artifact(bundle).manifest.task["max_length"]
    assert (
        f"what the model took for 4 inputs of {longest} tokens, when exported"
        in (bundle / "kubernetes.yaml").read_text()
    )
    assert parts[2]["spec"]["scaleTargetRef"]["name"] == parts[0]["metadata"]["name"] == NAME
    assert {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness")} == {
        f"/v2/models/{NAME}/ready"
    }
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["args"] == ["--host", "0.0.0.0"]
    service = yaml.safe_load((bundle / "inferenceservice.yaml").read_text())
    assert service["spec"]["predictor"]["containers"][0]["resources"] == resources
    assert "TO BE SET" not in (bundle / "settings.json").read_text()

    int8 = export(f"{run_with_a_best_batch}:int8", tmp_path / "int8", "kserve")
    assert json.loads((int8 / "settings.json").read_text())["batch"] == 1, "scales of dynamic INT8 depend on the batch"
    bare = export(str(open_artifact(bundle).path), tmp_path / "bare", "kserve")
    shutil.rmtree(bare / "record")
    unmeasured = export(str(bare), tmp_path / "unmeasured", "kserve")
    assert json.loads((unmeasured / "settings.json").read_text())["batch"] == 1
    assert "cpu: TO BE SET: no report" in (unmeasured / "kubernetes.yaml").read_text()


@pytest.fixture
def triton_backend(monkeypatch) -> None:
    """A stand-in for what Triton gives to models of its Python backend."""
    fake: Any = ModuleType("triton_python_backend_utils")

    class TritonError(Exception):
        INVALID_ARG = 3

        def __init__(self, message: str, code: int) -> None:
            super().__init__(message)
            self.code = code

    fake.TritonError = TritonError
    fake.Tensor = lambda name, values: SimpleNamespace(name=name, as_numpy=lambda: values)
    fake.InferenceResponse = lambda outputs, error=None: SimpleNamespace(outputs=outputs, error=error)
    fake.get_input_tensor_by_name = lambda request, name: request.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)


def test_tritons_folder_has_the_measured_batch_and_a_tokenizer_that_answers_as_ours(
    run_with_a_best_batch, triton_backend, tmp_path, monkeypatch
) -> None:
    out = export(f"{run_with_a_best_batch}:export", tmp_path / "triton", "triton")
    artifact = open_artifact(out)
    assert compress.load(out, threads=1)("good").keys() == {"label", "score"}
    assert artifact.file() == out / "models" / NAME / "1" / "model.onnx"
    model = (out / "models" / NAME / "config.pbtxt").read_text()
    for line in (
        'backend: "onnxruntime"',
        "max_batch_size: 4",
        "dynamic_batching { preferred_batch_size: [ 4 ], max_queue_delay_microseconds: 400 }",
        "instance_group [ { kind: KIND_CPU, count: 1 } ]",
        '{ name: "input_ids", data_type: TYPE_INT64, dims: [ -1 ] }',
        '{ name: "logits", data_type: TYPE_FP32, dims: [ 3 ], label_filename: "labels.txt" }',
        'key: "intra_op_thread_count", value: { string_value: "1" }',
        "1,000 inputs/s",
    ):
        assert line in model
    assert (out / "models" / NAME / "labels.txt").read_text().split() == list(artifact.manifest.task["labels"])
    assert "--http-address" in (out / "serve.sh").read_text()
    assert "HOST:-127.0.0.1" in (out / "serve.sh").read_text()
    ensemble = (out / "models" / f"{NAME}_text" / "config.pbtxt").read_text()
    assert ensemble.count("{") == ensemble.count("}")
    assert [name for name in re.findall(r'model_name: "(.*)"', ensemble)] == [f"{NAME}_tokenizer", NAME]

    folder = out / "models" / f"{NAME}_tokenizer" / "1"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.TritonPythonModel()
    outputs = [{"name": name} for name in ("input_ids", "attention_mask", "token_type_ids")]
    config = json.dumps({"output": outputs})
    tokenizer.initialize({"model_config": config, "model_repository": str(folder.parent), "model_version": "1"})

    def request(texts: Sequence[str]) -> dict[str, Any]:
        values = np.array([[text.encode()] for text in texts], dtype=object)
        return {"text": SimpleNamespace(as_numpy=lambda: values)}

    together, bad = tokenizer.execute([request(TEXTS), request(["good", ""])])
    wanted = (
        task_from(artifact.manifest.task).encode(folder, [{"text": text} for text in TEXTS]).batch(range(len(TEXTS)))
    )
    assert {each.name for each in together.outputs} == set(wanted)
    for each in together.outputs:
        np.testing.assert_array_equal(each.as_numpy(), wanted[each.name])
    assert "row 1, is empty" in str(bad.error)
    sys.modules.pop("encoding", None)

    int8 = export(f"{run_with_a_best_batch}:int8", tmp_path / "int8", "triton")
    alone = (int8 / "models" / "verbs-int8" / "config.pbtxt").read_text()
    assert "max_batch_size: 1" in alone
    assert "dynamic_batching" not in alone
