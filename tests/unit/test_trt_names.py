"""Every TensorRT name and signature in the source exists in the real bindings, which need neither libraries nor a GPU.

The names are read from the source: attributes of a TensorRT module, of what its methods return, and of variables that
are named after their class (``VARIABLES``). The bindings of TensorRT 11 import beside three empty shared libraries.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.export.trt_api import Trt

ROOT = Path(compress.__file__).parent
SOURCES = (
    *sorted(ROOT.glob("export/trt_*.py")),
    *sorted(ROOT.glob("runtimes/trt_*.py")),
    ROOT / "runtimes" / "tensorrt.py",
    ROOT / "kit" / "run_child.py",
)
BINDINGS = "tensorrt-cu13-bindings==11.4.0.106"
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
SYMBOLS = (
    *(f"create{name}_INTERNAL" for name in ("InferBuilder", "InferRefitter", "InferRuntime")),
    *(f"createNvOnnxParser{name}_INTERNAL" for name in ("", "Refitter")),
    *("getBuilderPluginRegistry", "getPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins"),
)
MODULES = {"trt", "trt.module", "self.trt"}
VARIABLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "refitter": "Refitter",
    "parser_refitter": "OnnxParserRefitter",
    "timing_cache": "ITimingCache",
    "others": "ITimingCache",
    "plan": "IHostMemory",
    "profiler": "IProfiler",
}
"""Name of a variable or attribute, without leading underscores -> the class of what it holds."""
NOT_OURS = {"profile": {"items"}, "engine": {"name", "with_name"}, "config": {"update"}}
"""Attributes of other objects under such a name: a mapping of shapes or options, a path."""
GUARDED = {
    ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),  # before TensorRT 10
    ("", "CudaGraphStrategy"),  # TensorRT-RTX alone
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
}
"""What the source uses only where it has found it, in another release or library."""


@dataclass(frozen=True)
class Use:
    """One use of a TensorRT name: where, of which class ("" for the module), and with which arguments."""

    where: str
    owner: str
    member: str
    call: tuple[int, tuple[str, ...]] | None
    """(positional arguments, keywords); None where nothing is called, or the number is open (``*shapes``)."""


def uses_in(source: str, where: str, bindings: dict[str, Any]) -> Iterator[Use]:
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    variables = VARIABLES | dict(assigned(tree, bindings))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = owner_of(node.value, variables)
        if owner is None or node.attr in NOT_OURS.get(last_name(node.value), ()):
            continue
        if owner == "" and node.attr in Trt._fields:
            continue
        yield Use(f"{where}:{node.lineno}", owner, node.attr, arguments(calls.get(id(node))))


def assigned(tree: ast.AST, bindings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield variables that hold a class of TensorRT, or what one of its methods returns, by its signature."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        value, held = node.value, None
        if isinstance(value, ast.Attribute) and is_module(value.value):
            held = value.attr
        elif isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            owner = owner_of(value.func.value, VARIABLES) or ""
            text = bindings["classes"].get(owner, {}).get(value.func.attr) or ""
            returned = re.search(r"-> tensorrt[\w.]*\.(\w+)", text)
            held = returned and returned[1]
        for target in node.targets if held in bindings["classes"] else ():
            yield last_name(target), str(held)


def is_module(node: ast.expr) -> bool:
    return ast.unparse(node) in MODULES


def owner_of(node: ast.expr, variables: Mapping[str, str]) -> str | None:
    """Return the class that an expression holds: "" for a module of TensorRT, None for anything else."""
    if is_module(node):
        return ""
    if isinstance(node, ast.Attribute) and is_module(node.value):
        return node.attr  # trt.BuilderFlag
    return variables.get(last_name(node))


def last_name(node: ast.expr) -> str:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_")


def arguments(call: ast.Call | None) -> tuple[int, tuple[str, ...]] | None:
    if call is None or any(isinstance(it, ast.Starred) for it in call.args):
        return None
    return len(call.args), tuple(word.arg or "**" for word in call.keywords)


DUMP = """
import importlib, inspect, json, sys
trt = importlib.import_module(sys.argv[1])
known, functions = {}, {}
for name, value in vars(trt).items():
    if inspect.isclass(value):
        members = {}
        for owner in reversed(value.__mro__[:-1]):
            for key, member in vars(owner).items():
                members[key] = (getattr(member, "__doc__", "") or "") if callable(member) else None
        known[name] = members
    elif callable(value):
        functions[name] = None
