"""The rules that the source itself must keep: where imports point, how errors are raised, how long a module is.

Each test lists every offence, as ``module:line: what to do instead``.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import compress
from compress import errors

ROOT = Path(compress.__file__).parent
LONGEST = 400

LAYERS = (
    {"errors", "progress", "children", "reading", "trust", "verifying"},
    {"resources", "disk"},
    {"artifact", "store", "registry"},
    {"data"},
    {"tasks"},
    {"models"},
    {"runtimes"},
    {"bench"},
    {"distillation", "pruning", "quantization", "export"},
    {"checks"},
    {"search"},
    {"passes"},
    {"recipe"},
    {"report"},
    {"pipeline", "predictor"},
    {"kit", "shipping"},
    {"api"},
    {"cli"},
    {"__main__"},
)
"""docs/decisions/0001, bottom first: imports point down, or stay within one part of the package."""
ALL_THAT_MAY_BE_KNOWN = {
    "report": {"errors", "disk", "reading"},
    "bench": {"errors", "children", "artifact", "data", "runtimes", "tasks", "trust"},
}
"""Parts that know no domain: a report is rendered from its record, a measurement needs an artifact and arrays."""
BARE = {"Exception", "KeyError", "OSError", "RuntimeError", "TypeError", "ValueError"}
IMPORTERS = {"importlib.abc", "importlib.machinery", "runpy", "transformers.dynamic_module_utils"}
"""What makes modules out of files; ``importlib.import_module`` finds only what is installed."""
PICKLING = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TEXTS = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}
ERRORS = {name for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.CompressError)}


def part(module: str) -> str:
    """Return the part of the package that a module belongs to; the package's own file is the empty string."""
    return [*module.split("."), ""][1]


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "compress":
            yield from ((node.lineno, f"compress.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {part(name) for name in TEXTS} - {""} == set().union(*LAYERS)


def test_imports_point_down() -> None:
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    offences = []
    for module, tree in TREES.items():
        here = part(module)
        for line, name in imports(tree):
            there = part(name)
            if name.startswith("."):
                offences.append(f"{module}:{line}: write the full name of the module, not {name}")
            elif not here or name.split(".")[0] != "compress" or there in {here, "__version__"}:
                continue
            elif there not in height:
                offences.append(f"{module}:{line}: import {there} from the module that defines it")
            elif height[there] >= height[here]:
                offences.append(f"{module}:{line}: {name} stands above {here}, or beside it")
            elif there not in ALL_THAT_MAY_BE_KNOWN.get(here, {there}):
                offences.append(f"{module}:{line}: {here} must not know {name}")
    assert offences == []


def test_modules_are_short_and_say_what_they_are() -> None:
    offences = []
    for module, text in TEXTS.items():
        if len(text.splitlines()) > LONGEST:
            offences.append(f"{module}: {len(text.splitlines())} lines; split it by what it is about")
        if module.rpartition(".")[2] in {"utils", "helpers", "misc", "common"}:
            offences.append(f"{module}: name it after what it holds")
        if text.strip() and not ast.get_docstring(TREES[module]):
            offences.append(f"{module}: begin it with a docstring")
    assert offences == []


def test_input_is_not_checked_by_assert_or_bare_exceptions() -> None:
    offences = []
    for module, tree in TREES.items():
        validators = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and is_validator(node)]
        allowed = {id(node) for validator in validators for node in ast.walk(validator)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                offences.append(f"{module}:{node.lineno}: raise a CompressError instead of assert")
            elif isinstance(node, ast.Raise) and node.exc is not None and id(node) not in allowed:
                name = ast.unparse(node.exc).partition("(")[0]
                if name in BARE:
                    offences.append(f"{module}:{node.lineno}: raise a CompressError instead of {name}")
    assert offences == []


def is_validator(node: ast.FunctionDef) -> bool:
    """Say whether pydantic calls the function: there a ValueError is how a complaint is made."""
    return any("_validator" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_every_error_says_what_to_do() -> None:
    offences = []
    for module, tree in TREES.items():
        for name, call in calls(tree):
            if name.rpartition(".")[2] in ERRORS and ("fix" not in keywords(call) or len(call.args) != 1):
                offences.append(f"{module}:{call.lineno}: {name}(what, value=..., fix=...)")
    assert offences == []


def test_nothing_is_pickled_and_no_text_is_run() -> None:
    offences = []
    for module, tree in TREES.items():
        for line, name in imports(tree):
            if name.split(".")[0] in PICKLING:
                offences.append(f"{module}:{line}: {name} runs what it reads")
        for name, call in calls(tree):
            if name in {"torch.load", "torch.save"}:
                offences.append(f"{module}:{call.lineno}: weights are kept as safetensors, not by {name}")
            if name in {"np.load", "np.save"} and keywords(call).get("allow_pickle") != "False":
                offences.append(f"{module}:{call.lineno}: {name}(..., allow_pickle=False)")
            if name in {"eval", "exec", "os.system"} or "shell" in keywords(call):
                offences.append(f"{module}:{call.lineno}: {name} runs text")
            if keywords(call).get("trust_remote_code", "False") != "False":
                offences.append(f"{module}:{call.lineno}: trust_remote_code runs code of the model's author")
    assert offences == []


def test_code_of_a_models_author_has_one_way_in() -> None:
    """One module imports files that are not installed; trust is given where a user named the model, and passed on."""
    makers = {module for module, tree in TREES.items() for _, name in imports(tree) if name in IMPORTERS}
    makers |= {
        module
        for module, tree in TREES.items()
        for name, _ in calls(tree)
        if name.rpartition(".")[2] in {"exec_module", "spec_from_file_location", "get_class_from_dynamic_module"}
    }
    givers = {module for module, tree in TREES.items() for name, _ in calls(tree) if name == "trusting"}
    assert makers == {"compress.models.remote_code"}
    assert givers == {"compress.predictor", "compress.pipeline.source", "compress.bench.commands"}
