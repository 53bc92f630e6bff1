"""What repeats a run: commits of tracked folders only, a digest of packages that depends on nothing else."""

from __future__ import annotations

import hashlib
import subprocess
from importlib.metadata import Distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.pipeline.provenance import checkout, digest_of


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    return folder


def test_commit_and_changes_of_a_checkout(package: Path) -> None:
    git(package, "add", ".")
    git(package, "commit", "--quiet", "-m", "first")
    assert checkout(package) == (git(package, "rev-parse", "HEAD"), False)
    (package.parent / "notes.txt").write_text("not tracked")
    assert checkout(package)[1] is False
    (package / "__init__.py").write_text("changed = 1\n")
    assert checkout(package)[1] is True


def test_a_folder_that_git_does_not_track_has_no_commit(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkout(package) == (None, None)
    monkeypatch.setenv("PATH", str(package))
    assert checkout(package) == (None, None), "git is not installed"


def test_digest_of_packages_ignores_order_case_and_duplicates() -> None:
    found = digest_of([installed("Torch", "2.0"), installed("numpy", "2.1"), installed("torch", "2.0")])
    assert found == hashlib.sha256(b"numpy==2.1\ntorch==2.0\n").hexdigest()
    assert found != digest_of([installed("torch", "2.0"), installed("numpy", "2.2")])
    assert found == digest_of([installed("torch", "2.0"), installed("numpy", "2.1"), installed(None, None), Leftover()])


def installed(name: str | None, version: str | None) -> Any:
    return SimpleNamespace(metadata={"Name": name}, version=version)


class Leftover(Distribution):
    """A folder without METADATA, as an interrupted pip leaves it."""

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        return path
