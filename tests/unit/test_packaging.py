"""What a wheel holds, and what the two dependency files promise."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import compress

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIREMENTS = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
PINS = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]


def name_of(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built without network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    record = f"mcompress-{compress.__version__}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"compress", record}
    assert f"{record}/licenses/LICENSE" in wheel.namelist()
    assert "mcompress = compress.cli:main" in wheel.read(f"{record}/entry_points.txt").decode()


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "compress"
    files = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert files == {name for name in wheel.namelist() if name.startswith("compress/")}
    of_bundles = {".Dockerfile", ".pbtxt", ".sh", ".txt"}
    known = {".css", ".j2", ".js", ".md", ".npz", ".py", ".typed", ".yaml"} | of_bundles
    assert {path.suffix for path in map(Path, files)} == known
    assert {"compress/py.typed", "compress/recipes/demo.yaml", "compress/targets/ort-cpu-1t.yaml"} <= files
    assert {"compress/report/templates/report.css", "compress/report/templates/report.html.j2"} <= files


def test_versions_agree() -> None:
    assert PROJECT["project"]["version"] == compress.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## .*\b{re.escape(compress.__version__)}\b", changes, re.MULTILINE)


def test_extras_bring_the_runtimes_and_exclude_each_other_where_they_must() -> None:
    brings = {extra: {name_of(requirement) for requirement in requirements} for extra, requirements in EXTRAS.items()}
    assert brings["cpu"] == {"onnxruntime"}
    assert "onnxruntime-gpu" in brings["gpu"]
    assert "openvino" in brings["openvino"]
    assert "tensorrt" in brings["tensorrt"]
    assert "tensorrt-rtx-cu13-libs" in brings["tensorrt-rtx"]
    assert [{"extra": "cpu"}, {"extra": "gpu"}] in PROJECT["tool"]["uv"]["conflicts"]


def test_torch_is_loose_in_the_project_and_pinned_in_the_constraints() -> None:
    assert [r for r in REQUIREMENTS if name_of(r) == "torch"] == ["torch>=2.9"]
    assert "torch==2.13.0" in PINS
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*(post\d+)?", pin) for pin in PINS), "one exact release a line"
    assert len({name_of(pin) for pin in PINS}) == len(PINS), "one line a distribution"


def test_every_run_time_requirement_has_a_floor_and_a_tested_version() -> None:
    pinned = {name_of(pin): pin.partition("==")[2] for pin in PINS}
    for requirement in REQUIREMENTS:
        assert re.fullmatch(r"[A-Za-z0-9-]+>=[0-9.]+", requirement), f"{requirement}: a floor, no ceiling"
        assert name_of(requirement) in pinned, f"{requirement}: constraints.txt names no version"
        floor = requirement.partition(">=")[2]
        assert numbers(pinned[name_of(requirement)]) >= numbers(floor)


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_dependency_files_name_nothing_of_one_machine(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for sign in ("file:", "://", "/work", "/home", "/usr", " @ ", "+cpu", "+cu", "--index-url", "--find-links"):
        assert sign not in text, sign


def test_what_is_installed_beside_the_tests_can_build_the_wheel() -> None:
    groups = PROJECT["dependency-groups"]
    development = {name_of(item) for item in groups["dev"] if isinstance(item, str)}
    assert {"build", *map(name_of, PROJECT["build-system"]["requires"])} <= development
