"""Every kind of Redis URL connects nodes to a Redis that they share."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from routecast.core.delta import Delta
from routecast.core.snapshot import Snapshot
from routecast.errors import Unavailable
from routecast.protocol import Position
from tests.support.decisions import NOW, cells_of, kept
from tests.support.engines import SharedRedis, carried
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer, start_cluster
from tests.support.running_services import until

DELTA = Delta(Position("e", 1), cells_of([kept()]), NOW)


async def assert_shared(url: str, prefix: str | None = None) -> None:
    """Assert that nodes share a bus, a cache, their numbers of streams and temporary records."""
    shared = SharedRedis(url, prefix)
    cache, cluster, records = shared.cache(), shared.cluster(), shared.records()
    heard: list[Delta | Position] = []
    async with carried(shared.bus()) as here, carried(shared.bus()) as there:
        there.listen(heard.append)
        here.publish(DELTA)
        await until(lambda: heard == [DELTA])
        assert await there.deltas(Position("e", 0)) == [DELTA]
    await cache.put(Snapshot(Position("e", 1), NOW))
    assert await cache.get() is not None
    await cache.invalidate(Position("e", 2))
    assert await cache.get() is None
    assert await cluster.claim("look", 600)
    await cluster.report_connections(3, b"summary")
    assert await cluster.total_connections() == 3
    assert await cluster.summaries() == [b"summary"]
    await records.put("a", b"old", 600)
    assert await records.replace("a", b"new", 600)
    assert await records.get(["a"]) == [b"new"]
    assert await records.take("a") == b"new"
    await records.delete("a")
    assert await records.version()
    await cache.close()
    await cluster.close()
    await records.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


async def test_unix_socket(server: RedisServer) -> None:
    """unix:// works, with a database number."""
    await assert_shared(f"unix://{server.socket}?db=3")
    assert server.ask("INFO", "keyspace")["db3"]["keys"] >= 1


async def test_valkey(server: RedisServer) -> None:
    """valkey:// means the same as redis://."""
    await assert_shared(f"valkey://127.0.0.1:{server.port}")


async def test_login(server: RedisServer) -> None:
    """A URL may have a name and a password, which no error shows."""
    server.ask("ACL", "SETUSER", "node", "on", ">pass/word", "~{*", "+@all")
    await assert_shared(f"redis://node:pass%2Fword@127.0.0.1:{server.port}/0")
    cache = SharedRedis(f"redis://node:wrong-word@127.0.0.1:{server.port}/0").cache()
    with pytest.raises(Unavailable) as told:
        await cache.get()
    assert "invalid username-password" in str(told.value)
    assert "wrong-word" not in str(told.value)
    await cache.close()


async def test_cluster(tmp_path: Path) -> None:
    """redis+cluster:// keeps all keys in one slot, and recovers after an outage."""
    with RedisServer(tmp_path, "--cluster-enabled", "yes") as cluster:
        start_cluster(cluster)
        url = f"redis+cluster://127.0.0.1:{cluster.port}"
        await assert_shared(url)
        shared = SharedRedis(url)
        heard: list[Delta | Position] = []
        async with carried(shared.bus()) as here, carried(shared.bus()) as there:
            there.listen(heard.append)
            cluster.kill()
            await until(lambda: bool(here.failing and there.failing))
            here.publish(DELTA)
            cluster.start()
            await until(lambda: heard == [DELTA])


async def test_tls(server: RedisServer, certificate: Path) -> None:
    """rediss:// trusts a server with a known certificate, and refuses another one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with Proxy(server.port, context) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0"
        await assert_shared(f"{url}?ssl_ca_certs={certificate}")
        stranger = SharedRedis(url).cache()
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await stranger.get()
        await stranger.close()
