"""What repeats a run: commits of tracked folders only, a digest of packages that depends on nothing else."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

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
    found = digest_of([("Torch", "2.0"), ("numpy", "2.1"), ("torch", "2.0")])
    assert found == hashlib.sha256(b"numpy==2.1\ntorch==2.0\n").hexdigest()
    assert found != digest_of([("torch", "2.0"), ("numpy", "2.2")])
