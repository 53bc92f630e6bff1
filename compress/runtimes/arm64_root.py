"""The arm64 root: a few Debian packages and two wheels in ``MCOMPRESS_HOME/arm64``, and the emulator that runs them.

::

    arm64/root/            libc6, python3.11 and what they need, unpacked
    arm64/site/            numpy and onnxruntime for aarch64, unpacked
    arm64/installed.json   what it was made of: package or wheel -> version, sha256 of wheels
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

from compress.store import Store

PYTHON = "3.11"
INSTALLED = "installed.json"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
SETUP = "mcompress arm64 setup"


def arm64_folder() -> Path:
    """Return where the root lies: ``MCOMPRESS_ARM64``, else ``arm64`` in the store's folder."""
    named = os.environ.get("MCOMPRESS_ARM64")
    return Path(named).expanduser() if named else Store.default().root / "arm64"


def emulator() -> str | None:
    """Return the path of qemu's user-mode emulator for arm64."""
    return next((found for name in EMULATORS if (found := shutil.which(name))), None)


def why_no_emulator() -> str:
    """Return why no arm64 program can be emulated here; empty if one can."""
    if sys.platform != "linux":
        return "arm64 is emulated on Linux only, by qemu's user mode"
    if platform.machine() in ("aarch64", "arm64"):
        return "this machine is arm64 itself: measure on ort-cpu-1t"
    if emulator() is None:
        return "qemu-aarch64-static is not installed (Debian, Ubuntu: apt install qemu-user-static)"
    return ""


def why_no_arm64() -> str:
    """Return why no arm64 Python can be run here; empty if one can."""
    if reason := why_no_emulator():
        return reason
    if not (arm64_folder() / INSTALLED).is_file():
        return f"the arm64 root is not there: {SETUP}"
    return ""


def arm64_command(cpu: str, folder: Path | None = None) -> list[str]:
    """Return the words that start the root's Python under an emulated CPU; its arguments follow.

    Args:
        cpu: a CPU model of qemu (``qemu-aarch64-static -cpu help``).
        folder: where the root lies; None = ``arm64_folder()``.
    """
    root = (folder or arm64_folder()) / "root"
    return [emulator() or EMULATORS[0], "-cpu", cpu, "-L", str(root), str(root / f"usr/bin/python{PYTHON}"), "-I"]
