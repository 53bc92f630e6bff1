"""Let a runtime use no more than a level of x86 instructions, at native speed: kernels of a CPU that is not here.

PyTorch reads environment variables. ONNX Runtime has no switch, and OpenVINO's covers only a part of its kernels: of
these a copy of the installed package is made in which every ``cpuid`` instruction traps, and a preloaded handler
answers it as the processor would, without what lies above the level. So the kernels of a smaller CPU run, and
saturate as they do there; its clock and its caches this cannot show.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from compress.artifact import hash_json
from compress.errors import MissingCapabilityError
from compress.runtimes.target import Isa, Target
from compress.store import Store

MARK = "MCOMPRESS_ISA"
"""Set in a capped process to its level."""
TRAPPED = ("onnxruntime", "openvino")
"""Runtimes that need a copy of their package; each is named as its package is."""
NEEDED: Mapping[Isa, frozenset[str]] = {
    "avx2": frozenset({"avx2", "fma"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl"}),
}
"""Flags without which a CPU does not reach the level."""
ABOVE: Mapping[Isa, re.Pattern[str]] = {
    "avx2": re.compile(r"^(avx512|avx_vnni|avx_ifma|avx10|amx)"),
    "avx512": re.compile(r"^(avx512_(vnni|bf16|fp16|4vnniw|4fmaps)|avx_vnni|avx_ifma|avx10|amx)"),
}
"""Flags that lie above it. AVX-512 here is that of Skylake: 8-bit products have no instruction of their own."""
VARIABLES: Mapping[Isa, Mapping[str, str]] = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
"""What PyTorch, its oneDNN and its MKL read. MKL heeds its own on Intel CPUs only."""
_CPUID, _TRAP = b"\x0f\xa2", b"\x0f\x0b"
_MASKS: Mapping[Isa, str] = {
    "avx2": "b &= ~0xdc230000u; c &= ~0x00005f42u; d &= ~0x03c0010cu;",
    "avx512": "c &= ~0x00000800u; d &= ~0x03c0000cu;",
}
"""Bits of leaf 7 that are cleared: ebx AVX-512 F DQ IFMA PF ER CD BW VL; ecx VBMI VBMI2 GFNI VAES VPCLMULQDQ VNNI
BITALG VPOPCNTDQ; edx 4VNNIW 4FMAPS VP2INTERSECT FP16 and AMX."""
_HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <ucontext.h>
static void answer(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)r[REG_RIP];
    unsigned leaf = r[REG_RAX], sub = r[REG_RCX], a, b, c, d;
    if (at[0] != 0x0f || at[1] != 0x0b) { signal(number, SIG_DFL); return; }
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 7 && sub == 0) { MASKS }
    if (leaf == 7 && sub == 1) { a = b = c = d = 0; }
    r[REG_RAX] = a; r[REG_RBX] = b; r[REG_RCX] = c; r[REG_RDX] = d; r[REG_RIP] += 2;
}
__attribute__((constructor)) static void install(void) {
    struct sigaction action = {0};
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, 0);
}
"""


