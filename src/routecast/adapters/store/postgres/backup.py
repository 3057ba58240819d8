"""Backups of a PostgreSQL database: made while nodes use it, restored while none does.

A backup is a zip archive. It has each table in the text format of `COPY`, which any version of the
server can read, and at its end a manifest with the columns, rows and hash of each table.
"""

import asyncio
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    query,
    transaction,
    value,
)
from routecast.adapters.store.postgres.connector import Connector
from routecast.adapters.store.postgres.failures import refusing, unavailable
from routecast.adapters.store.postgres.schema import (
    FIRST_POSTGRES_WITH_KEYS,
    KNOWN,
    check_server,
    run_migrations,
    schema_version,
)
from routecast.errors import BadDatabase, Damaged, InUse, Unavailable
from routecast.ports import BackedUp, Checked, OnProgress, Restored
from routecast.protocol import Position

BACKUP_FORMAT: Final = "routecast-postgresql"
BACKUP_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
BLOCK: Final = 1 << 20
# Progress is reported each time that this number of bytes is done.
_STEP: Final = 8 << 20
_CLOSE_SECONDS: Final = 3.0
# The backup does not have this table: migrations write it, and the manifest has the version.
_VERSION_TABLE: Final = "schema_version"
# Triggers on these tables write to other tables, so these are restored first.
_RESTORED_FIRST: Final = ("rollups",)


@dataclass(frozen=True, slots=True)
class _Table:
    """A table in a backup."""

    columns: list[str]
    rows: int
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class _Manifest:
    """The content of a backup."""

    schema: int
    position: Position
    decisions: int
    generations: tuple[int, int]  # the oldest, and the current one
    tables: Mapping[str, _Table]
    sequences: Mapping[str, int]

    def encode(self) -> bytes:
        fields = {
            "format": BACKUP_FORMAT,
            "version": BACKUP_VERSION,
            "schema": self.schema,
            "position": {"epoch": self.position.epoch, "seq": self.position.seq},
            "decisions": self.decisions,
            "generations": list(self.generations),
            "tables": {name: asdict(table) for name, table in self.tables.items()},
            "sequences": dict(self.sequences),
        }
        return json.dumps(fields, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> "_Manifest":
        fields: Any = json.loads(data)
        if fields["format"] != BACKUP_FORMAT or fields["version"] != BACKUP_VERSION:
            raise BadDatabase("it was made by a newer Routecast: upgrade this program")
        oldest, newest = fields["generations"]
        return cls(
            schema=fields["schema"],
            position=Position(**fields["position"]),
            decisions=fields["decisions"],
            generations=(oldest, newest),
            tables={name: _Table(**table) for name, table in fields["tables"].items()},
            sequences=fields["sequences"],
        )


class PostgresBackups:
    """Backups of one PostgreSQL database (`ports.Backups`)."""

    def __init__(self, url: str) -> None:
        self._connector = Connector(url)

    def holds(self, path: Path) -> bool:  # the files of the database belong to the server
        return False

    async def backup(self, target: Path, on_progress: OnProgress) -> BackedUp:
        with unavailable(), refusing():
            session = await self._connector.connect(patient=True)
            try:
                await check_server(session)
                if not await schema_version(session):
                    raise BadDatabase("there are no decisions in this database")
                async with transaction(session, isolation="repeatable_read", readonly=True):
                    manifest = await _write(session, target, on_progress)
            finally:
                await session.close(timeout=_CLOSE_SECONDS)
        await asyncio.to_thread(_read, target, on_progress)
        return BackedUp(
            manifest.position, manifest.decisions, await asyncio.to_thread(_size, target)
        )

    async def restore(self, source: Path, on_progress: OnProgress) -> Restored:
        manifest = await asyncio.to_thread(_read, source, on_progress)
        if manifest.schema > KNOWN:
            raise BadDatabase(
                f"{source} has schema {manifest.schema}, and this program knows {KNOWN}: "
                "upgrade this program"
            )
        with unavailable(), refusing():
            session = await self._connector.connect(patient=True)
            try:
                await check_server(session)
                async with transaction(session):
                    await query(session, "lock_schema")
                    await _require_alone(session)
                    kept = await _set_aside(session)
                    await _fill(session, source, manifest, on_progress)
                    epoch = (await query(session, "begin_epoch"))[0]["epoch"]
                    # A session that has connected meanwhile would continue with the old tables.
                    await query(session, "forget_activity")
                    await _require_alone(session)
            finally:
                await session.close(timeout=_CLOSE_SECONDS)
        return Restored(Position(epoch, manifest.position.seq), manifest.decisions, kept)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Raise Unavailable for errors of a file on this machine."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}") from error


