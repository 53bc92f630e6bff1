"""Every TensorRT name and signature in the source exists in the real bindings, which need neither libraries nor a GPU.

The names are read from the source: an attribute of a TensorRT module, and one of a variable that is named after its
class (``VARIABLES``). The bindings of TensorRT 11 import beside three empty shared libraries.
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
GUARDED = {("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")}
"""What the source asks for only where an older release has it."""


@dataclass(frozen=True)
class Use:
    """One use of a TensorRT name: where, of which class ("" for the module), and with which arguments."""

    where: str
    owner: str
    member: str
    call: tuple[int, tuple[str, ...]] | None
    """(positional arguments, keywords); None where nothing is called, or the number is open (``*shapes``)."""


def uses_in(source: str, where: str) -> Iterator[Use]:
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    variables = VARIABLES | {
        target.id: node.value.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and is_module(node.value.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = owner_of(node.value, variables)
        if owner is None or node.attr in NOT_OURS.get(last_name(node.value), ()):
            continue
        if owner == "" and node.attr in Trt._fields:
            continue
        yield Use(f"{where}:{node.lineno}", owner, node.attr, arguments(calls.get(id(node))))


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
    place = Path(request.config.cache.mkdir(f"bindings-{sys.version_info.minor}-{BINDINGS.rpartition('=')[2]}"))
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
        elif use.call and members[use.member] and not accepts(members[use.member], method, use.call):
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


@pytest.fixture(scope="module")
def used() -> list[Use]:
    return [use for path in SOURCES for use in uses_in(path.read_text(encoding="utf-8"), path.name)]


def test_every_name_exists_in_tensorrt_11(used: list[Use], bindings_11: dict[str, Any]) -> None:
    assert bindings_11["version"].startswith("11.")
    assert offences(used, bindings_11) == []


def test_every_name_exists_in_tensorrt_rtx(used: list[Use], bindings_rtx: dict[str, Any]) -> None:
    assert offences(used, bindings_rtx) == []


def test_the_source_is_really_read(used: list[Use]) -> None:
    """A change of style that hides names from this test fails here."""
    found = {f"{use.owner}.{use.member}" for use in used}
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
    (*_, last) = offences(uses_in(source.replace(name, wrong), file), bindings_11) or [""]
    assert last.startswith(file)


def test_what_a_method_returns_is_held_under_the_name_of_its_class(bindings_11: dict[str, Any]) -> None:
    """So that nothing that TensorRT returns is used under a name that the tests above do not know."""
    wrong = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
                continue
            function = node.value.func
            owner = owner_of(function.value, VARIABLES) if isinstance(function, ast.Attribute) else None
            text = (bindings_11["classes"].get(owner or "", {})).get(getattr(function, "attr", "")) or ""
            returned = re.search(r"-> tensorrt[\w.]*\.(\w+)", text)
            if returned and returned[1] in VARIABLES.values():
                names = [last_name(target) for target in node.targets]
                wrong += [f"{path.name}:{node.lineno}: {n}" for n in names if VARIABLES.get(n) != returned[1]]
    assert wrong == []
