"""Reading rows of files: formats are recognised by content, and bad rows named by their line."""

import gzip
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from routecast.cli.replay.row_reader import BrokenRow, Record, RowFile, Unreadable


def read(path: Path, content: bytes) -> list[Record | BrokenRow]:
    """Read all rows of a content."""
    path.write_bytes(content)
    rows = RowFile(str(path))
    try:
        return list(rows)
    finally:
        rows.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path whose name says nothing about the format."""
    return tmp_path / "file"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_csv_of_every_dialect_is_read(path: Path, delimiter: str, ending: str) -> None:
    """Delimiters, line endings, byte order marks, blank lines and quotes may differ."""
    lines = (
        "",
        delimiter.join(['"a, b"', " c "]),
        "",
        delimiter.join(['"1""\n2"', "3"]),
        delimiter.join("45"),
    )
    content = ending.join(lines).encode("utf-8-sig")
    assert read(path, content) == [
        Record(4, {"a, b": '1"\n2', "c": "3"}),
        Record(6, {"a, b": "4", "c": "5"}),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"sep=;\na;b\n1,5;x\n",
        b'"sep=;"\r\na;b\r\n1,5;x\r\n',
        b'"a", "b"\n"1,5", "x"\n',
        b"a;b;\n1,5;x;\n",
        b"a;b\n1,5;x;\n",
        b"a;b;;\n1,5;x\n",
        b"a;b\r1,5;x\r",
        "a\tb\n1,5\tx\n".encode("utf-16"),
        "a;b\n1,5;x\n".encode("utf-8-sig"),
    ],
    ids=["sep", "quoted-sep", "spaces", "ends", "row-ends", "head-ends", "mac", "utf-16", "bom"],
)
def test_files_of_common_programs_are_read(path: Path, content: bytes) -> None:
    """Excel writes a `sep` line; others write spaces or extra delimiters."""
    (row,) = read(path, content)
    assert isinstance(row, Record)
    assert row.cells == {"a": "1,5", "b": "x"}


def test_values_of_mongodb_are_unwrapped(path: Path) -> None:
    """A wrapper of extended JSON is replaced by its value; other objects stay objects."""
    (row,) = read(
        path,
        b'{"_id":{"$oid":"6"},"at":{"$date":{"$numberLong":"1769862890789"}},'
        b'"on":{"$date":"2026-01-31T00:00:00Z"},"usage":{"cost":{"$numberDecimal":"0.1"}}}\n',
    )
    assert isinstance(row, Record)
    assert row.cells == {
        "_id": "6",
        "at": "1769862890789",
        "on": "2026-01-31T00:00:00Z",
        "usage": {"cost": "0.1"},
    }


def test_columns_without_a_name_or_with_equal_names(path: Path) -> None:
    """Each column gets a name of its own."""
    (row,) = read(path, b"a,,a\n1,2,3")
    assert row == Record(2, {"a": "1", "column 2": "2", "a (3)": "3"})


def test_numbers_of_json_are_exact(path: Path) -> None:
    """A number has all digits that were written; whole ones are int."""
    (row,) = read(path, b'{"a":0.1234567890123456789,"b":9.6e-05,"c":7,"d":{"e":null}}\n')
    assert isinstance(row, Record)
    assert dict(row.cells) == {
        "a": Decimal("0.1234567890123456789"),
        "b": Decimal("0.000096"),
        "c": 7,
        "d": {"e": None},
    }


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"a,b\n1,2\n3\n", 3, "1 cells under a header of 2"),
        (b"a,b\n1,2\n3,4,5\n", 3, "3 cells under a header of 2"),
        (b"a,b\n1,2\n3,\xff\n", 3, "not UTF-8"),
        (b'a,b\n1,2\n"3,4\n5,6\n', 3, "never closed"),
        (b'{"a":1}\n{"a":2\n', 2, "not JSON"),
        (b'{"a":1}\n[1]\n', 2, "not a JSON object"),
        (b'{"a":1}\n' + b"[" * 100_000, 2, "not JSON"),
        (b'{"a":1}\n{"a":"\xff"}\n', 2, "not JSON"),
    ],
)
def test_broken_lines_do_not_stop_the_others(
    path: Path, content: bytes, line: int, words: str
) -> None:
    """The error has the number of the line, and the other lines are read."""
    good, broken = read(path, content)
    assert isinstance(good, Record)
    assert isinstance(broken, BrokenRow)
    assert broken.line == line
    assert words in broken.error


def test_the_line_after_a_broken_one_is_read(path: Path) -> None:
    """This holds also if the quotes are broken."""
    rows = read(path, b'a,b\n"x"y,1\n2,3\n')
    assert [type(row) for row in rows] == [BrokenRow, Record]


def test_a_file_without_rows_is_refused_when_it_is_opened(path: Path) -> None:
    """Nothing else is done with it before."""
    path.write_bytes(b"\x00\x01")
    with pytest.raises(Unreadable, match="neither CSV nor JSON lines"):
        RowFile(str(path))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_large_file_is_never_in_memory(path: Path, pack: Any) -> None:
    """3 MB of rows take a small part of that memory."""
    content = b"a,b\n" + (b"0123456789" * 10 + b"," + b"0123456789" * 10 + b"\n") * 15_000
    path.write_bytes(pack(content))
    rows = RowFile(str(path))
    tracemalloc.start()
    try:
        count = sum(isinstance(row, Record) for row in rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 15_000
    assert peak < len(content) / 5
    assert rows.read == rows.size
    rows.close()
