"""A running server with sums beyond 64 bits, a full series, and a damaged file."""

import asyncio
import gzip
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from routecast.adapters.store.postgres import PostgresStore
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.decision import DecisionRecord
from routecast.core.overflow import LARGEST_SUM
from tests.support.decisions import HOUR, kept
from tests.support.postgres import Postgres
from tests.support.server import Server

NOW = time.time_ns() // 1000
# Two series, of which one has no room left, in an hour that is over.
FULL = kept(0, strategy="full", cost=LARGEST_SUM, decided=NOW - 3 * HOUR)
OTHER = kept(1, strategy="other", cost=LARGEST_SUM, decided=NOW - 3 * HOUR, project="another")
TOTAL = 2 * LARGEST_SUM


def fill(store: Any, decisions: list[DecisionRecord]) -> None:
    async def run() -> None:
        await store.open()
        await store.commit([decisions], NOW)
        await store.prune(decisions_before=0, minutes_before=0, limit=1)  # which folds all
        await store.close()

    asyncio.run(run())


@pytest.fixture(params=["sqlite", "postgres"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A server on a database whose sums over series need more than 64 bits."""
    if request.param == "sqlite":
        server = Server(tmp_path)
        store: Any = SqliteStore(server.database)
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create()
        server, store = Server(tmp_path, database_url=url), PostgresStore(url)
    fill(store, [FULL, OTHER])
    with server as running:
        yield running


def batch(prefix: str) -> list[dict[str, Any]]:
    """Return a hundred decisions, of which one is of the full series and has a cost."""
    sent = {"strategy": "full", "provider": "gemini", "model": "flash", "confidence": "high"}
    return [
        {**sent, "id": f"{prefix}{n}", **({"cost": 0.5} if n == 42 else {})} for n in range(100)
    ]


def test_full_series_rejects_only_what_does_not_fit(filled: Server) -> None:
    """The rejection has index and name, also when sent again; a batch of only such gets 422."""
    error = "cost: the sum of its series is at its limit"
    for number, prefix in enumerate(("short", "short", "long", "long")):
        body = msgspec.json.encode(batch(prefix))
        # A packed body takes the way through ASGI, a plain one the short way.
        packed = prefix == "long"
        headers = {"Content-Type": "application/json"}
        if packed:
            body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
        answer = filled.http.post("/v1/decisions", content=body, headers=headers)
        assert answer.status_code == 200
        receipt = answer.json()
        assert receipt["accepted"] == (0 if number % 2 else 99)
        assert receipt["duplicates"] == (99 if number % 2 else 0)
        assert receipt["rejected"] == [{"index": 42, "error": error, "id": f"{prefix}42"}]
        assert receipt["rejected_count"] == 1
    alone = filled.http.post("/v1/decisions", json=batch("alone")[42:43])
    assert alone.status_code == 422
    assert alone.json()["rejected"] == [{"index": 0, "error": error, "id": "alone42"}]
    mixed = filled.http.post("/v1/decisions", json=[{}, *batch("mixed")[42:44]])
    assert [one["index"] for one in mixed.json()["rejected"]] == [0, 1]
    assert filled.instrument('routecast_decisions_total{outcome="rejected"}') == 4 + 1 + 2


def test_totals_and_history_are_exact(filled: Server) -> None:
    """They are exact beyond 64 bits, and so are summaries."""
    document = filled.metrics(fields="cost")
    assert document["cost"]["total"] == TOTAL / 10**9
    hours = {"from": str((NOW - 30 * HOUR) / 1e6), "to": str(NOW / 1e6), "points": "10"}
    for group_by in ({}, {"group_by": "strategy"}, {"group_by": "provider"}):
        answer = filled.http.get("/v1/history", params={**hours, "fields": "cost", **group_by})
        assert answer.status_code == 200, answer.text
        told = [cost for one in answer.json()["series"] for cost in one["cost"] if cost]
        assert sum(told) == TOTAL / 10**9
    health = filled.http.get("/health").json()
    assert health["status"] == "ok"
    assert {service["status"] for service in health["services"].values()} == {"ok"}


def test_database_file_that_is_cut_off(tmp_path: Path) -> None:
    """Nothing more is acknowledged, also after a restart, and `/health` says why."""
    server = Server(tmp_path)
    many = [kept(n, strategy=f"s{n}", reason="r" * 300, decided=NOW) for n in range(3000)]
    fill(SqliteStore(server.database), many)
    sent = {"strategy": "hybrid", "provider": "gemini"}
    with server:
        assert server.http.get("/health").json()["database_check"] == "ok"
        server.post(sent)
        os.truncate(server.database, server.database.stat().st_size // 2)
        answer = server.http.post("/v1/decisions", json=sent)
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        assert_corrupt(server)
        assert str(tmp_path) not in server.http.get("/health").text
        server.stop()
        server.launch()
        server.wait_for("/ready", 503)
        assert_corrupt(server)


def assert_corrupt(server: Server) -> None:
    """Assert that the damage is reported; a check may take some time on a busy machine."""
    deadline = time.monotonic() + 30
    while server.http.get("/health").json()["components"]["database"] != "corrupt":
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)
    health = server.http.get("/health").json()
    assert health["status"] == "degraded"
    assert health["database_error"]
    ready = server.http.get("/ready")
    assert ready.status_code == 503
    assert "the database file is" in ready.json()["reason"]