print(json.dumps({"version": trt.__version__, "functions": functions, "classes": known}))
"""


@pytest.fixture(scope="session")
def bindings_11(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the classes of TensorRT 11's bindings; they are fetched once and kept in pytest's cache."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to make the empty libraries with")
    name, cache = (
        f"bindings-{sys.version_info.minor}-{BINDINGS.rpartition('=')[2]}",
        getattr(request.config, "cache", None),
    )
    place = tmp_path_factory.mktemp(name) if cache is None else Path(cache.mkdir(name))
    if not (place / "tensorrt_bindings").is_dir():
        fetched = tmp_path_factory.mktemp("bindings")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        limits = ["--retries", "1", "--timeout", "20", "--disable-pip-version-check", "--target", str(fetched)]
        done = subprocess.run([*pip, *limits, BINDINGS], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{BINDINGS} cannot be fetched: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
        shutil.copytree(fetched, place, dirs_exist_ok=True)
    source = tmp_path_factory.mktemp("empty") / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS), encoding="utf-8")
    for library in LIBRARIES:
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", source.parent / library, source]
        subprocess.run(command, check=True)
    return dump("tensorrt_bindings", {"PYTHONPATH": str(place), "LD_LIBRARY_PATH": str(source.parent)})


@pytest.fixture(scope="session")
def bindings_rtx() -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx_bindings")
    return dump("tensorrt_rtx_bindings", {})


def dump(module: str, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", DUMP, module], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def offences(uses: Iterable[Use], bindings: dict[str, Any]) -> list[str]:
    """Return every use of a name that the bindings do not have, or of a method with other arguments."""
    classes, found = bindings["classes"], []
    for use in uses:
        if (use.owner, use.member) in GUARDED or "__version__" in (use.owner, use.member):
            continue
        if use.owner == "":
            members = bindings["functions"] | {name: known["__init__"] for name, known in classes.items()}
            method = "__init__"
        else:
            members, method = classes.get(use.owner, {}), use.member
        what = f"{use.where}: {use.owner or 'the module'}"
        if use.member not in members:
            found.append(f"{what} has no {use.member}")
        elif (
            use.call
            and use.member != "__init__"
            and members[use.member]
            and not accepts(members[use.member], method, use.call)
        ):
            found.append(f"{what}: {use.member}{use.call} is not {members[use.member].splitlines()[0]}")
    return found


def accepts(text: str, name: str, call: tuple[int, tuple[str, ...]]) -> bool:
    """Say whether one of the signatures that pybind writes into a docstring takes the arguments of a call."""
    signatures = re.findall(rf"(?:^|\d+\. ){name}\((.*)\)(?: ->|$)", text, re.MULTILINE)
    return not signatures or any(_fits(_parameters(signature), *call) for signature in signatures)


def _parameters(signature: str) -> list[tuple[str, bool]]:
    """Return (name, whether it may be left out) of each parameter but ``self``."""
    depth, parts, part = 0, [], ""
    for letter in signature + ",":
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    named = [part for part in parts if part and part not in ("/", "*")]
    found = [(part.partition(":")[0].strip(), "=" in part) for part in named]
    return found[1:] if found and found[0][0] in ("self", "arg0") else found


def _fits(parameters: list[tuple[str, bool]], positional: int, keywords: tuple[str, ...]) -> bool:
    names = [name for name, _ in parameters]
    if any(name.startswith("*") for name in names):
        return True
    needed = [name for name, optional in parameters[positional:] if not optional]
    return positional <= len(parameters) and set(keywords) <= set(names) and set(needed) <= set(keywords)


def used(bindings: dict[str, Any]) -> list[Use]:
    return [use for path in SOURCES for use in uses_in(path.read_text(encoding="utf-8"), path.name, bindings)]


def test_every_name_exists_in_tensorrt_11(bindings_11: dict[str, Any]) -> None:
    assert bindings_11["version"].startswith("11.")
    assert offences(used(bindings_11), bindings_11) == []


def test_every_name_exists_in_tensorrt_rtx(bindings_rtx: dict[str, Any]) -> None:
    assert offences(used(bindings_rtx), bindings_rtx) == []


def test_the_source_is_really_read(bindings_rtx: dict[str, Any]) -> None:
    """A change of style that hides names from these tests fails here."""
    found = {f"{use.owner}.{use.member}" for use in used(bindings_rtx)}
    assert {
        "BuilderFlag.STRIP_PLAN",
        "Builder.build_serialized_network",
        "EngineInspector.get_engine_information",
        "EngineStat.TOTAL_WEIGHTS_SIZE",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
        "IBuilderConfig.create_timing_cache",
        "ICudaEngine.device_memory_size_v2",
        "ICudaEngine.get_device_memory_size_for_profile_v2",
        "IExecutionContext.execute_async_v3",
        "IOptimizationProfile.set_shape",
        "ITimingCache.combine",
        "OnnxParserRefitter.refit_from_file",
        "ParserError.node_name",
        "Refitter.refit_cuda_engine",
        "Runtime.engine_host_code_allowed",
        "Runtime.deserialize_cuda_engine",
        "TensorIOMode.INPUT",
    } <= found
    assert len(found) > 50


@pytest.mark.parametrize(
    ("file", "name", "wrong"),
    [
        ("trt_session.py", "set_tensor_address", "set_tensor_adress"),
        ("run_child.py", "execute_async_v3", "execute_async_v2"),
        ("trt_options.py", "BuilderFlag", "BuilderFlags"),
        ("trt_options.py", "flags.STRIP_PLAN", "flags.FP16"),
        ("trt_inspect.py", "device_memory_size_v2", "device_memory_size"),
        ("trt_timing.py", "combine(others, False)", "combine(others)"),
        ("trt_build.py", "create_network(flag)", "create_network(1, flag)"),
        ("trt_inspect.py", "Runtime(logger)", "Runtime()"),
    ],
)
def test_a_renamed_member_or_another_argument_is_found(
    file: str, name: str, wrong: str, bindings_11: dict[str, Any]
) -> None:
    source = next(path for path in SOURCES if path.name == file).read_text(encoding="utf-8")
    assert name in source
    found = offences(uses_in(source.replace(name, wrong), file, bindings_11), bindings_11)
    assert any(offence.startswith(file) for offence in found)


def test_what_a_method_returns_is_followed_into_its_variable(bindings_11: dict[str, Any]) -> None:
    source = "def run(engine):\n    found = engine.create_execution_context()\n    found.execute_async_v4(0)\n"
    assert offences(uses_in(source, "x.py", bindings_11), bindings_11) == [
        "x.py:3: IExecutionContext has no execute_async_v4"
    ]