def _size(path: Path) -> int:
    return path.stat().st_size


# -- writing ------------------------------------------------------------------------------------


async def _write(session: DatabaseSession, target: Path, on_progress: OnProgress) -> _Manifest:
    """Write all tables, within a transaction that sees the database at one moment."""
    state = (await query(session, "state"))[0]
    seq = (await query(session, "position"))[0]["seq"]
    kept_from = state["pruned_commit"], state["pruned_place"]
    names = {row["name"]: row["columns"] for row in await query(session, "all_tables")}
    del names[_VERSION_TABLE]
    progress = _ByteProgress("copying", await value(session, "size"), on_progress)
    tables = {}
    with _disk(target):
        file = _create(target)
        archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    try:
        for name, columns in names.items():
            with _disk(target):
                entry = archive.open(_member(name), "w", force_zip64=True)
            writer = _Writer(target, entry, progress)
            rows = POSTGRES_SQL["all_rows"].format(columns=_listed(columns), name=_quoted(name))
            status = await session.copy_from_query(rows, output=writer)
            with _disk(target):
                entry.close()
            tables[name] = _Table(
                columns, int(status.split()[-1]), writer.hash.hexdigest(), writer.size
            )
        manifest = _Manifest(
            schema=await schema_version(session),
            position=Position(state["epoch"], seq),
            decisions=await value(session, "count_decisions", *kept_from),
            generations=(state["oldest"], state["generation"]),
            tables=tables,
            sequences={
                row["name"]: row["last_value"]
                for row in await query(session, "all_sequences")
                if row["last_value"] is not None
            },
        )
        with _disk(target):
            archive.writestr(MANIFEST, manifest.encode())
            archive.close()
            file.flush()
            os.fsync(file.fileno())
    finally:
        # After a failure the archive may be closed already, or cannot be closed.
        with suppress(OSError, ValueError):
            archive.close()
        with suppress(OSError):
            file.close()
    return manifest


def _create(target: Path) -> IO[bytes]:
    """Create a file that only its owner may read: it will contain all decisions."""
    return os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


class _ByteProgress:
    """Counts the bytes that are done, and reports them after each _STEP."""

    def __init__(self, stage: str, of: int, on_progress: OnProgress) -> None:
        self._stage, self._of, self._on_progress = stage, of, on_progress
        self._done = 0

    def add(self, count: int) -> None:
        before, self._done = self._done, self._done + count
        if before // _STEP != self._done // _STEP:
            self._on_progress(Checked(self._stage, self._done, max(self._done, self._of)))


class _Writer:
    """Receives the data of COPY."""

    def __init__(self, target: Path, entry: IO[bytes], progress: _ByteProgress) -> None:
        self._target = target
        self._entry = entry
        self._progress = progress
        self.size = 0
        self.hash = hashlib.sha256()

    async def __call__(self, data: bytes) -> None:
        with _disk(self._target):
            self._entry.write(data)
        self.hash.update(data)
        self.size += len(data)
        self._progress.add(len(data))


# -- reading ------------------------------------------------------------------------------------


def _read(source: Path, on_progress: OnProgress) -> _Manifest:
    """Check a whole backup; return its manifest. Raises BadDatabase, Damaged."""
    try:
        with _disk(source), source.open("rb") as file:
            start = file.read(16)
        if start.startswith(b"SQLite format 3\0"):
            raise BadDatabase(f"{source} is a backup of SQLite: restore it to a SQLite database")
        if not start.startswith(b"PK\x03\x04"):
            raise BadDatabase(f"{source} is no backup that routecast made")
        with _disk(source), zipfile.ZipFile(source) as archive:
            if MANIFEST not in archive.namelist():
                raise BadDatabase(f"{source} is no backup that routecast made")
            manifest = _Manifest.decode(archive.read(MANIFEST))
            of = sum(table.size for table in manifest.tables.values())
            progress = _ByteProgress("checking", of, on_progress)
            for name, table in manifest.tables.items():
                if _digest(archive, name, progress) != (table.sha256, table.rows, table.size):
                    raise Damaged(f"{source} is damaged: table {name} is not as it was written")
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, EOFError) as error:
        raise Damaged(f"{source} is damaged or was cut off: {error}") from error
    return manifest


