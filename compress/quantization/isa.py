"""What the CPU can multiply: whether 8-bit weights saturate here."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from compress.quantization.rules import rules_for
from compress.runtimes.isa_cap import visible_flags
from compress.runtimes.target import Target

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})
_ARM = frozenset({"aarch64", "arm64"})
_WITHOUT_DOT = frozenset({"cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72"})
"""CPU models of qemu that have no dot product."""
_X86 = frozenset({"x86_64", "AMD64", "i386", "i686"})


def isa_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Return the instruction-set flags that every core reports; empty where the system does not tell.

    Args:
        cpuinfo: a file in the format of Linux' ``/proc/cpuinfo`` (``flags`` on x86, ``Features`` on ARM).
    """
    if not cpuinfo.is_file():
        return frozenset()
    lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    cores = [frozenset(value.split()) for name, _, value in lines if name.strip() in ("flags", "Features")]
    return frozenset.intersection(*cores) if cores else frozenset()


def isa_name(flags: Iterable[str] | None = None, machine: str | None = None) -> str:
    """Return the instruction set that 8-bit products run on: x86-vnni, x86-avx512, x86-avx2, x86-sse, arm64-dot, ...

    These are the keys of the rules in ``compress/quantization/rules``.

    Args:
        flags: what ``isa_flags`` returns; None = of this machine.
        machine: what ``platform.machine()`` returns; None = this machine.
    """
    known = set(isa_flags() if flags is None else flags)
    machine = platform.machine() if machine is None else machine
    if machine in _X86:
        levels = {"x86-vnni": _VNNI, "x86-avx512": {"avx512bw"}, "x86-avx2": {"avx2"}}
        return next((name for name, wanted in levels.items() if known & wanted), "x86-sse")
    if machine in _ARM:
        return "arm64-dot" if "asimddp" in known or machine == "arm64" else "arm64"
    return "other"


def isa_of(target: Target | None) -> str:
    """Return the instruction set that 8-bit products run on, where a target's cap hides what lies above it; or cuda."""
    if target is not None and target.device == "cuda":
        return "cuda"
    if target is not None and target.emulate is not None:
        return "arm64" if target.emulate in _WITHOUT_DOT else "arm64-dot"
    return isa_name(target_flags(target))


def target_flags(target: Target | None) -> frozenset[str]:
    """Return the flags that kernels go by on a CPU target of this machine."""
    return visible_flags(isa_flags(), None if target is None else target.isa)


def needs_reduced_range(flags: Iterable[str], machine: str | None = None) -> tuple[bool, str]:
    """Say whether INT8 weights must keep to 7 bits, and why.

    AVX2 multiplies unsigned by signed bytes and adds neighbouring products in 16 bits, saturating: with
    8-bit weights 255 * 127 * 2 > 2^15 - 1. VNNI and ARM's dot product accumulate in 32 bits. The rules of
    ONNX Runtime hold the decision for each instruction set.

    Args:
        flags: what ``isa_flags`` returns.
        machine: what ``platform.machine()`` returns; None = this machine.
    """
    rule = rules_for("onnxruntime").isa[isa_name(flags, machine)]
    return rule.weight_bits == 7, rule.reason


def reduced_range_for(target: Target | None) -> tuple[bool, str]:
    """Say whether INT8 weights for a target must keep to 7 bits, and why.

    None and CPU targets mean this machine, as far as the target's cap lets it be used, or the CPU it emulates.
    """
    if target is not None and target.device == "cuda":
        return False, f"the target {target.name} is a GPU, which accumulates in 32 bits"
    rule = rules_for("onnxruntime").isa[isa_of(target)]
    return rule.weight_bits == 7, rule.reason
