"""What `ingest` accepts: every way in which a result can be wrong ends in one clear refusal."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.errors import UsageError
from compress.kit import run_child
from compress.kit.ingesting import _target_record
from compress.kit.result import LARGEST_BYTES, Result, check_against_kit, read_result
from compress.kit.runner import runner_text

KIT: dict[str, Any] = {
    "sequence": [2, 0],
    "examples": 3,
    "models": [{"name": "export", "digest": "a" * 64}, {"name": "int8", "digest": "b" * 64}],
}


def model(name: str, digest: str) -> dict[str, Any]:
    return {
        "name": name,
        "digest": digest * 64,
        "status": "ok",
        "reason": "",
        "samples_ms": [[[1.0, 2.0], [1.5, 2.5]], [[1.0, 2], [1.0, 2.0]]],
        "warnings": [],
        "load_ms": 5.0,
        "first_ms": 3.0,
        "import_rss_bytes": 10,
        "peak_rss_bytes": 20,
        "golden_max_abs": 0.0,
        "outputs": [[0.5, -0.5], [0.0, 1.0], [2.0, 1.0]],
    }


def plain() -> dict[str, Any]:
    state = {"load": 0.1, "celsius": None, "mhz": None, "gpu": None}
    return {
        "schema_version": 1,
        "kit": "c" * 64,
        "created": "2026-11-26T09:00:00Z",
        "device": "Raspberry Pi 5",
        "runtime": {"backend": "onnxruntime", "provider": "", "threads": 1, "version": "1.31.1"},
        "environment": {
            "cpu": "Cortex-A76",
            "architecture": "aarch64",
            "flags": ["asimddp"],
            "cores": 4,
            "governor": "ondemand",
            "memory_bytes": 4 << 30,
            "gpu": None,
            "os": "Linux 6.6",
            "python": "3.11.2",
            "packages": {"numpy": "2.2.6"},
        },
        "state": {"before": state, "after": state},
        "models": [model("export", "a"), model("int8", "b")],
    }


@pytest.fixture
def put(tmp_path: Path) -> Callable[[Any], Path]:
    def write(value: Any) -> Path:
        path = tmp_path / "result.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return the good result with one value replaced; a place is keys and indices joined by dots."""
    out = copy.deepcopy(plain())
    inner: Any = out
    *way, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    for key in way:
        inner = inner[key]
    inner[last] = value
    return out


def test_a_good_result_is_read_and_fits(put: Callable[[Any], Path]) -> None:
    result = read_result(put(plain()))
    check_against_kit(result, KIT, 2)
    assert result.models[1].samples_ms[0][1] == [1.5, 2.5]
    assert read_result(put(plain()), device="My Pi").device == "My Pi"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("kit", "../../etc"),
        ("created", "yesterday"),
        ("device", ""),
        ("device", "a\x1b[31m"),
        ("device", "a\u2066b"),
        ("device", "x" * 10_000),
        ("extra", 1),
        ("runtime.backend", "shell"),
        ("runtime.provider", "A; rm -rf"),
        ("runtime.threads", 0),
        ("runtime.threads", "1"),
        ("environment.flags", "all"),
        ("environment.packages", {"a\nb": "1"}),
        ("environment.memory_bytes", 10**30),
        ("state.before.celsius", "hot"),
        ("models", []),
        ("models", {}),
        ("models.0.status", "excellent"),
        ("models.0.load_ms", -1),
        ("models.0.samples_ms.0.0.0", 0),
        ("models.0.samples_ms.0.0.0", True),
        ("models.0.samples_ms.0.0.0", "1"),
        ("models.0.samples_ms.0.0", 1.0),
        ("models.0.outputs.0.0", None),
        ("models.0.peak_rss_bytes", 1.5),
        ("models.0.status", "failed"),
    ],
)
def test_wrong_values_are_refused_with_their_place(place: str, value: Any, put: Callable[[Any], Path]) -> None:
    with pytest.raises(UsageError, match="not a kit's result") as caught:
        read_result(put(changed(place, value)))
    assert place.split(".")[0] in caught.value.value
    assert caught.value.fix
    assert len(caught.value.value) < 1000, "what is refused is not repeated at length"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"schema_version": 1, "kit": NaN}',
        '{"schema_version": ' + "9" * 10_000 + "}",
        "null",
        "[]",
        '{"schema_version": 2}',
        '{"schema_version": 1}',
    ],
)
def test_text_that_is_no_result_is_refused(text: str, put: Callable[[Any], Path]) -> None:
    with pytest.raises(UsageError):
        read_result(put(text))


