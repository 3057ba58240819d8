"""A node with little memory for live state, on a database with many sums: numbers stay exact."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.support.oracle import Fact, assert_agree, expect, fact
from tests.support.server import Server
from tests.support.stream import receive_until
from tests.support.v1 import JSON, v1_client

SECOND = 10**6
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
# Well away from where windows begin, so that the minute may pass while a test runs.
AGES = [
    *(n * MINUTE for n in (0, 1, 10, 20, 30, 40, 50)),
    *(n * HOUR for n in (2, 3, 4, 5, 6, 23)),
    *(n * DAY for n in (2, 3, 4, 5, 6)),
]
KEYS = 1_000
FIELDS = ("total_decisions", "cost", "tokens", "provider_usage", "errors", "latency_ms")
WINDOWS = ("all", "5m", "1h", "24h", "7d")
QUERY = "fields=" + ",".join(FIELDS)


def sent(key: int, moment: int) -> dict[str, Any]:
    return {
        "strategy": f"s{key % 20}",
        "provider": f"p{key // 20 % 10}",
        "model": f"m{key // 200}",
        "status": "error" if key % 7 == 0 else "success",
        "latency_ms": float(key % 90 + 1),
        "cost": 0.001 * (key % 13),
        "input_tokens": key,
        "output_tokens": 3,
        "timestamp": moment / SECOND,
    }


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[Fact]]]:
    """A server that was restarted on its data, with the smallest memory that can be set."""
    folder: Path = tmp_path_factory.mktemp("server")
    server = Server(folder, env={"ROUTECAST_LIVE_MEMORY": "4"})
    facts: list[Fact] = []
    with server:
        now = time.time_ns() // 1000
        for age in reversed(AGES):
            batch = [sent(key, now - age) for key in range(KEYS)]
            facts += [fact(one, now) for one in batch]
            server.post(batch)
        server.kill()  # what was acknowledged is on disk
        server.start()
        yield server, facts


def resident(server: Server) -> int:
    """Return the maximum resident memory of the process."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def expected(facts: list[Fact], window: str) -> dict[str, Any]:
    return expect(facts, now=time.time_ns() // 1000, fields=FIELDS, window=window)


@pytest.mark.parametrize("window", WINDOWS)
def test_every_window_equals_the_oracle(node: tuple[Server, list[Fact]], window: str) -> None:
    """A window is right whether it comes from memory or from the database."""
    server, facts = node
    answer = server.http.get(f"/routing/metrics?{QUERY}&window={window}")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    del document["timestamp"]
    assert_agree(document, expected(facts, window))


async def test_streams_get_windows_from_the_database(node: tuple[Server, list[Fact]]) -> None:
    """All kinds of streams get them in their first document."""
    server, facts = node
    wanted = expected(facts, "7d")
    async with connect(f"{server.ws_url}?{QUERY}&window=7d&interval=0.2") as stream:
        document = await receive_until(stream, lambda found: "error" not in found)
    del document["timestamp"]
    assert_agree(document, wanted)
    with server.http.stream("GET", f"/sse/metrics?{QUERY}&window=7d&interval=0.2") as answer:
        line = next(line for line in answer.iter_lines() if line.startswith("data:"))
    document = json.loads(line.removeprefix("data:"))
    del document["timestamp"]
    assert_agree(document, wanted)
    async with v1_client(server, JSON) as client:
        await client.send(
            {"type": "subscribe", "id": "a", "fields": FIELDS, "window": "7d", "interval": 0.2}
        )
        await client.receive_until(lambda _: "a" in client.held)
        assert client.held["a"].source == "database"
        assert client.held["a"].document["total_decisions"] == wanted["total_decisions"]


def test_memory_stays_small_and_says_so(node: tuple[Server, list[Fact]]) -> None:
    """This holds for live state by its own count, and for the process by the system's."""
    server, _ = node
    assert 0 < server.instrument("routecast_live_windows_uncovered") < len(WINDOWS)
    room = server.instrument("routecast_live_room_bytes")
    assert room < 4 * 2**20
    assert 0 < server.instrument("routecast_live_bytes") <= room
    assert server.instrument("routecast_live_cells") >= KEYS
    server.wait_for_log("the database answers them: ", "ROUTECAST_LIVE_MEMORY")
    assert server.http.get("/health").json()["status"] == "ok"
    if sys.platform == "linux":
        assert resident(server) < 300 * 2**20


def test_commits_show_in_windows_from_the_database(node: tuple[Server, list[Fact]]) -> None:
    """They show within seconds, and the position never goes back. This test is the last one."""
    server, facts = node
    before = expected(facts, "7d")["total_decisions"]
    now = time.time_ns() // 1000
    seen = [before]
    for number in range(1, 4):
        server.post(sent(number, now))
        deadline = time.monotonic() + 30
        while seen[-1] < before + number:
            assert time.monotonic() < deadline, seen
            answer = server.http.get("/routing/metrics?fields=total_decisions&window=7d")
            seen.append(answer.json()["total_decisions"])
            time.sleep(0.05)  # time between two checks; the answer is the event
    assert seen == sorted(seen)
    assert seen[-1] == before + 3
