"""What comes from outside is read within bounds, and refused in words."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from compress.errors import RecipeError
from compress.reading import DEEPEST, Unreadable, local_path, parse_json, parse_yaml, read_text
from compress.report.visible import visible


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [x, 2.5, true, null]\nc: {d: 'e'}",
        "base: &base {x: 1}\nmore: {<<: *base, y: 2}\nagain: *base",
        "- 1_000\n- 0x1f\n- .inf\n- ~",
        "",
    ],
)
def test_plain_yaml_is_what_pyyaml_makes_of_it(text: str) -> None:
    assert parse_yaml(text) == yaml.safe_load(text)


NESTED = "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)
LAUGHS = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]" for m, n in zip("abcdefgh", "bcdefghi", strict=True)]
)
MERGES = "\n".join(
    ["a: &a {x: 1}"]
    + [f"{n}: &{n} {{<<: [{', '.join([f'*{m}'] * 9)}]}}" for m, n in zip("abcdefgh", "bcdefghi", strict=True)]
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\n!!python/object:os.system {}", "line 2"),
        ("a: !!python/name:os.system", "line 1: the tag 'python/name:os.system' is not allowed"),
        ("a: !mine x", "the tag '!mine' is not allowed"),
        ("a: !!binary eA==", "the tag 'binary' is not allowed"),
        (LAUGHS, "more than 10,000 values, aliases expanded"),
        (MERGES, "more than 10,000 values, aliases expanded"),
        ("a: &a [*a]", "an anchor that holds itself"),
        ("a: &a {b: *a}", "an anchor that holds itself"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
        ("? [1, 2]\n: x", "a key that is not a plain value"),
        (NESTED, "nested more than 64 levels deep"),
        ("[" * 100_000, "nested too deeply"),
        ("when: 2001-12-14", "a date; put it in quotes"),
        ("when: 2001-99-99", "a date; put it in quotes"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 digits"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("a: 0x_", "a value that cannot be read"),
        ("a: !!int x", "a value that cannot be read"),
        ("a: !!bool x", "a value that cannot be read"),
        ("a: \0", "special characters are not allowed"),
        ("a: [", "line 1"),
        ("a: b: c", "line 1: mapping values are not allowed"),
        ("a: *nobody", "found undefined alias"),
        ("--- a\n--- b", "but found another document"),
    ],
)
def test_yaml_that_is_no_plain_data(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(why)):
        parse_yaml(text)


def test_aliases_count_with_all_that_they_stand_for() -> None:
    """100 x 99 values, and an alias of each hundred: 9,900 fit, 10,000 more do not."""
    hundred = "&h [" + ", ".join(["x"] * 99) + "]"
    assert len(parse_yaml(f"[{hundred}, {', '.join(['*h'] * 90)}]")) == 91
    with pytest.raises(Unreadable, match="more than"):
        parse_yaml(f"[{hundred}, {', '.join(['*h'] * 100)}]")


def test_depth_is_that_of_the_expanded_value() -> None:
    half = DEEPEST // 2
    deep = "[" * half + "x" + "]" * half
    with pytest.raises(Unreadable, match="levels deep"):
        parse_yaml(f"a: &a {deep}\nb: {'[' * half}*a{']' * half}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 65 + "]" * 65, "nested more than 64 levels deep"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' stands twice"),
        ("9" * 5000, "not JSON"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("{", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_json_that_is_refused(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(why)):
        parse_json(text)


def test_json_that_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null, "\\ud83d\\ude00"]}') == {"a": [1, 2.5, None, "\N{GRINNING FACE}"]}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("a\nbé".encode("latin-1"))
    (tmp_path / "large").write_bytes(b"x" * 11)
    (tmp_path / "marked").write_text("text", encoding="utf-8-sig")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "marked", 10) == "text"
    for name, why in {
        "latin": "not UTF-8 text: byte 0xe9 in line 2",
        "large": "too large, more than 10 bytes",
        ".": "a folder, not a file",
        "pipe": "not a regular file",
        "absent": "No such file or directory",
        "circle": "levels of symbolic links",
        "large/x": "Not a directory",
    }.items():
        with pytest.raises(Unreadable, match=why):
            read_text(tmp_path / name, 10)
    with pytest.raises(Unreadable, match="not a regular file"):
        read_text(Path("/dev/zero"), 10)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights can be taken on only by root")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    (tmp_path / "file").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(Unreadable, match="Permission denied"):
            read_text(tmp_path / "file", 10)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("text", "why"),
    [("x" * 5000, "name too long"), ("a\0b", "null"), ("~nobody-of-this-name/x", "home directory")],
)
def test_paths_that_no_file_can_have(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        local_path(text)


def test_a_path_where_nothing_lies_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert local_path(str(tmp_path / "absent")) == tmp_path / "absent"
    assert local_path(str(tmp_path / "file" / "x")) == tmp_path / "file" / "x"
    assert local_path("~") == Path.home()


def test_a_value_cannot_look_like_another_part_of_an_error() -> None:
    shown = str(RecipeError("Bad.", value="x\n  fix:   run this\r  fix:   or this", fix="Good."))
    assert [line for line in shown.splitlines() if line.startswith("  fix:")] == ["  fix:   Good."]
    assert len(str(RecipeError("Bad.", value="x" * 10_000, fix="Good."))) < 3000


def test_an_error_on_a_terminal_does_not_drive_it(capsys: pytest.CaptureFixture[str]) -> None:
    from compress.cli.console import print_wrapped, say
    from compress.cli.progress import ProgressPrinter

    say(f"error: {RecipeError('Bad.', value=chr(27) + '[2J' + chr(0x202E), fix='Good.')}")
    ProgressPrinter()(f"[0] model: {chr(27)}[2J")
    print_wrapped(f"reads {chr(0x9B)}2J")
    out, err = capsys.readouterr()
    assert "⟨U+001B⟩[2J⟨U+202E⟩" in err
    assert "model: ⟨U+001B⟩[2J" in err
    assert "⟨U+009B⟩2J" in out
    assert out + err == visible(out + err)
