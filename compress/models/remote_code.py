"""Models whose classes lie in Python files of their author: which files those are, and how their classes are loaded.

``auto_map`` of config.json names the classes. Transformers would copy the files into a cache of the user's and import
what lies there, a file that two classes need once for each of them. Here they are imported from the very bytes that
were hashed, as one package named by their digest, and nothing is written.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from compress.artifact import hash_json
from compress.errors import MissingCapabilityError, ModelError
from compress.models.files import refuse_way_out
from compress.trust import trusted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO_MAP = "auto_map"
"""Key of config.json: auto class -> ``module.Class`` in a file beside it."""
CUSTOM_CODE = "custom-code"
"""Trait of a torch model that needs its author's files to be opened."""
RISK = "It runs with your rights, in no sandbox: whatever you can read, change and send, it can."
LARGEST_FILE = 2**20
MOST_FILES = 64
_CONFIG, _MODEL = "AutoConfig", "AutoModelForSequenceClassification"
_PACKAGE = "_mcompress_code_"
_ENTRY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class Code:
    """The Python files of one model.

    Attributes:
        classes: auto class -> ``module.Class``: of the model, and of its config unless Transformers has it.
        sources: name of a file -> its bytes; every file that the classes need, and no other.
    """

    classes: Mapping[str, str]
    sources: Mapping[str, bytes]

    @property
    def hashes(self) -> dict[str, str]:
        """Name of a file -> sha256."""
        return {name: sha256(source).hexdigest() for name, source in sorted(self.sources.items())}

    @cached_property
    def digest(self) -> str:
        """What is trusted: the sha256 over the classes and the files."""
        return hash_json({"classes": dict(self.classes), "files": self.hashes})


def read_code(folder: Path, config: Mapping[str, Any]) -> Code | None:
    """Read the code of a model folder without running it; None if the model needs none.

    Args:
        folder: of the model.
        config: its config.json.

    Raises:
        ModelError: ``auto_map`` names what lies in another repository or outside the folder, what is not there, or
            no class for texts; a file is no Python, is too large, or imports from outside the folder.
    """
    if AUTO_MAP not in config:
        return None
    named = _entries(folder, config[AUTO_MAP])
    if _MODEL not in named:
        raise ModelError(
            "auto_map names no class that classifies texts.",
            value=f"{folder.name}: {', '.join(named) or 'nothing'}",
            fix=f"Only a model with a class for {_MODEL} can be taken in together with its code.",
        )
    classes = {auto: named[auto] for auto in (_CONFIG, _MODEL) if auto in named}
    sources: dict[str, bytes] = {}
    wanted = [entry.partition(".")[0] for entry in classes.values()]
    while wanted:
        name = f"{wanted.pop()}.py"
        if name not in sources:
            sources[name] = _read_source(folder, name)
            wanted += _siblings(folder, name, sources[name])
        if len(sources) > MOST_FILES:
            raise ModelError(
                "The model's own code is spread over too many files.",
                value=f"{folder.name}: more than {MOST_FILES}",
                fix="Export the model to ONNX where it comes from, and give the .onnx file.",
            )
    return Code(classes, dict(sorted(sources.items())))


def refuse_code(folder: Path) -> ModelError:
    """Return the error for a model whose code nobody has asked for."""
    return ModelError(
        "The model needs remote code, Python files of its author, which run only where the model is named.",
        value=f"{AUTO_MAP} in {folder.name}/config.json",
        fix="If you trust the author, name the model: `trust_remote_code: MODEL` in the recipe, `--trust-remote-code "
        f"MODEL`, or `compress.load(folder, trust_remote_code=True)`. {RISK} Otherwise use a model whose class ships "
        "with Transformers, or an ONNX file of it.",
    )


def open_custom(folder: Path, config: Mapping[str, Any], **options: Any) -> Any:
    """Open a model with its author's classes, as ``from_pretrained`` does; its code must be trusted by now.

    Args:
        folder: config.json, model.safetensors and the Python files.
        config: the folder's config.json.
        **options: for ``from_pretrained``.

    Raises:
        ModelError: nobody has named this very code, it fails when it is imported, or it lacks the classes.
        MissingCapabilityError: it needs a package that is not installed.
    """
    from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

    code = read_code(folder, config) if trusted() else None
    if code is None or code.digest not in trusted():
        raise refuse_code(folder)
    local: dict[str, Any] = {"local_files_only": True}
    class_ = _import(code, code.classes[_MODEL], PreTrainedModel, folder)
    if _CONFIG in code.classes:
        settings = _import(code, code.classes[_CONFIG], PreTrainedConfig, folder).from_pretrained(folder, **local)
    else:
        settings = AutoConfig.from_pretrained(folder, **local, trust_remote_code=False)
    return class_.from_pretrained(folder, config=settings, **local, **options)


def code_of(model: PreTrainedModel) -> Code | None:
    """Return the code that a model in memory was opened with; None if its class ships with Transformers."""
    return _FINDER.known.get(type(model).__module__.partition(".")[0])


