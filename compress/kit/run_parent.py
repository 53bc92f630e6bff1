"""The parent half of a kit's ``run.py``: checks the folder, takes turns between models, writes the result."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from compress.kit.run_child import BACKENDS, HERE, child, read

SCHEMA = 1
KINDS = {"onnxruntime": "onnx", "openvino": "onnx", "tensorrt": "onnx", "torch": "torch"}
FLAGS = (
    *("amx_int8", "asimd", "asimddp", "asimdhp", "avx", "avx2", "avx512_vnni", "avx512bw", "avx512f", "avx_vnni"),
    *("bf16", "f16c", "fma", "i8mm", "sse4_1", "sve"),
)
MINIMUM_ROUNDS, MOST_ROUNDS = 3, 50
TURN = 10  # inferences of a model before it is the next one's turn


def stop(what: str, value: object, fix: str) -> NoReturn:
    sys.exit(f"error: {what}\n  value: {value}\n  fix:   {fix}")


# The parent: checks the folder, starts one process per model and launch, takes turns, writes the result.


def main() -> int:
    options = parse()
    kit = checked_kit()
    backend = choose(options.runtime, kit)
    models = [m for m in kit["models"] if m["kind"] == KINDS[backend]]
    settings = {"backend": backend, "provider": options.provider, "threads": options.threads}
    lanes = [Lane(model, settings) for model in models]
    before = machine_state()
    for launch in range(options.launches):
        print(f"launch {launch + 1} of {options.launches}: opening {len(lanes)} models with {backend}", flush=True)
        first = launch % len(lanes) if lanes else 0
        for lane in lanes[first:] + lanes[:first]:
            lane.launch(kit["sequence"])
        rounds(lanes, kit["sequence"], options.seconds / options.launches)
        for lane in lanes:
            if launch == options.launches - 1:
                lane.finish()
            lane.close()
    result = {
        "schema_version": SCHEMA,
        "kit": kit["digest"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": options.name or device_name(),
        "runtime": {**settings, "version": next((lane.version for lane in lanes if lane.version), "")},
        "environment": environment(),
        "state": {"before": before, "after": machine_state()},
        "models": [lane.result() for lane in lanes],
    }
    partial = Path(f"{options.out}.partial")
    partial.write_text(json.dumps(result, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(options.out)
    table(lanes, kit)
    print(f"\n{options.out}: take it back with `mcompress ingest {Path(options.out).name} --into RUN`")
    return 0 if any(lane.status == "ok" for lane in lanes) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the models of this folder on this device.")
    parser.add_argument("--runtime", choices=list(BACKENDS), help="default: the first that is installed")
    parser.add_argument("--provider", default="", help="onnxruntime: an execution provider; openvino: CPU or GPU")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator (default 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for the timed rounds (default 60)")
    parser.add_argument("--launches", type=int, default=3, help="fresh processes of every model (default 3)")
    parser.add_argument("--name", default="", help="what the report calls this device")
    parser.add_argument("--out", default="result.json", help="file to write (default result.json)")
    options = parser.parse_args()
    if options.threads < 1 or options.launches < 1 or not options.seconds > 0:
        parser.error("--threads and --launches are at least 1, --seconds above 0")
    return options


def checked_kit() -> dict[str, Any]:
    """Read kit.json and check every file against its sha256."""
    try:
        kit: dict[str, Any] = json.loads((HERE / "kit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        stop("kit.json cannot be read.", error, "Copy the folder again.")
    for name, record in kit["files"].items():
        path, digest = HERE / name, hashlib.sha256()
        if path.is_file():
            with path.open("rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
        if digest.hexdigest() != record["sha256"]:
            stop("A file of the kit is missing or was changed.", name, "Copy the folder again.")
    return kit


def choose(wanted: str | None, kit: dict[str, Any]) -> str:
    """Return the runtime to use: the one asked for, else the first that is here and fits a model."""
    if importlib.util.find_spec("numpy") is None:
        stop("numpy is not installed.", sys.executable, "pip install numpy onnxruntime")
    kinds = {model["kind"] for model in kit["models"]}
    fitting = [name for name in BACKENDS if KINDS[name] in kinds and (wanted is None or name == wanted)]
    here = [name for name in fitting if any(importlib.util.find_spec(module) for module in BACKENDS[name])]
    if not here:
        stop(
            "No runtime for these models is installed here.",
            f"{' or '.join(fitting) or wanted}, for models of kind {', '.join(sorted(kinds))}",
            "pip install onnxruntime (for torch models: pip install torch transformers)",
        )
    return here[0]


class Lane:
    """One model: its child process, and what is known of it."""

    def __init__(self, model: dict[str, Any], settings: dict[str, Any]) -> None:
        self.model, self.settings = model, settings
        self.facts: dict[str, Any] = {}
        self.samples: list[list[list[float]]] = []
        self.warnings: list[str] = []
        self.status, self.reason, self.version = "ok", "", ""
        self.process: subprocess.Popen[str] | None = None

    def launch(self, sequence: list[int]) -> None:
        if self.status != "ok":
            return
        threads = str(self.settings["threads"])
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self.process = subprocess.Popen(
            [sys.executable, *(["-S"] if sys.flags.no_site else []), str(Path(__file__).resolve()), "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(names, threads)},
            text=True,
        )
        loaded = self.ask("open", model=self.model, settings=self.settings)
        warm = self.ask("warmup", sequence=sequence) if loaded else None
        if not loaded or not warm:
            return
        self.version = loaded.pop("version")
        if not self.samples:
            self.facts.update(loaded, first_ms=warm["first_ms"])
        if not warm["settled"]:
            self.warnings.append(f"launch {len(self.samples) + 1}: latency had not settled when warm-up ended")
        self.samples.append([])

    def ask(self, op: str, **job: Any) -> dict[str, Any] | None:
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        try:
            process.stdin.write(json.dumps({"op": op, **job}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"the process ended with {process.wait()}"}
        if "error" in answer:
            self.status, self.reason = "failed", f"{op}: {answer['error']}".replace(str(HERE), "KIT")[:500]
            print(f"  {self.model['name']}: {self.reason}", flush=True)
            self.close()
            return None
        found: dict[str, Any] = answer["ok"]
        return found

    def finish(self) -> None:
        for op in ("memory", "golden", "predict"):
            self.facts.update(self.ask(op) or {})

    def close(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            try:
                self.process.stdin.close()
                self.process.wait(20)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process = None

    def result(self) -> dict[str, Any]:
        least = min((len(launch) for launch in self.samples), default=0)
        return {
            "name": self.model["name"],
            "digest": self.model["digest"],
            "status": self.status,
            "reason": self.reason,
            "samples_ms": [launch[:least] for launch in self.samples] if self.status == "ok" else [],
            "warnings": self.warnings,
            **(self.facts if self.status == "ok" else {}),
        }


def rounds(lanes: list[Lane], sequence: list[int], seconds: float) -> None:
    """Time the models over the same inputs, a few at a time in turn, A B then B A, until the time is used up."""
    start, number = time.monotonic(), 0
    parts = [sequence[i : i + TURN] for i in range(0, len(sequence), TURN)]
    while number < MOST_ROUNDS and (number < MINIMUM_ROUNDS or time.monotonic() - start < seconds):
        done: list[list[float]] = [[] for _ in lanes]
        for first, part in enumerate(parts, start=number):
            for i in range(len(lanes)):
                turn = (first + i) % len(lanes)
                answer = lanes[turn].ask("round", sequence=part)
                done[turn] += answer["ms"] if answer else []
        for lane, row in zip(lanes, done):  # noqa: B905 - Python 3.9
            if lane.process is not None:
                lane.samples[-1].append(row)
        number += 1
        if sys.stdout.isatty():
            print(
                f"\r  round {number}, {max(0.0, seconds - time.monotonic() + start):.0f} s left  ", end="", flush=True
            )
    if sys.stdout.isatty():
        print()


def table(lanes: list[Lane], kit: dict[str, Any]) -> None:
    import numpy as np

    print(f"\n{'model':20} {'p50 ms':>9} {'times':>7} {'right':>12} {'peak MB':>8} {'golden':>9}")
    first = None
    for lane in lanes:
        if lane.status != "ok":
            print(f"{lane.model['name'][:20]:20} {lane.status}: {lane.reason}")
            continue
        flat = [ms for launch in lane.result()["samples_ms"] for row in launch for ms in row]
        first = first or statistics.mean(flat)
        with np.load(str(HERE / lane.model["evaluation"]), allow_pickle=False) as file:
            answers = file["targets"] if "targets" in file.files else None
        outputs, right = np.array(lane.facts["outputs"]), "-"
        if answers is not None and answers.ndim == 1 and answers.dtype.kind == "i" and outputs.ndim == 2:
            right = f"{int((outputs.argmax(1) == answers).sum())} of {len(answers)}"
        peak, golden = lane.facts["peak_rss_bytes"], lane.facts["golden_max_abs"]
        print(
            f"{lane.model['name'][:20]:20} {statistics.median(flat):9.2f} {first / statistics.mean(flat):6.2f}x "
            f"{right:>12} {'-' if peak is None else f'{peak / 1e6:.0f}':>8} "
            f"{'-' if golden is None else f'{golden:.1e}':>9}"
        )
    print(
        f"right: of {kit['split']}; times: mean speed over the first; golden: largest difference from the kit's outputs"
    )


# What the system says of itself, read only.


def environment() -> dict[str, Any]:
    info = read("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    known = set((fields.get("flags") or fields.get("Features") or "").split())
    memory = [line.split()[1] for line in read("/proc/meminfo").splitlines() if line.startswith("MemTotal:")]
    packages = {"numpy": version_of("numpy")}
    packages.update({name: version_of(name) for names in BACKENDS.values() for name in names if name in sys.modules})
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in known],
        "cores": usable,
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "memory_bytes": int(memory[0]) * 1024 if memory else None,
        "gpu": gpu("name,driver_version,memory.total"),
        "os": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: version for name, version in packages.items() if version},
    }


def machine_state() -> dict[str, Any]:
    """Return load, temperature, clock: what may differ between the beginning and the end."""
    zones = [read(path).strip() for path in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [int(zone) / 1000 for zone in zones if zone.lstrip("-").isdigit()]
    clock = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").strip()
    return {
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "celsius": max(degrees) if degrees else None,
        "mhz": int(clock) / 1000 if clock.isdigit() else None,
        "gpu": gpu("clocks.sm,temperature.gpu,power.draw,utilization.gpu"),
    }


def device_name() -> str:
    return read("/proc/device-tree/model").strip("\0 \n") or environment()["cpu"]


def gpu(query: str) -> str | None:
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip().replace("\n", "; ")[:300] or None if said.returncode == 0 else None


def version_of(name: str) -> str:
    try:
        return str(getattr(importlib.import_module(name), "__version__", ""))
    except Exception:
        return ""


if __name__ == "__main__":
    sys.exit(child() if sys.argv[1:] == ["--child"] else main())