def test_infinite_missing_and_huge_files_are_refused(put: Callable[[Any], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_result(put(json.dumps(changed("models.0.load_ms", 7.25)).replace("7.25", "1e999")))
    with pytest.raises(UsageError, match="cannot be read"):
        read_result(tmp_path / "nothing.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with pytest.raises(UsageError, match="too large"):
        read_result(tmp_path / "huge.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_result(tmp_path / "binary.json")


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("models.1.name", "export", "twice"),
        ("models.1.name", "../int8", "no such model"),
        ("models.1.digest", "d" * 64, "not the one of the kit"),
        ("models.0.samples_ms", [], "not those of the kit's sequence"),
        ("models.0.samples_ms.1", [[1.0, 2.0]], "not those of the kit's sequence"),
        ("models.0.samples_ms.0.0", [1.0], "not those of the kit's sequence"),
        ("models.0.outputs", None, "not those of the kit's examples"),
        ("models.0.outputs", [[1.0, 2.0]], "not those of the kit's examples"),
        ("models.0.outputs.1", [1.0], "wrong shape"),
        ("models.0.outputs.0.0", 1e300, "too large for float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_result_of_something_else_is_refused(
    place: str, value: Any, complaint: str, put: Callable[[Any], Path]
) -> None:
    result = read_result(put(changed(place, value)))
    with pytest.raises(UsageError, match=complaint):
        check_against_kit(result, KIT, 2)


def test_the_runner_is_one_file_for_old_pythons_that_knows_nothing_of_compress() -> None:
    text = runner_text()
    tree = ast.parse(text, feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("compress") for name in names)
    assert "pickle" not in names
    assert isinstance(tree.body[0], ast.Expr)
    assert [node.lineno for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"] == [
        tree.body[1].lineno
    ]
    top = {name.partition(".")[0] for name in names} - {"numpy", "transformers"}
    import sys

    assert top <= set(sys.stdlib_module_names)


def test_an_output_that_is_no_number_ends_its_model_and_not_the_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_child, "HERE", tmp_path)
    np.savez(tmp_path / "golden.npz", **{"in/x": np.ones((1, 2)), "out/y": np.ones((1, 2))})
    model = {"inputs": ["x"], "output": "y", "golden": "golden.npz"}
    opened = {"model": model, "arrays": {"fixed/x": np.ones((1, 2))}, "run": lambda feeds: feeds["x"] * np.nan}
    for ask in (run_child.do_golden, run_child.do_predict):
        with pytest.raises(run_child.DeviceError, match="not a number"):
            ask(opened)
    opened["run"] = lambda feeds: feeds["x"]
    assert run_child.do_golden(opened) == {"golden_max_abs": 0.0}
    assert run_child.do_predict(opened) == {"outputs": [[1.0, 1.0]]}


def test_devices_are_told_apart_in_any_script() -> None:
    names = [
        _target_record(Result.model_validate(changed("device", device))).name
        for device in ("树莓派 5", "开发板", "../../etc/passwd", "?")
    ]
    assert names == [
        "树莓派-5/onnxruntime-1t",
        "开发板/onnxruntime-1t",
        "..-..-etc-passwd/onnxruntime-1t",
        "device/onnxruntime-1t",
    ]
