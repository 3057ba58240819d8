"""Marks: they tell whether a write-ahead log belongs to the database file beside it.

After a kill, the file and its `-wal` are one database: SQLite adds the log's pages to the file at
the next start. If the file was replaced meanwhile, for example by a backup, SQLite does the same,
and destroys both. So this module decides before SQLite opens the file.

The first transaction of each log changes the *mark*, one row in the table `marks`: a random token,
the token before it, and the first bytes of the file at that moment, which contain its size, its
schema version and a change counter. While the log is in use, only its pages are written to the
file. So two things hold:

- the token in the file is a token of the log, or the one before the first of them;
- the file begins with the bytes in a mark of the log, or with those of a first page in the log.

If one of them does not hold, the file is another one. A log without a mark, of an older version or
another program, is accepted.
"""

import os
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Self
from urllib.parse import quote

import apsw

from routecast.errors import BadDatabase

HEADER: Final = 100  # bytes at the beginning of every SQLite file (its file format, 1.3)
# A backup has this in place of the schema version that a file had when it was opened.
COPY: Final = -1
_TOKEN_BYTES: Final = 8
# No text contains these bytes, because they are not UTF-8.
_MARK_MAGIC: Final = b"\xff\xfeRoutecast mark"
_NONE: Final = bytes(_TOKEN_BYTES)
# A write-ahead log (SQLite's file format, 4): its header, and that of each page in it.
_LOG: Final = struct.Struct(">8I")
_FRAME_HEADER: Final = struct.Struct(">6I")
_LOG_MAGIC: Final = (0x377F0682, 0x377F0683)  # with little-endian, and with big-endian checksums
_READ: Final = 1 << 20  # bytes at a time
# The header of a page of a table; its first byte is _LEAF if the page has rows.
_LEAF_OF_ONE: Final = struct.Struct(">BHHH")
_LEAF: Final = 13
# Files that another process is changing may not match for a moment. So a log is checked this number
# of times, with this pause in seconds.
_LOG_TRIES: Final = 3
_PAUSE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Mark:
    """A token, the one before it, and the first bytes of the file when the mark was made."""

    token: bytes = _NONE
    previous: bytes = _NONE
    header: bytes = bytes(HEADER)

    @classmethod
    def after(cls, packed: bytes | None, header: bytes) -> Self:
        """Return a new mark. `packed` is the mark before it, `header` the file's first bytes."""
        before = cls.unpack(packed)
        return cls(secrets.token_bytes(_TOKEN_BYTES), before.token, header)

    def pack(self) -> bytes:
        """Return the mark as it is stored."""
        return _MARK_MAGIC + self.token + self.previous + self.header

    @classmethod
    def unpack(cls, packed: bytes | None) -> Self:
        """Return a stored mark; an empty one if there is none."""
        if packed is None or not packed.startswith(_MARK_MAGIC) or len(packed) < len(cls().pack()):
            return cls()
        rest = packed[len(_MARK_MAGIC) :]
        return cls(
            rest[:_TOKEN_BYTES],
            rest[_TOKEN_BYTES : 2 * _TOKEN_BYTES],
            rest[2 * _TOKEN_BYTES :][:HEADER],
        )


@dataclass(slots=True)
class Log:
    """What a write-ahead log says about its database file."""

    salts: bytes
    first_mark: int = -1  # the number of the frame that has it
    tokens: set[bytes] = field(default_factory=set)
    headers: set[bytes] = field(default_factory=set)
    committed: bool = False


def wal_of(path: Path) -> Path:
    """Return the path of a database's write-ahead log."""
    return path.with_name(path.name + "-wal")


def shm_of(path: Path) -> Path:
    """Return the path of the index of a database's write-ahead log."""
    return path.with_name(path.name + "-shm")


def require_own_log(path: Path) -> None:
    """Raise BadDatabase if the log beside a file belongs to another file.

    Call this before SQLite opens the file. A file that this process has open is not checked:
    closing any descriptor of a file releases all locks of the process, including SQLite's.
    """
    wal = wal_of(path)
    if not holds_pages(wal) or _is_open_here(path):
        return
    if not _size(path):
        raise BadDatabase(
            f"{wal} is there, but its database {path} is {'empty' if path.exists() else 'not'}: "
            f"put {path} back. To begin without the decisions in it, move {wal} away"
        )
    for number in range(_LOG_TRIES):
        if number:
            time.sleep(_PAUSE)
        if not _is_foreign(path, wal):
            return
    shm = shm_of(path)
    raise BadDatabase(
        f"{wal} does not belong to {path}: another database file, or an earlier state of it, was "
        f"there when it was written. If {path} was restored from a backup, move {wal} and {shm} "
        f"away; they hold decisions newer than the backup that cannot be added to it. If not, put "
        f"the right {path} back. `routecast restore` replaces all three files at once"
    )


