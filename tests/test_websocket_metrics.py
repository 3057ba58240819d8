"""`/ws/metrics` as the first dashboards use it, on a real server and a real socket."""

import asyncio
import itertools
import json
import logging
import re
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.clock import SystemClock
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.prices import GenaiPrices
from routecast.adapters.store.sqlite import SqliteStore
from routecast.server.config import Settings
from routecast.server.engines import Engines
from tests.support.clock import HeldClock
from tests.support.in_process_server import InProcessServer
from tests.support.server import EDGES, Edge, Server
from tests.support.stream import receive, receive_until

KEYS = [
    "total_decisions",
    "avg_confidence",
    "strategy_performance",
    "confidence_distribution",
    "provider_usage",
    "timestamp",
]
DECISIONS = [
    {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9, "cost": 0.002},
    {"strategy": "hybrid", "provider": "claude", "confidence": 0.6, "cost": 0.004},
    {"strategy": "complexity", "provider": "gemini", "confidence": "low"},
]


@pytest.fixture(scope="module", params=EDGES)
def edge(request: pytest.FixtureRequest) -> Edge:
    """Each edge in turn."""
    return cast("Edge", request.param)


async def test_websocket_endpoint_exists(server: Server) -> None:
    """The endpoint upgrades a plain request to a WebSocket without a subprotocol."""
    async with connect(server.ws_url) as stream:
        assert stream.response is not None
        assert stream.response.status_code == 101
        assert stream.subprotocol is None


async def test_websocket_receives_initial_metrics(server: Server) -> None:
    """The whole document comes at once with any interval, its keys in the contract's order."""
    server.post(DECISIONS)
    started = time.monotonic()
    async with connect(f"{server.ws_url}?interval=60") as stream:
        document = await receive(stream)
    assert time.monotonic() - started < 5
    assert list(document) == KEYS
    del document["timestamp"]
    assert document == {
        "total_decisions": 3,
        "avg_confidence": 0.75,
        "strategy_performance": {
            "hybrid": {"count": 2, "avg_cost": 0.003, "avg_confidence": 0.75},
            "complexity": {"count": 1, "avg_cost": None, "avg_confidence": None},
        },
        "confidence_distribution": {"high": 1, "medium": 1, "low": 1},
        "provider_usage": {"gemini": 2, "claude": 1},
    }


async def test_websocket_periodic_updates_every_5_seconds(server: Server) -> None:
    """Without an interval in the query, frames are five seconds apart."""
    async with connect(server.ws_url) as stream:
        arrivals, totals = [], []
        for _ in range(3):
            totals.append((await receive(stream))["total_decisions"])
            arrivals.append(time.monotonic())
            server.post(DECISIONS[0])
    assert totals == [0, 1, 2]
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert gaps == pytest.approx([5, 5], abs=0.5)


async def test_websocket_multiple_concurrent_connections(server: Server) -> None:
    """A hundred streams get the same numbers from at most two renders."""
    async with asyncio.TaskGroup() as group:
        opening = [
            group.create_task(connect(f"{server.ws_url}?interval=0.2").__aenter__())
            for _ in range(100)
        ]
    streams = [task.result() for task in opening]
    try:
        assert server.http.get("/health").json()["active_connections"] == 100
        server.post(DECISIONS)
        documents = await asyncio.gather(
            *(receive_until(stream, lambda d: d["total_decisions"] == 3) for stream in streams)
        )
        # While all are open: a channel that ends drops the document, and others make it again.
        metrics = server.http.get("/metrics").text
    finally:
        await asyncio.gather(*(stream.close() for stream in streams))
    bare = [{key: document[key] for key in KEYS[:-1]} for document in documents]
    assert all(document == bare[0] for document in bare)
    renders = re.search(r"^routecast_renders_total (\d+)", metrics, re.MULTILINE)
    assert renders is not None
    assert int(renders[1]) <= 2  # one without decisions, and one with all three


async def test_websocket_graceful_disconnect(server: Server) -> None:
    """A client that closes is answered and no longer counted; others go on."""
    async with connect(f"{server.ws_url}?interval=0.1") as other:
        stream = await connect(server.ws_url)
        await receive(stream)
        await stream.close(1000)
        assert stream.close_code == 1000
        server.wait_for_log(
            "Client disconnected normally", "WebSocket disconnected. Total connections: 1"
        )
        await receive(other)
        assert server.http.get("/health").json()["active_connections"] == 1