def why_not(target: Target, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return why the instructions of this machine cannot be capped as a target says; empty if they can, or need not.

    Args:
        cpuinfo: a file in the format of Linux' ``/proc/cpuinfo``.
    """
    if target.isa is None:
        return ""
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.is_file():
        return f"capping instructions at {target.isa} needs Linux on x86-64"
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.M)
    lacking = sorted(NEEDED[target.isa] - set(found[1].split() if found else ()))
    if lacking:
        return f"this CPU does not reach {target.isa}: it lacks {', '.join(lacking)}"
    tools = [tool for tool in ("gcc", "objdump") if target.runtime in TRAPPED and shutil.which(tool) is None]
    if tools:
        return f"capping {target.runtime} at {target.isa} needs {' and '.join(tools)}: install gcc and binutils"
    return ""


def visible_flags(flags: Iterable[str], isa: Isa | None) -> frozenset[str]:
    """Return the flags of ``/proc/cpuinfo`` that a capped process goes by."""
    return frozenset(flag for flag in flags if isa is None or not ABOVE[isa].match(flag))


def capped_environment(target: Target) -> dict[str, str]:
    """Return the variables to add to the environment of a process that runs a target; none without a cap.

    The patched copy is made once for each version of a package and kept in the store.

    Raises:
        MissingCapabilityError: this machine cannot cap it.
    """
    if target.isa is None:
        return {}
    reason = why_not(target)
    if reason:
        raise MissingCapabilityError(
            f"The target {target.name!r} cannot run here.", value=reason, fix="Choose a target without `isa`."
        )
    variables = {MARK: target.isa, **VARIABLES[target.isa]}
    if target.runtime not in TRAPPED:
        return variables
    folder = _copy(target.runtime, target.isa, Store.default().root)
    ahead = {"LD_PRELOAD": folder / "handler.so", "PYTHONPATH": folder / "site"}
    before = {name: os.environ.get(name) for name in ahead}
    joined = {name: os.pathsep.join(filter(None, [str(path), before[name]])) for name, path in ahead.items()}
    return variables | joined | {"PYTHONDONTWRITEBYTECODE": "1"}


def require_cap(target: Target) -> None:
    """Check that this very process is capped as a target says.

    Raises:
        MissingCapabilityError: it is not, so that its results would not be those of the target.
    """
    if target.isa is not None and os.environ.get(MARK) != target.isa:
        raise MissingCapabilityError(
            "Instructions are capped in measuring processes only, and this is none.",
            value=f"{target.name}: isa {target.isa}",
            fix="Measure the target with `mcompress bench` or a recipe, or open the artifact on one without `isa`.",
        )


@cache
def _copy(package: str, isa: Isa, store: Path) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingCapabilityError(f"{package} is not installed.", value=package, fix=f"pip install {package}")
    source = Path(spec.origin).parent
    sizes = {path.relative_to(source).as_posix(): path.stat().st_size for path in sorted(source.rglob("*.so*"))}
    what = {"isa cap": isa, "package": package, "version": version(package), "sizes": sizes}
    key = hash_json(what | {"handler": _HANDLER, "masks": _MASKS[isa], "python": sys.version_info[:2]})

    def build(payload: Path) -> None:
        ignored = shutil.ignore_patterns("__pycache__", "*gpu_plugin*", "*npu_plugin*", "cache.json")
        shutil.copytree(source, payload / "site" / package, ignore=ignored)
        for library in sorted((payload / "site").rglob("*.so*")):
            trap(library)
        _compile(isa, payload)

    return Store(store).get_or_build(key, f"{package} capped at {isa}", build)[0]


def _compile(isa: Isa, folder: Path) -> None:
    code = folder / "handler.c"
    code.write_text(_HANDLER.replace("MASKS", _MASKS[isa]), encoding="ascii")
    _run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(folder / "handler.so"), str(code)])


def trap(library: Path) -> int:
    """Replace the ``cpuid`` instructions of a library, found by disassembly; return how many there were."""
    data = bytearray(library.read_bytes())
    if _CPUID not in data:
        return 0
    pattern = r"^\s*\d+ \S+\s+([0-9a-f]+)\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)"
    headers = re.finditer(pattern, _run(["objdump", "-h", str(library)]), re.M)
    sections = [tuple(int(word, 16) for word in found.groups()) for found in headers]
    addresses = _cpuids(library)
    for address in addresses:
        _, start, offset = next(it for it in sections if it[1] <= address < it[1] + it[0])
        place = offset + address - start
        data[place : place + 2] = _TRAP
    library.write_bytes(data)
    return len(addresses)


def _cpuids(library: Path) -> list[int]:
    """Return the addresses of the instructions; the disassembly, far larger than the library, is never held."""
    with subprocess.Popen(["objdump", "-d", str(library)], stdout=subprocess.PIPE) as process:
        lines = [line for line in process.stdout or () if b"cpuid" in line]
    found = (re.match(rb"\s*([0-9a-f]+):\t0f a2 +\tcpuid", line) for line in lines)
    return [int(it[1], 16) for it in found if it]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingCapabilityError(
            f"{command[0]} failed while a runtime's instructions were capped.",
            value=(done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1],
            fix="Choose a target without `isa`, or install gcc and binutils that understand the installed libraries.",
        )
    return done.stdout
