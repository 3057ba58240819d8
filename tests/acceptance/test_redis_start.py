"""A node starts, takes decisions and stops on time with any kind of server at Redis's address."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.nonsense import NonsenseServer
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy, Reset
from tests.support.redis import RedisServer
from tests.support.server import Server
from tests.support.waiting import until

STRANGE = {
    "ok": b"+OK\r\n",
    "none": b"*-1\r\n",
    "number": b":42\r\n",
    "silence": b"",
}
RESETS = {"reset at once": Reset.AT_ONCE, "reset after bytes": Reset.AFTER_BYTES}
ALL = [*STRANGE, *RESETS, "tls"]


@asynccontextmanager
async def strange(what: str, folder: Path, certificate: Path) -> AsyncIterator[str]:
    """Run a server that is no usable Redis; yield its URL."""
    if what in STRANGE:
        async with NonsenseServer(STRANGE[what]) as server:
            yield f"redis://127.0.0.1:{server.port}/0"
        return
    with RedisServer(folder / "redis") as redis:
        context = None
        if what == "tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
        async with Proxy(redis.port, context) as proxy:
            if what in RESETS:
                proxy.reset(RESETS[what])
            yield f"redis://127.0.0.1:{proxy.port}/0"


def serve(node: Server) -> dict[str, Any]:
    """Start a node, send it a decision, and stop it; return its health."""
    with node:
        assert node.post({"strategy": "s", "provider": "p"})["accepted"] == 1
        assert node.metrics()["total_decisions"] == 1
        assert node.http.get("/ready").json()["ready"] is True
        health: dict[str, Any] = {}
        until(lambda: _tells_of_redis(health, node))
        assert node.stop() == 0
    assert "Traceback" not in node.log.read_text()
    return health


def _tells_of_redis(health: dict[str, Any], node: Server) -> bool:
    health.update(node.http.get("/health").json())
    return any(text.startswith("redis: ") for text in health.get("degraded", ()))


@pytest.mark.parametrize("what", ALL)
async def test_node_serves(tmp_path: Path, certificate: Path, what: str) -> None:
    """The node says what is wrong; no service crashes, and nothing hangs."""
    async with strange(what, tmp_path, certificate) as url:
        health = await asyncio.to_thread(serve, Server(tmp_path / "node", redis_url=url))
    assert health["status"] == "degraded"
    for name, state in health["services"].items():
        assert state["failures"] == state["restarts"] == 0, name
    assert health["source"] in ("live", "database")


async def test_workers_serve(tmp_path: Path, certificate: Path, postgres: Postgres) -> None:
    """All worker processes listen."""
    async with strange("none", tmp_path, certificate) as url:
        node = Server(
            *(tmp_path / "node", "--workers", "2"), database_url=postgres.create(), redis_url=url
        )
        await asyncio.to_thread(serve_with_all, node, 2)


def serve_with_all(node: Server, workers: int) -> None:
    """Start a node, assert that all its workers listen, and stop it."""
    with node:
        assert node.process is not None
        children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children")
        pids = set(children.read_text().split())
        assert len(pids) == workers
        assert node.post({"strategy": "s", "provider": "p"})["accepted"] == 1
        assert set(children.read_text().split()) == pids
        assert node.stop() == 0
    assert "Traceback" not in node.log.read_text()
