"""What ``import compress`` offers, and what it does not load."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

import compress

HEAVY = ("datasets", "jinja2", "nncf", "onnx", "onnxruntime", "openvino", "rich", "tensorrt", "torch", "transformers")
LIGHT = ("compress", "compress.cli.app", "compress.recipe", "compress.pipeline.planning", "compress.api")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    quiet = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=quiet, check=False)


def test_all_is_sorted_and_is_what_dir_shows() -> None:
    assert compress.__all__ == sorted(compress.__all__)
    assert sorted(dir(compress)) == compress.__all__


def test_every_public_name_can_be_imported_and_says_what_it_is() -> None:
    for name in compress.__all__:
        value = getattr(compress, name)
        assert name.startswith("__") or (value.__doc__ and value.__module__.startswith("compress.")), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'compress' has no attribute 'lood'"):
        compress.lood  # noqa: B018


def test_version_is_the_distribution_s() -> None:
    assert compress.__version__ == importlib.metadata.version("mcompress")


@pytest.mark.parametrize("module", LIGHT)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps(sorted(set(sys.modules) & set({HEAVY!r}))))"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    "arguments", [("-m", "compress", "--version"), ("-m", "compress", "--help"), ("-m", "compress", "run", "--help")]
)
def test_help_and_version_answer(arguments: tuple[str, ...]) -> None:
    done = run(sys.executable, *arguments)
    assert done.returncode == 0, done.stderr
    assert ("mcompress " + compress.__version__ if "--version" in arguments else "Usage: mcompress") in done.stdout


def test_the_console_script_is_the_same_command() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="mcompress")
    assert {script.value for script in scripts} == {"compress.cli:main"}
    done = run(
        sys.executable, "-c", "import sys; sys.argv = ['mcompress', '--version']\nfrom compress.cli import main; main()"
    )
    assert done.stdout == f"mcompress {compress.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("plan", "no-such-recipe"), 2, "Unknown recipe"),
        (("validate", "missing.yaml"), 2, "does not exist"),
        (("ls", "recipe"), 2, "Did you mean 'recipes'"),
        (("report", "."), 2, "fix:"),
        (("no-such-verb",), 2, "no-such-verb"),
    ],
)
def test_a_mistake_ends_with_its_exit_code_and_no_traceback(arguments: tuple[str, ...], code: int, words: str) -> None:
    done = run(sys.executable, "-m", "compress", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
