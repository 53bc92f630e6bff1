"""Files and texts from outside, read within bounds: size, depth, encoding, keys that stand twice.

Whoever asks for a file knows what it should be and says so; what is wrong with it is said here, in a few words.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LARGEST_JSON = 64 * 2**20
"""Bytes of a configuration, a manifest or a report: golden images take a few million."""
LARGEST_YAML = 256 * 2**10
"""Bytes of a recipe or a target; the parser takes seconds for so many."""
DEEPEST = 64
"""Levels of nesting. What walks through a value later calls itself once or more per level."""
MOST_NODES = 10_000
"""Values of a YAML text, an alias counted with all that it stands for."""

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_DIGITS = 40
_OPEN = (0, 0)
"""Stands for a node that is being measured."""
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "map", "merge", "null", "seq", "str")}


class Unreadable(ValueError):
    """Why something from outside is refused, without its place."""


def local_path(text: str) -> Path:
    """Return a path with ``~`` filled in, whether or not something lies there.

    Raises:
        Unreadable: no file can have this name, or it may not be looked at.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a home of nobody
        raise Unreadable(_reason(error)) from error
    return path


def read_text(path: Path, largest: int) -> str:
    """Read a UTF-8 file of at most ``largest`` bytes; a byte-order mark is no part of the text.

    Raises:
        Unreadable: nothing is there, or it is no file, too large, not readable or not UTF-8.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise Unreadable("a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    if len(data) > largest:
        raise Unreadable(f"too large, more than {largest:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"not UTF-8 text: byte 0x{data[error.start]:02x} in line {line}") from error


def parse_json(text: str) -> Any:
    """Parse JSON in which no key stands twice.

    Raises:
        Unreadable: it is not JSON, nested too deeply, or holds half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
    except Unreadable:
        raise
    except ValueError as error:  # also of a number with thousands of digits
        raise Unreadable(f"not JSON: {error}") from error
    _check_depth(value)
    if _ESCAPED_SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise Unreadable("a text with half of a surrogate pair") from error
    return value


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """Read a JSON file; see ``read_text`` and ``parse_json``."""
    return parse_json(read_text(path, largest))


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain values: no tag but the core ones, no key twice, no bomb of aliases.

    Raises:
        Unreadable: it is not that; with the line where there is one.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, 1, {})
        return loader.construct_document(node)
    except Unreadable:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(f"line {mark.line + 1 if mark else '?'}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise Unreadable(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # what a tag does not fit
        raise Unreadable(f"a value that cannot be read: {error}") from error


def _measure(node: Any, level: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return (values, levels) of a YAML node, aliases expanded; refuse what would not be plain data."""
    import yaml

    if id(node) not in known:
        if level > DEEPEST:
            raise Unreadable(f"{_line(node)}: nested more than {DEEPEST} levels deep")
        known[id(node)] = _OPEN
        _refuse_value(node)
        inside: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            _refuse_keys(node)
            inside = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        sizes = [_measure(part, level + 1, known) for part in inside]
        known[id(node)] = 1 + sum(values for values, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
    values, levels = known[id(node)]
    if (values, levels) == _OPEN:
        raise Unreadable(f"{_line(node)}: an anchor that holds itself")
    if values > MOST_NODES:
        raise Unreadable(f"{_line(node)}: more than {MOST_NODES:,} values, aliases expanded")
    if level + levels > DEEPEST + 1:
        raise Unreadable(f"{_line(node)}: nested more than {DEEPEST} levels deep")
    return values, levels


def _refuse_value(node: Any) -> None:
    if node.tag not in _PLAIN_TAGS:
        name = node.tag.removeprefix("tag:yaml.org,2002:")
        what = "a date; put it in quotes" if name == "timestamp" else f"the tag {name[:80]!r} is not allowed"
        raise Unreadable(f"{_line(node)}: {what}")
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MOST_DIGITS:
        raise Unreadable(f"{_line(node)}: a number of {len(node.value):,} digits")
    if isinstance(node.value, str) and _SURROGATE.search(node.value):
        raise Unreadable(f"{_line(node)}: a text with half of a surrogate pair")


def _refuse_keys(node: Any) -> None:
    import yaml

    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise Unreadable(f"{_line(key)}: a key that is not a plain value")
        if key.value in seen:
            raise Unreadable(f"{_line(key)}: the key {key.value[:80]!r} stands twice")
        seen.add(key.value)


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise Unreadable(f"the key {next(name for name in names if names.count(name) > 1)[:80]!r} stands twice")
    return found


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return
    raise Unreadable(f"nested more than {DEEPEST} levels deep")


def _parts(value: Any) -> Iterable[Any]:
    """Return the containers inside a container."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in inside if isinstance(part, dict | list)]


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
