"""One of several processes on one store: ``python store_worker.py HOME ROUNDS KEYS SEED LOG``.

In each round it asks for every key, in an order of its own, and checks what it gets. What it builds it puts on
record in LOG, one line for each build. Now and then it collects what nobody needs, or dies in the middle of a build
(exit code 9).
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path

from compress.store import Store
from compress.store.upkeep import collect


def key_of(round_: int, number: int) -> str:
    return hashlib.sha256(f"{round_}/{number}".encode()).hexdigest()


def text_of(key: str) -> str:
    return key * 200


def main() -> int:
    home, rounds, keys, seed, log = sys.argv[1:]
    draw, deadly = random.Random(int(seed)), int(seed) % 4 == 3
    for round_ in range(int(rounds)):
        store = Store(home)
        for number in draw.sample(range(int(keys)), int(keys)):
            key = key_of(round_, number)

            def build(out: Path, key: str = key) -> None:
                (out / "a").mkdir()
                (out / "a" / "x").write_text(text_of(key))
                if deadly and draw.random() < 0.2:
                    os._exit(9)
                (out / "y").write_text(key)
                with Path(log).open("a") as file:
                    file.write(f"{key}\n")

            path, _ = store.get_or_build(key, f"{round_}/{number}", build)
            if (path / "a" / "x").read_text() != text_of(key) or (path / "y").read_text() != key:
                return 3
        if draw.random() < 0.5:
            collect(store, older_than_s=3600.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
