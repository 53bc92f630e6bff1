"""Run a command of mcompress with ONNX Runtime's AVX2 kernels on a CPU that has AVX-512 and VNNI.

A copy of the installed ONNX Runtime gets every ``cpuid`` instruction replaced by one that traps; a handler answers
it as the processor would, without AVX-512, VNNI and AMX. So its AVX2 kernels run natively, at native speed, and
saturate as they do on a CPU without VNNI. What such a CPU's clock and caches would change, this cannot show.

    python benchmarks/without_vnni.py run benchmarks/recipes/int8.yaml --var SET=sst2 --var MODELS=... --var DATA=... \
        --out DIR

Needs Linux on x86-64, gcc and objdump. The first lines say whether a sum of bytes saturates, which it must.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

MARK = "MCOMPRESS_WITHOUT_VNNI"
GONE = re.compile(r"^(avx512|avx_vnni|amx)")
CPUID, TRAP = b"\x0f\xa2", b"\x0f\x0b"
HANDLER = r"""
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
    if (leaf == 7 && sub == 0) { b &= ~0xdc230000u; c &= ~0x00005f42u; d &= ~0x03c0010cu; }
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


def trap(library: Path) -> int:
    """Replace the ``cpuid`` instructions of a library, found by disassembly; return how many there were."""
    data = bytearray(library.read_bytes())
    if CPUID not in data:
        return 0
    headers = subprocess.run(["objdump", "-h", library], capture_output=True, text=True, check=True).stdout
    pattern = r"^\s*\d+ \S+\s+([0-9a-f]+)\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)"
    sections = [tuple(int(word, 16) for word in found.groups()) for found in re.finditer(pattern, headers, re.M)]
    code = subprocess.run(["objdump", "-d", library], capture_output=True, text=True, check=True).stdout
    addresses = [int(found[1], 16) for found in re.finditer(r"^\s*([0-9a-f]+):\t0f a2 +\tcpuid", code, re.M)]
    for address in addresses:
        _, start, offset = next(it for it in sections if it[1] <= address < it[1] + it[0])
        place = offset + address - start
        data[place : place + 2] = TRAP
    library.write_bytes(data)
    return len(addresses)


def prepare(folder: Path) -> dict[str, str]:
    """Write the copy and the handler; return the environment that puts both in place."""
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        sys.exit("onnxruntime is not installed")
    shutil.copytree(Path(spec.origin).parent, folder / "site" / "onnxruntime")
    count = sum(trap(library) for library in sorted((folder / "site").rglob("*.so*")))
    (folder / "handler.c").write_text(HANDLER, encoding="ascii")
    handler = folder / "handler.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", handler, folder / "handler.c"], check=True)
    print(f"{count} cpuid instructions trapped", flush=True)
    return os.environ | {"LD_PRELOAD": str(handler), "PYTHONPATH": str(folder / "site"), MARK: "1"}


def main() -> int:
    if MARK not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=prepare(Path(folder))).returncode
    from compress.bench import environment
    from compress.quantization import isa
    from compress.quantization.saturation import kernel_error

    error = kernel_error()
    print(f"a sum of 64 products 255 x 127 is off by {error:,}", flush=True)
    if not error:
        sys.exit("the kernels of a newer CPU still run")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    masked = Path(tempfile.mkdtemp()) / "cpuinfo"
    kept = (" ".join(word for word in line.split(" ") if not GONE.match(word)) for line in lines)
    masked.write_text("\n".join(kept) + "\n", encoding="utf-8")
    read = environment._read
    environment._read = lambda path: read(masked if path == Path("/proc/cpuinfo") else path)
    isa.isa_flags.__defaults__ = (masked,)
    from compress.cli import main as command

    command()
    return 0


if __name__ == "__main__":
    sys.exit(main())
