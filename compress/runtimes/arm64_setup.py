"""Make the arm64 root: packages of a Debian release by apt, wheels by pip, unpacked without root privileges."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from compress.errors import MissingCapabilityError, RunError
from compress.runtimes.arm64_root import INSTALLED, PYTHON, SETUP, arm64_command, arm64_folder, why_no_emulator

SUITE = "bookworm"
PACKAGES = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6")
WHEELS = ("numpy==2.2.6", "onnxruntime==1.23.2")
"""The newest that run under qemu 7.2: onnxruntime 1.31 crashes at import there."""
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
NEEDED_BYTES = 400 * 2**20
_SOURCES = Path("/etc/apt")
_MIRROR = re.compile(r"^(?:URIs:\s*|deb\s+(?:\[[^]]*\]\s*)?)(https?://\S+/debian)/?(?:\s|$)", re.MULTILINE)
_SAID = 600


def set_up_arm64(
    mirror: str | None = None, *, force: bool = False, emit: Callable[[str], None] = print
) -> Mapping[str, str]:
    """Download and unpack the root, try it, and put it into place with one rename.

    About 50 MB are downloaded and 200 MB kept. Packages are verified by apt with Debian's keyring, wheels by
    pip with the index' digests. Nothing is installed into this system.

    Args:
        mirror: a Debian mirror; None = the one that this system's apt uses.
        force: make it again although it is there.
        emit: progress sink.

    Returns:
        What the root holds: package or wheel -> version; unchanged if it was there.

    Raises:
        MissingCapabilityError: the emulator, apt, Debian's keyring, pip or space is missing.
        RunError: a download failed, or Python does not start in the new root.
    """
    folder = arm64_folder()
    if reason := why_no_emulator():
        raise MissingCapabilityError("arm64 cannot be emulated here.", value=reason, fix="Use a Linux x86-64 machine.")
    if (folder / INSTALLED).is_file() and not force:
        found: dict[str, str] = json.loads((folder / INSTALLED).read_text(encoding="utf-8"))
        return found
    place = _mirror(mirror)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder.parent).free < NEEDED_BYTES:
        raise MissingCapabilityError(
            "There is too little space for the arm64 root.",
            value=folder.parent,
            fix="Free 400 MB, or set MCOMPRESS_ARM64.",
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".arm64-") as temporary:
        made = Path(temporary) / "arm64"
        (made / "root").mkdir(parents=True)
        (made / "site").mkdir()
        emit(f"[1/4] Debian packages for arm64 (about 20 MB) from {place}")
        packages = _debian_packages(Path(temporary), place)
        emit(f"[2/4] wheels for aarch64 (30 MB): {', '.join(WHEELS)}")
        wheels = _wheels(Path(temporary) / "wheels")
        emit(f"[3/4] unpacking {len(packages)} packages and {len(wheels)} wheels")
        for file in packages:
            _call(["dpkg-deb", "-x", str(file), str(made / "root")], "unpack a package")
        for file in wheels:
            shutil.unpack_archive(file, made / "site", "zip")
        emit("[4/4] starting Python under the emulator")
        record = _names([*packages, *wheels]) | {"python": _try(made)}
        (made / INSTALLED).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return record


def _mirror(named: str | None) -> str:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingCapabilityError(
                f"{tool} is not here: the root is made of Debian packages.",
                value=tool,
                fix="Make it on Debian or Ubuntu and copy the folder, then name it in MCOMPRESS_ARM64.",
            )
    if not KEYRING.is_file():
        raise MissingCapabilityError(
            "Debian's keys are not here, so its packages cannot be verified.",
            value=KEYRING,
            fix="apt install debian-archive-keyring",
        )
    found = named.rstrip("/") if named else mirror_of(_SOURCES)
    if found is None:
        raise MissingCapabilityError(
            "This system's apt names no Debian mirror.",
            value=_SOURCES,
            fix=f"Name one: {SETUP} --mirror URL (it ends in /debian).",
        )
    return found


def mirror_of(folder: Path) -> str | None:
    """Return the first Debian mirror in apt's source files below ``folder``."""
    files = [*folder.glob("sources.list"), *sorted(folder.glob("sources.list.d/*"))]
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file())
    return next((match[1] for text in texts if (match := _MIRROR.search(text))), None)


def _debian_packages(work: Path, mirror: str) -> list[Path]:
    """Let apt resolve and fetch the packages for arm64, with folders of its own below ``work``."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n", encoding="utf-8")
    options = {
        "APT::Architecture": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
        "Dir::State": str(work / "state"),
        "Dir::State::status": str(work / "status"),
        "Dir::Cache": str(work / "cache"),
        "Dir::Etc::sourcelist": str(work / "sources.list"),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
    }
    lines = [f'{name} "{value}";' for name, value in options.items()]
    (work / "apt.conf").write_text("\n".join([*lines, 'APT::Architectures { "arm64"; };', ""]), encoding="utf-8")
    environment = os.environ | {"APT_CONFIG": str(work / "apt.conf"), "LC_ALL": "C"}
    _call(["apt-get", "-q", "update"], "read the mirror's list of packages", environment)
    command = ["apt-get", "-q", "-y", "--download-only", "install", *PACKAGES]
    _call(command, "download the packages", environment)
    return sorted((work / "cache" / "archives").glob("*.deb"))


def _wheels(folder: Path) -> list[Path]:
    options = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder), *options, *WHEELS]
    _call(command, "download the wheels")
    return sorted(folder.glob("*.whl"))


def _try(made: Path) -> str:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import onnxruntime, numpy, platform;"
        "print(platform.machine(), platform.python_version())"
    )
    said = _call([*arm64_command("max", made), "-c", script, str(made / "site")], "start Python in the new root")
    return said.split()[-1]


def _call(command: Sequence[str], what: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if done.returncode != 0:
        raise RunError(
            f"Setting up arm64 could not {what}.",
            value=f"{Path(command[0]).name} ended with {done.returncode}: {' '.join(done.stderr.split())[-_SAID:]}",
            fix=f"Remove the cause (network, mirror, pip, space) and run `{SETUP}` again; nothing was left behind.",
        )
    return done.stdout


def _names(files: Sequence[Path]) -> dict[str, str]:
    """Return package or wheel -> version, from file names."""
    parts = (file.name.replace("%3a", ":").split("_" if file.suffix == ".deb" else "-") for file in files)
    return {part[0]: part[1] for part in parts}
