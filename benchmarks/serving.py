"""A served bundle beside its model alone: what it answers, how fast, in how much memory, and what it loses.

Exports steps of RUN with ``--layout kserve``, installs each bundle's own requirements into a clean virtual environment
that has neither torch nor mcompress, and there, for each bundle:

- starts the server and compares its logits with ``compress.load`` for every text;
- asks it one request at a time, in turns with the model alone in a process of its own with the same options;
- sends 200 requests at once, again and again, and 200 more just before SIGTERM;
- sends 64 texts of the longest input at once, and compares its peak memory with what ``kubernetes.yaml`` asks for.

Exits with 1 if an answer is lost or wrong, or the memory is more. Writes ``serving.json`` and ``README.md`` into --out.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import compress
from compress.artifact import open_artifact
from compress.shipping.serving.kserve import SERVER_BYTES, KserveLayout, pinned
from compress.shipping.shipment import open_shipment
from compress.shipping.writing import ship
from compress.store import Store

AT_ONCE = 200
ALONE = """
import json, sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.force_spinning_stop", "1")
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rows = [{name: np.array([ids]) for name, ids in row.items()} for row in json.loads(sys.stdin.readline())]
for line in sys.stdin:
    times = []
    for row in rows:
        start = time.perf_counter()
        session.run(["logits"], row)
        times.append(time.perf_counter() - start)
    print(json.dumps(times), flush=True)
"""
EMPTY = """
import os
import server.__main__
line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(line.split()[1]) * 1024)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder with ONNX steps")
    parser.add_argument("--step", action="append", required=True, help="a step of it; may be given several times")
    parser.add_argument("--data", type=Path, required=True, help="CSV with a column `text`")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with options.data.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:AT_ONCE]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        bundles = {
            step: ship(open_shipment(f"{options.run}:{step}", Store.default()), KserveLayout(), work / step).path
            for step in options.step
        }
        python, installed = clean_environment(work / "venv", next(iter(bundles.values())))
        found = {step: measure(python, bundle, texts, options.rounds) for step, bundle in bundles.items()}
    record = {
        "machine": {"cpu": processor(), "cores": len(os.sched_getaffinity(0))},
        "python": platform.python_version(),
        "versions": pinned(),
        "installed": installed,
        "load": os.getloadavg()[0],
        "texts": len(texts),
        "rounds": options.rounds,
        "bundles": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serving.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.out / "README.md").write_text(text_of(record), encoding="utf-8")
    print(text_of(record))
    wrong = [
        step
        for step, each in found.items()
        if each["lost"] or each["peak_bytes"] > each["asked_bytes"] or each["largest_difference"] > 1e-5
    ]
    return 1 if wrong else 0


