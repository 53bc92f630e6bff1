"""The cap on instructions: which CPUs can have it, what a patched library sees, what follows for INT8."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from compress.bench import launch
from compress.bench.launch import Child, ChildError
from compress.errors import MissingCapabilityError
from compress.quantization.isa import isa_flags, isa_name, isa_of, reduced_range_for, target_flags
from compress.runtimes import isa_cap
from compress.runtimes.base import runtimes
from compress.runtimes.isa_cap import MARK, capped_environment, require_cap, trap, visible_flags, why_not
from compress.runtimes.target import Isa, Target, find_target

SKYLAKE = "avx2 fma avx512f avx512bw avx512vl avx512dq"
ZEN4 = f"sse4_1 {SKYLAKE} avx512_vnni avx512_bf16 avx512_vbmi2 avx_vnni"
on_x86_linux = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux" or not (shutil.which("gcc") and shutil.which("objdump")),
    reason="needs Linux on x86-64 with gcc and objdump",
)


def capped(isa: Isa, runtime: str = "onnxruntime") -> Target:
    return Target(name="capped", runtime=runtime, threads=1, isa=isa)


@pytest.mark.parametrize(
    ("isa", "flags", "reason"),
    [
        ("avx2", ZEN4, ""),
        ("avx512", ZEN4, ""),
        ("avx512", SKYLAKE, ""),
        ("avx512", "avx2 fma", "this CPU does not reach avx512: it lacks avx512bw, avx512f, avx512vl"),
        ("avx2", "avx", "this CPU does not reach avx2: it lacks avx2, fma"),
    ],
)
def test_only_a_cpu_that_has_the_level_can_be_capped_at_it(
    isa: Isa, flags: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags}\n", encoding="utf-8")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}")
    assert why_not(capped(isa), tmp_path / "cpuinfo") == reason


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {ZEN4}\n", encoding="utf-8")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert "gcc and objdump" in why_not(capped("avx2"), tmp_path / "cpuinfo")
    assert why_not(capped("avx2", "torch"), tmp_path / "cpuinfo") == "", "torch reads variables"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "needs Linux on x86-64" in why_not(capped("avx2"), tmp_path / "cpuinfo")
    found = runtimes.get("onnxruntime")().available(capped("avx2"))
    assert (found.ok, "needs Linux on x86-64" in found.reason) == (False, True)
    assert why_not(find_target("ort-cpu-1t")) == ""


def test_a_cap_that_fails_to_be_built_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(target: Target) -> dict[str, str]:
        raise MissingCapabilityError("gcc failed.", value="/usr/lib/x.c: no", fix="")

    monkeypatch.setattr(launch, "capped_environment", fail)
    with pytest.raises(ChildError, match=r"gcc failed. x.c: no"):
        Child(capped("avx2"))


def test_only_a_capped_process_may_open_a_capped_target(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingCapabilityError, match="measuring processes only"):
        require_cap(capped("avx2"))
    monkeypatch.setenv(MARK, "avx2")
    require_cap(capped("avx2"))
    require_cap(find_target("ort-cpu-1t"))
    with pytest.raises(MissingCapabilityError):
        require_cap(capped("avx512"))


def test_a_gpu_has_no_cap() -> None:
    with pytest.raises(ValidationError, match="instructions of a CPU"):
        Target(name="x", runtime="tensorrt", device="cuda", isa="avx2")


@pytest.mark.parametrize(
    ("isa", "name", "bits"), [(None, "x86-vnni", 8), ("avx512", "x86-avx512", 7), ("avx2", "x86-avx2", 7)]
)
def test_int8_follows_the_cap(isa: Isa | None, name: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.quantization.isa.isa_flags", lambda: frozenset(ZEN4.split()))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    target = find_target("ort-cpu-1t").model_copy(update={"isa": isa})
    assert isa_of(target) == name == isa_name(target_flags(target))
    assert reduced_range_for(target)[0] == (bits == 7)


def test_flags_above_the_level_are_hidden() -> None:
    assert visible_flags(ZEN4.split(), "avx2") == {"sse4_1", "avx2", "fma"}
    assert visible_flags(ZEN4.split(), "avx512") == {"sse4_1", *SKYLAKE.split(), "avx512_vbmi2"}
    assert visible_flags(ZEN4.split(), None) == set(ZEN4.split())


@on_x86_linux
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_a_patched_library_sees_the_processor_without_what_lies_above(isa: Isa, tmp_path: Path) -> None:
    (tmp_path / "ask.c").write_text(
        """
        #include <cpuid.h>
        unsigned ask(unsigned leaf, unsigned sub, int which) {
            unsigned r[4]; __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]); return r[which];
        }
        """,
        encoding="ascii",
    )
    library = tmp_path / "ask.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "ask.c"], check=True)
    code = (
        f"import ctypes; ask = ctypes.CDLL({str(library)!r}).ask; ask.restype = ctypes.c_uint\n"
        "print(*[ask(leaf, 0, i) for leaf in (1, 7) for i in range(4)])"
    )

    def ask(**environment: str) -> list[int]:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    native = ask()
    assert trap(library) == 1
    isa_cap._compile(isa, tmp_path)
    seen = ask(LD_PRELOAD=str(tmp_path / "handler.so"))
    assert seen[2:5] == native[2:5], "leaf 1 (its ebx names the core) and the number of subleaves stay"
    _, ebx, ecx, edx = seen[4:]
    cleared = {"avx2": ((16, 17, 30, 31), (11,), (22, 24, 25)), "avx512": ((), (11,), (22, 23, 24, 25))}[isa]
    for before, after, bits in zip(native[5:], (ebx, ecx, edx), cleared, strict=True):
        assert not any(after >> bit & 1 for bit in bits)
        assert after & ~before == 0, "nothing is added"
    assert ebx >> 5 & 1 == native[5] >> 5 & 1, "AVX2 stays"
    if isa == "avx512":
        assert ebx == native[5]


@on_x86_linux
def test_the_kernels_of_avx2_run_and_saturate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_target("ort-cpu-1t-avx2")
    if why_not(target):
        pytest.skip(why_not(target))
    monkeypatch.setenv("MCOMPRESS_HOME", str(tmp_path))
    code = "from compress.quantization.saturation import kernel_error as e; print(e(), e(precise=True))"
    added = capped_environment(target)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | added, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(32 * (2 * 255 * 127 - 32_767)), "0"]
    assert isa_name(visible_flags(isa_flags(), "avx2")) == "x86-avx2"
    assert capped_environment(target) == added, "made once"