def _is_foreign(path: Path, wal: Path) -> bool:
    log = read_log(wal)
    if log is None or log.first_mark < 0 or not log.committed:
        return False
    found = _read_file(path)
    if found is None or (found[0] in log.tokens and found[1] in log.headers):
        return False
    # After a power cut the checksums may be wrong; then SQLite ignores the log.
    return _is_whole(wal, log.first_mark) and _salts(wal) == log.salts


def _read_file(path: Path) -> tuple[bytes, bytes] | None:
    """Return the token and the first bytes of a file, without its log; None if unreadable."""
    uri = f"file:{quote(str(path))}?immutable=1"
    try:
        with path.open("rb") as file:
            header = file.read(HEADER)
        db = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        try:
            if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'marks'").fetchone():
                return _NONE, header
            return Mark.unpack(db.execute("SELECT mark FROM marks").get).token, header
        finally:
            db.close()
    except (OSError, apsw.Error):
        return None  # opening it will give the error


def read_log(wal: Path) -> Log | None:
    """Return what the valid frames of a log say; None if the file is not a log."""
    try:
        file = wal.open("rb")
    except OSError:
        return None
    with file:
        head = file.read(_LOG.size)
        if len(head) < _LOG.size:
            return None
        magic, _, size, *_ = _LOG.unpack(head)
        if magic not in _LOG_MAGIC or size not in (1 << n for n in range(9, 17)):
            return None
        log = Log(head[16:24])
        for number, (page, pages, salts, content) in enumerate(_frames(file, size)):
            if salts != log.salts:
                break
            if page == 1:
                log.headers.add(content[:HEADER])
            if mark := _mark_on(content):
                if log.first_mark < 0:
                    log.first_mark = number
                    log.tokens.add(mark.previous)
                log.tokens.add(mark.token)
                log.headers.add(mark.header)
            log.committed |= pages > 0
    return log


def _frames(file: BinaryIO, size: int) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yield each page of a log: number, pages of the file if it ends a commit, salts, content."""
    length = _FRAME_HEADER.size + size
    while block := file.read(max(1, _READ // length) * length):
        for start in range(0, len(block) - length + 1, length):
            page, pages, *_ = _FRAME_HEADER.unpack_from(block, start)
            yield page, pages, block[start + 8 : start + 16], block[start + 24 : start + length]


def _mark_on(page: bytes) -> Mark | None:
    """Return the mark on a page, None if it is not the page of the table `marks`."""
    kind, _, rows, _ = _LEAF_OF_ONE.unpack_from(page)
    if kind != _LEAF or rows != 1:
        return None
    row = int.from_bytes(page[8:10])
    # The mark follows the few bytes of the row's header.
    start = page.find(_MARK_MAGIC, row, row + 16 + len(_MARK_MAGIC))
    return Mark.unpack(page[start : start + len(Mark().pack())]) if start >= 0 else None


def _is_whole(wal: Path, last: int) -> bool:
    """Whether the checksums of a log are right, up to the frame with this number."""
    with wal.open("rb") as file:
        head = file.read(_LOG.size)
        magic, _, size, *_, first, second = _LOG.unpack(head)
        order = "<" if magic == _LOG_MAGIC[0] else ">"
        sums = _checksum(head[:24], order, (0, 0))
        if sums != (first, second):
            return False
        for _ in range(last + 1):
            frame = file.read(_FRAME_HEADER.size + size)
            if len(frame) < _FRAME_HEADER.size + size:
                return False
            sums = _checksum(frame[:8] + frame[24:], order, sums)
            if sums != _FRAME_HEADER.unpack_from(frame)[4:]:
                return False
    return True


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even, odd in zip(words, words, strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _salts(wal: Path) -> bytes:
    with wal.open("rb") as file:
        return file.read(24)[16:]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def holds_pages(wal: Path) -> bool:
    """Whether a write-ahead log exists and has pages."""
    return _size(wal) > _LOG.size


def _is_open_here(path: Path) -> bool:
    try:
        wanted = path.stat()
    except OSError:
        return False
    for number in os.listdir("/dev/fd"):
        with suppress(OSError):
            found = os.fstat(int(number))
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False