def _digest(archive: zipfile.ZipFile, name: str, progress: _ByteProgress) -> tuple[str, int, int]:
    """Return the hash, the rows and the bytes of a table in a backup."""
    found, rows, size = hashlib.sha256(), 0, 0
    for block in _blocks(archive, name):
        found.update(block)
        rows += block.count(b"\n")
        size += len(block)
        progress.add(len(block))
    return found.hexdigest(), rows, size


def _blocks(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with archive.open(_member(name)) as entry:
        while block := entry.read(BLOCK):
            yield block


# -- restoring ----------------------------------------------------------------------------------


async def _require_alone(session: DatabaseSession) -> None:
    if others := await query(session, "others_connected"):
        names = ", ".join(f"{row['name']} ({row['count']})" for row in others)
        raise InUse(
            f"the database is in use by {names}: stop all nodes, and end other connections; a "
            "pooler such as PgBouncer keeps its own for a while, which its command RECONNECT ends"
        )


async def _set_aside(session: DatabaseSession) -> str | None:
    """Keep the present schema under another name, if it has content; return that name."""
    if not await value(session, "has_schema"):
        return None
    try:
        known = await schema_version(session)
    except BadDatabase:  # of a newer program: a restore is the way back from it
        known = 0
    has_keys = known >= FIRST_POSTGRES_WITH_KEYS and await value(session, "count_access")
    if known and not has_keys and not (await query(session, "position"))[0]["seq"]:
        await session.execute(POSTGRES_SQL["drop_schema"])
        return None
    name = f"routecast_replaced_{datetime.now(UTC):%Y%m%dt%H%M%Sz}"
    await session.execute(POSTGRES_SQL["rename_schema"].format(name=name))
    return f"schema {name}"


async def _fill(
    session: DatabaseSession, source: Path, manifest: _Manifest, on_progress: OnProgress
) -> None:
    """Create the schema as it is in a backup, and bring it up to date."""
    await query(session, "create_schema")
    await query(session, "create_version")
    await run_migrations(session, 0, manifest.schema)
    await _make_generations(session, *manifest.generations)
    of = sum(table.size for table in manifest.tables.values())
    progress = _ByteProgress("restoring", of, on_progress)
    with _disk(source):
        archive = zipfile.ZipFile(source)
    with archive:
        for name in sorted(manifest.tables, key=lambda name: (name not in _RESTORED_FIRST, name)):
            await session.execute(POSTGRES_SQL["empty_table"].format(name=_quoted(name)))
            table = manifest.tables[name]
            status = await session.copy_to_table(
                name,
                source=_with_progress(source, archive, name, progress),
                columns=table.columns,
                schema_name="routecast",
            )
            if int(status.split()[-1]) != table.rows:
                raise Damaged(f"the server took {status} of the {table.rows} rows of {name}")
    for name, last in manifest.sequences.items():
        await query(session, "set_sequence", name, last)
    await run_migrations(session, manifest.schema, KNOWN)


async def _make_generations(session: DatabaseSession, oldest: int, newest: int) -> None:
    """Create the generations of a backup, in a new schema, which has the first one.

    Generations before the oldest are skipped. There may be thousands, and the locks of each one
    that is created or dropped are held until the transaction ends: the server has no room for so
    many locks.
    """
    skipped = max(oldest - 1, 1)
    await query(session, "set_generation", skipped)
    for generation in range(skipped, newest):
        await query(session, "begin_generation", generation)
    if oldest > 1:
        await query(session, "drop_generation", 1)


async def _with_progress(
    source: Path, archive: zipfile.ZipFile, name: str, progress: _ByteProgress
) -> AsyncIterator[bytes]:
    blocks = _blocks(archive, name)
    while True:
        with _disk(source):
            block = next(blocks, b"")
        if not block:
            return
        progress.add(len(block))
        yield block


def _member(name: str) -> str:
    return f"tables/{name}.copy"


def _listed(columns: list[str]) -> str:
    return ", ".join(map(_quoted, columns))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
