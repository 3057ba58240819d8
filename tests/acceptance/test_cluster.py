"""Many nodes on one PostgreSQL and one Redis: every node shows the same numbers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.ledger import Ledger
from tests.acceptance.test_sse import events
from tests.support.nodes import Nodes
from tests.support.postgres import Postgres
from tests.support.redis import RedisServer
from tests.support.server import Server
from tests.support.stream import Document
from tests.support.waiting import until

GOOD = {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9, "cost": 0.002}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis only for these nodes."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, redis: RedisServer
) -> Iterator[Nodes]:
    """Two nodes, started at the same moment on an empty database."""
    folder = tmp_path_factory.mktemp("nodes")
    with Nodes(folder, 2, database_url=postgres.create(), redis_url=redis.url) as running:
        yield running


@pytest.fixture(scope="module")
def streamer(
    tmp_path_factory: pytest.TempPathFactory, nodes: Nodes, redis: RedisServer
) -> Iterator[Server]:
    """A third node, which only streams and has no database."""
    folder = tmp_path_factory.mktemp("streamer")
    with Server(folder, redis_url=redis.url, role="stream") as running:
        yield running


def test_decision_acknowledged_at_one_is_in_the_stream_of_the_other(nodes: Nodes) -> None:
    """It comes with the position of its receipt, and then all nodes have the same document."""
    here, there = nodes
    with there.http.stream("GET", "/sse/metrics?interval=0.1") as answer:
        stream = events(answer)
        before = next(stream).document["total_decisions"]
        position = here.post([GOOD, GOOD])["position"]
        event = next(event for event in stream if event.document["total_decisions"] > before)
    assert event.document["total_decisions"] == before + 2
    assert event.id == f"{position['epoch']}:{position['seq']}"
    assert _document(here) == _document(there)


def test_id_sent_to_two_nodes_counts_once(nodes: Nodes) -> None:
    """The second node finds the id in the database."""
    here, there = nodes
    assert here.post({**GOOD, "id": "once"})["accepted"] == 1
    assert there.post({**GOOD, "id": "once"})["duplicates"] == 1


async def test_nodes_started_together_on_an_empty_database(nodes: Nodes, streamer: Server) -> None:
    """They agree on one epoch, and all streams show the decisions sent to either."""
    epochs = {node.http.get("/health").json()["position"]["epoch"] for node in nodes}
    assert len(epochs) == 1
    async with Ledger(list(nodes), nodes.database_url, streams=[streamer]) as ledger:
        await ledger.commits(100)
        await ledger.check(steady=True)
    assert "Traceback" not in nodes.log()


def test_streams_are_counted_over_all_nodes(nodes: Nodes, streamer: Server) -> None:
    """The health of each node has the number of all streams, also after they end."""
    every = [*nodes, streamer]
    with ExitStack() as stack:
        for node in (*every, nodes[0]):
            stack.enter_context(node.http.stream("GET", "/sse/metrics?interval=60"))
        until(lambda: [node.active() for node in every] == [4, 4, 4])
    until(lambda: [node.active() for node in every] == [0, 0, 0])


def test_node_without_database_streams_the_same(nodes: Nodes, streamer: Server) -> None:
    """It streams the decisions of other nodes, and says why it accepts none itself."""
    with streamer.http.stream("GET", "/sse/metrics?interval=0.1") as answer:
        stream = events(answer)
        before = next(stream).document["total_decisions"]
        nodes[0].post(GOOD)
        event = next(event for event in stream if event.document["total_decisions"] > before)
    assert event.document["total_decisions"] == before + 1
    assert _document(streamer) == _document(nodes[1])
    health = streamer.http.get("/health").json()
    assert (health["status"], health["source"]) == ("ok", "live")
    refused = streamer.http.post("/v1/decisions", json=GOOD)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "only streams" in refused.json()["detail"]
    assert streamer.http.get("/ready").status_code == 503


def test_prefixes_separate_clusters(
    tmp_path: Path, postgres: Postgres, nodes: Nodes, redis: RedisServer
) -> None:
    """Two clusters with different prefixes share a Redis and see only their own decisions."""
    env = {"ROUTECAST_REDIS_PREFIX": "other"}
    database_url = postgres.create()
    with Server(tmp_path, env=env, database_url=database_url, redis_url=redis.url) as other:
        nodes[0].post(GOOD)
        other.post(GOOD)
        assert other.metrics()["total_decisions"] == 1


def test_workers_share_a_port(tmp_path: Path, postgres: Postgres, redis: RedisServer) -> None:
    """Two processes answer on one port, and a killed one is replaced."""
    env = {"ROUTECAST_REDIS_PREFIX": "workers"}
    with Server(
        tmp_path,
        *("--workers", "2"),
        env=env,
        database_url=postgres.create(),
        redis_url=redis.url,
    ) as server:
        until(lambda: len(_children(server)) == 2)
        for number in range(1, 11):
            with httpx2.Client(base_url=server.url) as http:  # on a connection of its own
                assert http.post("/v1/decisions", json=GOOD).json()["accepted"] == 1
            until(lambda: server.metrics()["total_decisions"] == number)  # noqa: B023  # -- awaited in its own turn
        before = _children(server)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(_children(server)) - {before[0]}) == 2)
        server.http.close()
        server.http = httpx2.Client(base_url=server.url)
        server.wait_for("/ready", 200)
        assert server.metrics()["total_decisions"] == 10
        assert server.stop() == 0
        assert _children(server) == []


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (("--workers", "2"), ("--redis", "--database")),
        (("--workers", "2", "--redis", "redis://localhost"), ("--database",)),
        (("--workers", "2", "--database", "postgresql://localhost/x"), ("--redis",)),
        (("--role", "stream"), ("--redis",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_missing_engines_are_named(
    tmp_path: Path, options: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    """One line says which option to add, and not those that are there."""
    command = [sys.executable, "-m", "routecast", "serve", "--port", "0", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    told = {option for option in ("--redis", "--database") if option in ended.stderr}
    assert told == set(missing), ended.stderr


def _document(server: Server) -> list[tuple[str, object]]:
    document: Document = server.metrics()
    del document["timestamp"]
    return list(document.items())


def _children(server: Server) -> list[int]:
    assert server.process is not None
    pid = server.process.pid
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []
