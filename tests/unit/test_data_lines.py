"""Lines of a data file come one at a time, and a file that is no text is refused without being taken in."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from compress.data import lines
from compress.data.formats import read_table
from compress.errors import DataError


@pytest.mark.parametrize(
    "text",
    ["", "a\n", "a", "a\nb\n", "a\r\nb\r\n", "a\rb\rc", "\n\n", "é\u2028x\ny", 'x,"a\rb"\n', "ab\rc", "a\r", "\r\r\n"],
)
def test_lines_are_those_of_python(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(text.encode())
    with path.open(encoding="utf-8", newline="") as file:
        assert list(lines.read_lines(path)) == list(file)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert "".join(lines.read_lines(path)) == text


def test_a_line_without_an_end_is_not_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 100_000)
    path = tmp_path / "file.csv"
    path.write_bytes(b"text,label\n" + b"x" * 20_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="A line of the data file is too long") as caught:
            read_table(path, "train")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.value == "file.csv, line 2: more than 100,000 bytes"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line.csv", "line.jsonl"])
def test_a_line_of_a_gigabyte_takes_little_memory(tmp_path: Path, name: str) -> None:
    """In a process of its own; its rusage begins with the peak of the one that started it, VmHWM does not."""
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"text,label\n" if name.endswith("csv") else b'{"text": "')
        for _ in range(1024):
            file.write(b"x" * (1 << 20))
    code = (
        "import sys; from pathlib import Path; from compress.data.formats import read_table\n"
        "try:\n read_table(Path(sys.argv[1]), 'train')\n"
        "except Exception as error:\n print(type(error).__name__, error.what)\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    said, peak = done.stdout.splitlines()
    assert said == "DataError A line of the data file is too long."
    assert int(peak) * 1024 < 300 * 2**20


def test_a_file_that_is_too_large_is_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    with path.open("wb") as file:
        file.truncate(lines.LARGEST_FILE + 1)
    with pytest.raises(DataError, match="data file is too large"):
        read_table(path, "train")


@pytest.mark.parametrize(
    ("data", "what", "value", "fix"),
    [
        ("text,label\nné,a\n".encode("latin-1"), "not UTF-8", "line 2: byte 0xe9", "iconv -f WINDOWS-1252"),
        ("text,label\n".encode("utf-16"), "not UTF-8", "line 1: it begins as UTF-16 does", "iconv -f UTF-16 "),
        ("text,label\n".encode("utf-16-be"), "not text", "line 1", "iconv -f UTF-16BE"),
        (b"text,label\na,b\nx\0,c\n", "not text", "line 3", "UTF-16"),
    ],
)
def test_encodings_are_named(tmp_path: Path, data: bytes, what: str, value: str, fix: str) -> None:
    (tmp_path / "file.csv").write_bytes(data)
    with pytest.raises(DataError, match=what) as caught:
        read_table(tmp_path / "file.csv", "train")
    assert value in caught.value.value
    assert fix in caught.value.fix


def test_tables_of_arrow_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class without a name, a column that stands twice, more rows than fit."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a"])})
    table = pa.table({"text": ["x"], "label": pa.array([7])}, schema=features.arrow_schema)
    parquet.write_table(table, tmp_path / "classes.parquet")
    with pytest.raises(DataError, match="A column of the table cannot be read"):
        read_table(tmp_path / "classes.parquet", "train")
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice|not a readable Parquet"):
        read_table(tmp_path / "twice.parquet", "train")
    parquet.write_table(pa.table({"text": ["x" * 100] * 50}), tmp_path / "large.parquet")
    monkeypatch.setattr("compress.data.formats.LARGEST_FILE", 40)
    with pytest.raises(DataError, match="Parquet file is too large"):
        read_table(tmp_path / "large.parquet", "train")


def test_notes_of_a_parquet_file_cannot_break_it(tmp_path: Path) -> None:
    """What `datasets` keeps in the schema of a file is from outside as well."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"text": ["x"], "label": ["a"]})
    for note in (b"{", b"[" * 5000, b'{"info": {"features": {"text": {"_type": "Evil"}}}}', b'{"info": 3}'):
        parquet.write_table(table.replace_schema_metadata({b"huggingface": note}), tmp_path / "notes.parquet")
        with suppress(DataError):
            assert read_table(tmp_path / "notes.parquet", "train").rows == [{"text": "x", "label": "a"}]
