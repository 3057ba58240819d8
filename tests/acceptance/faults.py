"""Helpers of fault tests: durations, the load on the cluster, and the checks after each fault."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.acceptance.ledger import Ledger, Report
from tests.support.nodes import Nodes
from tests.support.server import Server

# Set by `make faults`; then the other says how often to kill, unless it is to be 500 times.
LONG = bool(os.environ.get("ROUTECAST_TEST_LONG_FAULTS"))
# In seconds.
CALM = 5.0 if LONG else 0.5
FREEZE = 30.0 if LONG else 3.0
OUTAGE = 10.0 if LONG else 1.2
LOCK = 20.0 if LONG else 3.5
KILLS = int(os.environ.get("ROUTECAST_TEST_KILLS", 500 if LONG else 5))
# Where the fault is Redis, 99 of 100 decisions are acknowledged within twice their time in calm.
# A machine that runs other tests beside these adds its own.
NOISE = 0.02 if LONG else 0.1
# Where clocks are set, for one process.
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
ONE = {"strategy": "hybrid", "provider": "gemini"}


@asynccontextmanager
async def working(nodes: Nodes) -> AsyncIterator[Ledger]:
    """Make nodes work from some time before a fault."""
    async with Ledger(list(nodes), nodes.database_url) as opened:
        await asyncio.sleep(CALM)
        yield opened
    assert "Traceback" not in nodes.log()


@asynccontextmanager
async def busy(nodes: Nodes) -> AsyncIterator[Ledger]:
    """Start nodes, make them work, and stop them."""
    try:
        await asyncio.to_thread(nodes.start)
        async with working(nodes) as opened:
            yield opened
    finally:
        await asyncio.to_thread(nodes.stop)


def tell(what: object) -> None:
    """Print figures for the person that runs `make faults`."""
    print(f"\n  {what}", end=" ")  # noqa: T201  # -- for people


def equal_within(seconds: float, nodes: Iterable[Server], total: int) -> None:
    """Assert that all nodes have this total of decisions within the given seconds."""
    deadline = time.monotonic() + seconds
    while (totals := [node.metrics()["total_decisions"] for node in nodes]) != [total] * len(
        totals
    ):
        assert time.monotonic() < deadline, f"{totals} of {total}"
        time.sleep(0.02)  # time between two checks; the answer is the event


async def unnoticed(ledger: Ledger) -> None:
    """Assert that no producer or stream noticed a fault of Redis."""
    report = await ledger.check(steady=True)
    tell(report)
    assert report.p99["a fault"] <= 2 * report.p99["calm"] + NOISE, report


async def survived(ledger: Ledger) -> Report:
    """Assert that nothing is wrong after a fault of the database or a node."""
    report = await ledger.check()
    tell(report)
    return report


def bus(node: Server) -> str:
    """Return a node's state of the bus."""
    state: str = node.http.get("/health").json()["components"]["bus"]
    return state
