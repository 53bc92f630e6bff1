"""How long ``mcompress --help`` takes beyond a bare interpreter.

Both are started N times in turn, so that a busy machine slows both; the medians are compared.

    python benchmarks/startup.py [-n 15]

Exits with 1 when the difference of medians is above the bound.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

BOUND_SECONDS = 0.3
COMMANDS = {
    "bare interpreter": [sys.executable, "-c", "pass"],
    "mcompress --help": [sys.executable, "-m", "compress", "--help"],
}


def seconds(command: list[str]) -> float:
    """Return the wall time of one run of a command, s."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=15, help="runs of each command (default: 15)")
    rounds = parser.parse_args().n
    for command in COMMANDS.values():
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:18} median {medians[name]:.3f} s, {min(values):.3f} to {max(values):.3f} s, {rounds} runs")
    bare, tool = medians.values()
    print(f"difference         {tool - bare:.3f} s, bound {BOUND_SECONDS} s")
    return int(tool - bare > BOUND_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