def clean_environment(folder: Path, bundle: Path) -> tuple[str, dict[str, Any]]:
    """Install a bundle's requirements; return the Python and what is there."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", "requirements.txt"], cwd=bundle, check=True)
    seconds = time.perf_counter() - started
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0].lower() for line in listed.stdout.split()}
    if names & {"torch", "mcompress", "transformers"}:
        sys.exit("the environment is not clean")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return python, {"packages": len(names), "seconds": round(seconds, 1), "bytes": size}


def measure(python: str, bundle: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Start a bundle's server and ask it."""
    print(f"{bundle.name}: measuring", file=sys.stderr)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCOMPRESS"))}
    settings = json.loads((bundle / "settings.json").read_text(encoding="utf-8"))
    checked = subprocess.run([python, "-B", "verify.py"], cwd=bundle, env=environment, capture_output=True, text=True)
    if checked.returncode:
        sys.exit(checked.stdout)
    empty = subprocess.run(
        [python, "-B", "-c", EMPTY], cwd=bundle, env=environment, capture_output=True, text=True, check=True
    )
    with compress.load(bundle, threads=1) as predictor:
        wanted = predictor.logits(texts)
        encoded = predictor.task.encode(predictor.artifact.path, [{"text": text} for text in texts])
    rows = [{name: ids[i].tolist() for name, ids in encoded.inputs.items()} for i in range(len(texts))]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    server = subprocess.Popen(
        [python, "-B", "-m", "server", "--http_port", str(port)],
        cwd=bundle,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    alone = subprocess.Popen(
        [python, "-c", ALONE, str(open_artifact(bundle).file())],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    ask = Asker(port, settings["model_name"])
    ready_s = ask.wait_until_ready(server) - started
    assert alone.stdin
    assert alone.stdout
    print(json.dumps(rows), file=alone.stdin, flush=True)
    model_times, served_times, bursts, lost, gap = [], [], [], 0, 0.0
    for turn in range(rounds + 1):  # the first warms up
        print(file=alone.stdin, flush=True)
        model = json.loads(alone.stdout.readline())
        served, answers = ask.one_by_one(texts)
        burst, seconds, together = ask.at_once(texts)
        gap = max(
            gap,
            *(
                float(np.abs(np.array(each) - wanted).max())
                for each in (answers, [a for a in together if a is not None])
                if len(each) == len(wanted)
            ),
        )
        lost += sum(answer is None for answer in together)
        if turn:
            model_times.append(model)
            served_times.append(served)
            bursts.append({"times": burst, "seconds": seconds})
    long = [" ".join(texts)] * 64  # cut to the longest input
    lost += sum(answer is None for answer in ask.at_once(long)[2])
    peak = peak_bytes(server.pid)
    lost_at_end = ask.while_it_stops(texts, server)
    alone.stdin.close()
    alone.wait()
    container = next(yaml.safe_load_all((bundle / "kubernetes.yaml").read_text()))["spec"]["template"]["spec"][
        "containers"
    ][0]
    flat_model, flat_served = np.concatenate(model_times), np.concatenate(served_times)
    flat_burst = np.concatenate([each["times"] for each in bursts])
    return {
        "settings": settings,
        "verify": checked.stdout.splitlines()[-2].strip(),
        "ready_s": ready_s,
        "largest_difference": gap,
        "lost": lost + lost_at_end,
        "sent": (rounds + 1) * 2 * len(texts) + len(long) + len(texts),
        "model_ms": quantiles(flat_model),
        "served_ms": quantiles(flat_served),
        "at_once_ms": quantiles(flat_burst),
        "model_per_s": len(flat_model) / flat_model.sum(),
        "at_once_per_s": float(np.median([len(texts) / each["seconds"] for each in bursts])),
        "empty_server_bytes": int(empty.stdout),
        "peak_bytes": peak,
        "asked_bytes": int(container["resources"]["requests"]["memory"].removesuffix("Mi")) * 2**20,
    }


class Asker:
    """Asks one server over HTTP."""

    def __init__(self, port: int, name: str) -> None:
        self._port, self._name = port, name

    def wait_until_ready(self, server: subprocess.Popen[Any]) -> float:
        while server.poll() is None:
            try:
                if self._call("GET", f"/v2/models/{self._name}/ready")[0] == 200:
                    return time.perf_counter()
            except OSError:
                time.sleep(0.02)
        sys.exit("the server did not start")

    def one_by_one(self, texts: list[str]) -> tuple[list[float], list[list[float]]]:
        """Ask on one connection; return seconds and logits of each."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        times, answers = [], []
        for text in texts:
            start = time.perf_counter()
            answer = self._ask(text, connection)
            times.append(time.perf_counter() - start)
            if answer is None:
                sys.exit("a request alone was not answered")
            answers.append(answer)
        connection.close()
        return times, answers

    def at_once(
        self, texts: list[str], then: Callable[[], None] | None = None
    ) -> tuple[list[float], float, list[list[float] | None]]:
        """Ask on a connection each, all at the same time; return seconds of each and of all, and logits."""
        times, answers = [0.0] * len(texts), [None] * len(texts)
        barrier = threading.Barrier(len(texts) + 1)

        def one(i: int) -> None:
            barrier.wait()
            start = time.perf_counter()
            try:
                answers[i] = self._ask(texts[i])
            except (OSError, http.client.HTTPException):
                answers[i] = None
            times[i] = time.perf_counter() - start

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(texts))]
        for thread in threads:
            thread.start()
        barrier.wait()
        start = time.perf_counter()
        if then:
            then()
        for thread in threads:
            thread.join()
        return times, time.perf_counter() - start, answers

    def while_it_stops(self, texts: list[str], server: subprocess.Popen[Any]) -> int:
        """Send SIGTERM as soon as the server has read every request; return how many of them it did not answer."""
        counter = "request_preprocess_seconds_count"
        before = self._metric(counter)

        def stop() -> None:
            while self._metric(counter) < before + len(texts):
                time.sleep(0.005)
            server.send_signal(signal.SIGTERM)

        answers = self.at_once(texts, stop)[2]
        server.wait(60)
        return sum(answer is None for answer in answers)

    def _ask(self, text: str, connection: http.client.HTTPConnection | None = None) -> list[float] | None:
        body = {
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}],
            "outputs": [{"name": "logits"}],
        }
        status, answer = self._call("POST", f"/v2/models/{self._name}/infer", json.dumps(body), connection)
        return json.loads(answer)["outputs"][0]["data"] if status == 200 else None

    def _metric(self, name: str) -> float:
        found = re.search(rf"^{name}{{.*}} (\S+)$", self._call("GET", "/metrics")[1].decode(), re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def _call(
        self, verb: str, path: str, body: str | None = None, connection: http.client.HTTPConnection | None = None
    ) -> tuple[int, bytes]:
        used = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        used.request(verb, path, body, {"content-type": "application/json"})
        answer = used.getresponse()
        found = answer.status, answer.read()
        if connection is None:
            used.close()
        return found


def processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def quantiles(seconds: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(seconds, q)) * 1e3 for q in (50, 90, 99)}


def text_of(record: Mapping[str, Any]) -> str:
    """Return the page about a record."""
    machine, versions, installed = record["machine"], record["versions"], record["installed"]
    steps = " ".join(f"--step {step}" for step in record["bundles"])
    lines = [
        "# Serving bundles",
        "",
        f"`python benchmarks/serving.py RUN {steps} --data DATA/test.csv --out reports/serving`",
        "",
        f"Each bundle in a clean environment from its own requirements.txt ({installed['packages']} packages, "
        f"{installed['bytes'] / 1e6:,.0f} MB, {installed['seconds']:.0f} s; no torch, "
        "no mcompress). "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; Python {record['python']}; {machine['cpu']}, {machine['cores']} cores, "
        "shared by server, model and client; "
        f"load average {record['load']:.1f} at the end. "
        f"{record['texts']} real texts, {record['rounds']} rounds in turns: the model alone, the server asked one "
        f"request at a time, {AT_ONCE} requests at once.",
        "",
        "| | " + " | ".join(record["bundles"]) + " |",
        "| --- |" + " ---: |" * len(record["bundles"]),
    ]
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "batch x streams, threads": lambda e: (
            f"{e['settings']['batch']} x {e['settings']['streams']}, {e['settings']['threads']}"
        ),
        "requests sent, lost": lambda e: f"{e['sent']:,}, {e['lost']}",
        "largest difference from `compress.load`": lambda e: f"{e['largest_difference']:.1e}",
        "model alone, p50 / p90 / p99, ms": lambda e: triple(e["model_ms"]),
        "served, one at a time, p50 / p90 / p99, ms": lambda e: triple(e["served_ms"]),
        f"served, {AT_ONCE} at once, p50 / p90 / p99, ms": lambda e: triple(e["at_once_ms"]),
        "model alone, inputs/s": lambda e: f"{e['model_per_s']:,.0f}",
        f"served, {AT_ONCE} at once, requests/s": lambda e: f"{e['at_once_per_s']:,.0f}",
        "from start to ready, s": lambda e: f"{e['ready_s']:.1f}",
        "server without a model, MiB": lambda e: f"{e['empty_server_bytes'] / 2**20:,.0f}",
        "peak resident memory, MiB": lambda e: f"{e['peak_bytes'] / 2**20:,.0f}",
        "asked for in kubernetes.yaml, MiB": lambda e: f"{e['asked_bytes'] / 2**20:,.0f}",
    }
    lines += [
        f"| {name} | " + " | ".join(show(each) for each in record["bundles"].values()) + " |"
        for name, show in rows.items()
    ]
    lines += [
        "",
        f"The last {AT_ONCE} requests of each bundle were under way when SIGTERM came. `kubernetes.yaml` asks for "
        f"{SERVER_BYTES // 2**20} MiB for the server and what the model took when it was exported.",
    ]
    return "\n".join(lines) + "\n"


def triple(values: Mapping[str, float]) -> str:
    return " / ".join(f"{values[f'p{q}']:.1f}" for q in (50, 90, 99))


if __name__ == "__main__":
    sys.exit(main())