async def test_websocket_uses_redis_cache(
    tmp_path: Path, edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    """Without live state, numbers come from the cache, and then from the last document."""
    caplog.set_level(logging.INFO, "routecast")
    clock, held = SystemClock(), HeldClock()  # snapshots expire by the held one
    store = SqliteStore(tmp_path / "routecast.db")
    cache = MemoryCache(held, 30)
    engines = Engines(store, cache, MemoryBus(), MemoryCluster(), clock, GenaiPrices())
    with InProcessServer(Settings(), engines, edge) as server:
        async with connect(f"{server.ws_url}?interval=0.1") as stream:
            before = await receive(stream)
            server.call(store.close())
            while "Metrics cache HIT" not in caplog.messages:
                document = await receive(stream)
            assert server.call(server.services.health()).source == "cache"
            caplog.clear()
            held.moment += 31_000_000
            while "Metrics cache MISS" not in caplog.messages:
                document = await receive(stream)
            document = await receive(stream)
            assert server.call(server.services.health()).source == "stale"
    del before["timestamp"], document["timestamp"]
    assert document == before


async def test_websocket_error_handling_on_invalid_data(tmp_path: Path, edge: Edge) -> None:
    """While the database cannot be read, streams are told to come back; nonsense does no harm."""
    server = Server(tmp_path, edge=edge)
    holder = sqlite3.connect(server.database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")  # a real lock, which closes the database to others
    server.launch()
    server.wait_for("/health", 503)
    try:
        # There may be API keys in the database, so that authentication counts as on.
        with pytest.raises(InvalidStatus) as unknown:
            await connect(f"{server.ws_url}?interval=0.2")
        assert unknown.value.response.status_code == 503
        assert int(unknown.value.response.headers["Retry-After"]) > 0
        assert server.http.post("/v1/decisions", json=DECISIONS).status_code == 503
        holder.execute("ROLLBACK")
        server.wait_for("/routing/metrics", 200)
        stream = await connect(f"{server.ws_url}?interval=0.2")
        assert (await receive(stream))["total_decisions"] == 0
        for nonsense in ("{", "\x00", b"\xff\xfe", json.dumps({"type": "subscribe"})):
            await stream.send(nonsense)
        assert (await receive(stream))["total_decisions"] == 0
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.ws_url}?window=3d")
        assert refused.value.response.status_code == 400
        assert json.loads(refused.value.response.body)["parameter"] == "window"
        await stream.close()
    finally:
        holder.close()
        assert server.stop() == 0


async def test_websocket_connection_manager_tracking(server: Server) -> None:
    """Each connection counts while it is open, and the log has the count."""
    first = await connect(server.ws_url)
    await receive(first)
    second = await connect(server.ws_url)
    await receive(second)
    assert server.http.get("/health").json()["active_connections"] == 2
    await first.close()
    server.wait_for_log("WebSocket disconnected. Total connections: 1")
    await second.close()
    server.wait_for_log(
        "WebSocket connected. Total connections: 1",
        "WebSocket connected. Total connections: 2",
        "WebSocket disconnected. Total connections: 1",
        "WebSocket disconnected. Total connections: 0",
    )
    assert server.http.get("/health").json()["active_connections"] == 0


async def test_websocket_sends_valid_json(server: Server) -> None:
    """Every frame is a text message with strict JSON, with any names."""
    odd = {"strategy": 'a"\\</script>', "provider": "Größe-😀", "cost": 0}
    server.post(odd)
    async with connect(f"{server.ws_url}?interval=0.1") as stream:
        for _ in range(3):
            message = await stream.recv()
            assert isinstance(message, str)
            document = json.loads(message, parse_constant=pytest.fail)
            assert document["provider_usage"] == {odd["provider"]: 1}
            assert document["strategy_performance"][odd["strategy"]]["avg_cost"] == 0


async def test_websocket_timestamp_format(server: Server) -> None:
    """Timestamps are RFC 3339 in UTC with microseconds, and each frame has a later one."""
    async with connect(f"{server.ws_url}?interval=0.1") as stream:
        times = [(await receive(stream))["timestamp"] for _ in range(4)]
    for text in times:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", text)
        assert abs(datetime.fromisoformat(text) - datetime.now(UTC)) < timedelta(minutes=1)
    assert times == sorted(set(times))
