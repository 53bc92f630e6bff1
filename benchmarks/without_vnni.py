"""Run a command of mcompress with ONNX Runtime's AVX2 kernels on a CPU that has AVX-512 and VNNI.

The target `ort-cpu-1t-avx2` caps the measuring processes; this caps everything, so that a whole recipe, its gates and
its searches too, goes as on a CPU without VNNI. What such a CPU's clock and caches would change, this cannot show.

    python benchmarks/without_vnni.py run benchmarks/recipes/int8.yaml --var SET=sst2 --var MODELS=... --var DATA=... \
        --out DIR

Needs Linux on x86-64, gcc and objdump. The first line says whether a sum of bytes saturates, which it must.
"""

from __future__ import annotations

import os
import subprocess
import sys

from compress.bench import environment
from compress.quantization import isa
from compress.quantization.saturation import kernel_error
from compress.runtimes.isa_cap import MARK, capped_environment, visible_flags
from compress.runtimes.target import find_target


def main() -> int:
    target = find_target("ort-cpu-1t-avx2")
    if MARK not in os.environ:
        capped = os.environ | capped_environment(target)
        return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=capped).returncode
    from compress.cli import main as command

    error = kernel_error()
    print(f"a sum of 64 products 255 x 127 is off by {error:,}", flush=True)
    if not error:
        sys.exit("the kernels of a newer CPU still run")
    flags, facts = isa.isa_flags, environment.cpu_facts
    isa.isa_flags = lambda *args: visible_flags(flags(*args), target.isa)

    def hidden(cpuinfo: str) -> tuple[str, list[str]]:
        model, known = facts(cpuinfo)
        return model, [flag for flag in known if flag in visible_flags(known, target.isa)]

    environment.cpu_facts = hidden
    command()
    return 0


if __name__ == "__main__":
    sys.exit(main())
