"""Timings of kernels outlive a build, for the same GPU, driver and version only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.export.trt_api import Trt
from compress.export.trt_timing import FOLDER, Timings, cache_key
from compress.runtimes.trt_device import Device

H100 = Device("NVIDIA H100", "9.0", "13.0")
FULL = Trt(None, "tensorrt", "11.4.0.106")


class FakeCache:
    def __init__(self, known: set[str]) -> None:
        self.known = known

    def combine(self, other: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if "foreign" in other.known:
            return False
        self.known |= other.known
        return True

    def serialize(self) -> bytes:
        return ",".join(sorted(self.known)).encode()


class FakeConfig:
    """A builder configuration that knows kernels; a cache that begins with "foreign" is not accepted."""

    cache: FakeCache

    def create_timing_cache(self, content: bytes) -> FakeCache | None:
        if content.startswith(b"broken"):
            return None
        return FakeCache(set(filter(None, content.decode().split(","))))

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if "foreign" in cache.known:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeCache:
        return self.cache


def build(root: Path, *kernels: str, meanwhile: Any = lambda: None) -> tuple[set[str], Any]:
    """Build once; return what was known before, and what is recorded."""
    config, timings = FakeConfig(), Timings(root, FULL, H100, None)
    timings.give(config)
    before = set(config.cache.known)
    config.cache.known |= set(kernels)
    meanwhile()
    return before, timings.keep(config)


def test_a_build_takes_over_what_the_one_before_timed(tmp_path: Path) -> None:
    before, first = build(tmp_path, "gemm")
    assert before == set()
    assert first.used
    before, second = build(tmp_path, "mha")
    assert before == {"gemm"}
    assert second.sha256 != first.sha256
    assert build(tmp_path)[0] == {"gemm", "mha"}
    assert sorted(path.suffix for path in (tmp_path / FOLDER).iterdir()) == [".cache", ".lock"]


def test_what_another_build_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    build(tmp_path, "mine", meanwhile=lambda: build(tmp_path, "yours"))
    assert build(tmp_path)[0] == {"mine", "yours"}


@pytest.mark.parametrize("content", [b"broken", b"foreign"])
def test_a_cache_that_does_not_fit_is_started_anew(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / FOLDER / f"{cache_key(FULL, H100)}.cache"
    path.parent.mkdir()
    path.write_bytes(content)
    before, record = build(tmp_path, "gemm")
    assert before == set()
    assert record.used


@pytest.mark.parametrize(
    ("trt", "device"),
    [
        (FULL._replace(version="11.5.0.1"), H100),
        (FULL._replace(library="tensorrt-lean"), H100),
        (FULL, H100._replace(name="NVIDIA H200")),
        (FULL, H100._replace(driver="13.1")),
    ],
)
def test_timings_belong_to_version_gpu_and_driver(trt: Trt, device: Device) -> None:
    assert cache_key(trt, device) != cache_key(FULL, H100)


@pytest.mark.parametrize(
    ("root", "library", "level", "reason"),
    [
        (Path("x"), "tensorrt-rtx", None, "its timing cache does nothing"),
        (Path("x"), "tensorrt", 0, "level 0"),
        (None, "tensorrt", None, "no folder"),
    ],
)
def test_where_there_is_no_cache_the_record_says_why(
    root: Path | None, library: str, level: int | None, reason: str
) -> None:
    timings = Timings(root, FULL._replace(library=library), H100, level)
    timings.give(SimpleNamespace())
    record = timings.keep(SimpleNamespace())
    assert not record.used
    assert reason in record.reason