def write_code(code: Code, folder: Path) -> None:
    """Write the files beside a model; config.json has to name ``code.classes`` as its ``auto_map``."""
    for name, source in code.sources.items():
        (folder / name).write_bytes(source)


def _entries(folder: Path, mapping: Any) -> dict[str, str]:
    """Return auto class -> ``module.Class``, after a look at every entry."""
    found: dict[str, str] = {}
    for auto, value in (mapping if isinstance(mapping, dict) else {"": mapping}).items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, str) and "--" in entry:
                raise ModelError(
                    "auto_map names code of another repository.",
                    value=f"{folder.name}: {auto}: {entry[:200]}",
                    fix="Put that code's files beside this model, look through them, and name them without the `--`.",
                )
            if entry is not None and not (isinstance(entry, str) and _ENTRY.fullmatch(entry)):
                raise ModelError(
                    "auto_map names something other than a class of a Python file in the model's folder.",
                    value=f"{folder.name}: {auto}: {str(entry)[:200]}",
                    fix="Each entry is `file.Class`, for a file that lies beside config.json.",
                )
            if isinstance(value, str):
                found[str(auto)] = value
    return found


def _read_source(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        refuse_way_out(path, folder)
        if not path.is_file():
            raise ModelError(
                "A file of the model's own code is not there.",
                value=f"{folder.name}/{name}",
                fix="Put it beside config.json; only files in the model's folder itself are taken in.",
            )
        with path.open("rb") as file:
            source = file.read(LARGEST_FILE + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ModelError(
            "A file of the model's own code cannot be read.",
            value=f"{folder.name}/{name}: {getattr(error, 'strerror', None) or error}",
            fix="Make the folder and its files readable.",
        ) from error
    if len(source) > LARGEST_FILE:
        raise ModelError(
            "A file of the model's own code is too large.",
            value=f"{folder.name}/{name}: more than {LARGEST_FILE:,} bytes",
            fix="Code belongs into Python files and data into the weights.",
        )
    return source


def _siblings(folder: Path, name: str, source: bytes) -> Iterator[str]:
    """Yield the modules of the same folder that a file imports, anywhere in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(
            "A file of the model's own code is no Python.",
            value=f"{folder.name}/{name}: {str(error)[:200]}",
            fix="Put the author's own file in its place.",
        ) from error
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [node.module] if node.module else [alias.name for alias in node.names]
            if node.level > 1 or any("." in part for part in parts):
                raise ModelError(
                    "The model's own code imports from outside its folder, or from a folder below it.",
                    value=f"{folder.name}/{name}: line {node.lineno}",
                    fix="Only files that lie beside config.json are taken in.",
                )
            yield from parts


class _Files(MetaPathFinder, SourceLoader):  # type: ignore[misc]
    """Imports modules of packages named by a digest from the bytes that were hashed; keeps no bytecode."""

    def __init__(self) -> None:
        self.known: dict[str, Code] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        package, _, module = fullname.partition(".")
        code = self.known.get(package)
        if code is None or (module and f"{module}.py" not in code.sources):
            return None
        return spec_from_loader(fullname, self, is_package=not module)

    def get_filename(self, fullname: str) -> str:
        package, _, module = fullname.partition(".")
        return f"{package}/{module or '__init__'}.py"

    def get_data(self, path: str) -> bytes:
        package, _, name = str(path).partition("/")
        return self.known[package].sources.get(name, b"")


_FINDER = _Files()


def _import(code: Code, entry: str, base: type, folder: Path) -> Any:
    """Run the file that holds a class, and return the class."""
    module_name, _, class_name = entry.partition(".")
    package = f"{_PACKAGE}{code.digest}"
    _FINDER.known.setdefault(package, code)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    try:
        module = importlib.import_module(f"{package}.{module_name}")
    except MemoryError:
        raise
    except ModuleNotFoundError as error:
        raise MissingCapabilityError(
            "The model's own code needs a package that is not installed.",
            value=f"{folder.name}/{module_name}.py: {error.name}",
            fix="Install what the model's page names, from a source that you trust.",
        ) from error
    except (Exception, SystemExit) as error:  # whatever the author's code does
        lines = str(error).strip().splitlines()
        raise ModelError(
            "The model's own code fails when it is imported.",
            value=": ".join([f"{folder.name}/{module_name}.py: {type(error).__name__}", *lines[:1]])[:500],
            fix="Use the version of Transformers that the model's page names, or ask its author.",
        ) from error
    class_: Any = getattr(module, class_name, None)
    known = isinstance(class_, type) and issubclass(class_, base)
    if not known or class_.__module__.partition(".")[0] != package:
        raise ModelError(
            f"The model's own code does not define the class that {AUTO_MAP} names.",
            value=f"{folder.name}/{module_name}.py: {class_name}",
            fix=f"It must be a subclass of {base.__name__} that one of the model's files defines.",
        )
    class_._auto_class = None  # else Transformers copies files of the module's name when the model is saved
    return class_
