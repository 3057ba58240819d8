"""The limit of decisions: what a node knows to be left, and what it learns from the cluster."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest

from routecast.adapters.cluster.memory import MemoryCluster
from routecast.core.access import ANYONE, Principal
from routecast.core.client_limits import (
    ClientLimit,
    LimitMode,
    LimitModes,
    client_name,
    over_quota,
)
from routecast.core.sites import Sites
from routecast.core.token_bucket import Quota
from routecast.edge.http.decisions import Decisions
from routecast.edge.problem import respond_error
from routecast.errors import OverLimit, Unavailable
from routecast.ports import Cluster
from routecast.protocol import Receipt
from routecast.services import ingest_limit
from routecast.services.decision_batch import DecisionBatch
from routecast.services.ingest import Ingest
from routecast.services.ingest_limit import IngestLimit

ANA = client_name(Principal("ana"))


class StillClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def settling(*limits: IngestLimit) -> AsyncIterator[None]:
    """Run the service of some nodes."""
    tasks = [asyncio.create_task(limit.run()) for limit in limits]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  -- it has no event of its own
            await asyncio.sleep(0.005)


def is_refused(limit: IngestLimit, client: str = ANA) -> bool:
    try:
        limit.require(client)
    except OverLimit:
        return True
    return False


def test_a_client_over_its_quota_is_refused_until_it_has_grown_back() -> None:
    """Another client is not affected."""
    clock = StillClock()
    limit = IngestLimit(60, now=clock)
    limit.require(ANA)
    limit.take(ANA, 60)
    with pytest.raises(OverLimit, match="60 decisions in a minute") as refused:
        limit.take(ANA, 10)
    assert refused.value.retry_after == 10
    with pytest.raises(OverLimit):
        limit.require(ANA)
    limit.take("subject bob", 60)
    clock.now += 10
    limit.take(ANA, 10)


def test_what_was_refused_for_another_reason_is_given_back() -> None:
    """The client need not pay for it."""
    limit = IngestLimit(60, now=StillClock())
    limit.take(ANA, 60)
    limit.give_back(ANA, 60)
    assert limit.take(ANA, 60)


def test_dry_run_counts_and_refuses_nothing() -> None:
    """Each batch that would be refused is one hit."""
    hits: list[tuple[ClientLimit, LimitMode]] = []
    modes = LimitModes({"all"}, lambda *hit: hits.append(hit))
    limit = IngestLimit(60, modes, now=StillClock())
    for _ in range(4):
        limit.require(ANA)
        limit.take(ANA, 40)
    assert hits == [(ClientLimit.INGEST, LimitMode.DRY_RUN)] * 3


def test_without_a_limit_nothing_is_kept() -> None:
    """Which is the default."""
    limit = IngestLimit()
    for _ in range(3):
        limit.require(ANA)
        limit.take(ANA, 10**9)
    assert not limit.is_on


async def test_nodes_share_a_quota() -> None:
    """What one node let through is missing on the others, soon after."""
    clock = StillClock()
    cluster = MemoryCluster(clock)
    one, two = (IngestLimit(60, cluster=cluster, now=clock) for _ in range(2))
    async with settling(one, two):
        one.take(ANA, 50)
        two.take(ANA, 50)  # more than the quota, for a moment
        await until(lambda: is_refused(two))
        with suppress(OverLimit):
            one.take(ANA, 1)  # a node learns what is left when it tells what it spent
        await until(lambda: is_refused(one))
        clock.now += 60
        two.take(ANA, 15)
        with pytest.raises(OverLimit):
            two.take(ANA, 15)


class NoCluster(MemoryCluster):
    """A cluster that cannot be reached."""

    async def spend(self, *_: object) -> dict[str, float]:
        raise Unavailable("Redis is down")


async def test_a_node_counts_by_itself_while_the_cluster_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No client is refused because of that, and nothing accumulates."""
    monkeypatch.setattr(ingest_limit, "SPENT_RETRY_SECONDS", 0.01)
    cluster: Cluster = NoCluster()
    limit = IngestLimit(60, cluster=cluster, now=StillClock())
    async with settling(limit):
        for _ in range(6):
            limit.take(ANA, 10)
            await until(lambda: not limit._spent)
        with pytest.raises(OverLimit):
            limit.take(ANA, 1)


# -- the answer ---------------------------------------------------------------------------------


def test_the_answer_says_which_limit_it_was_and_when_to_come_back() -> None:
    """As the draft of the IETF has it: structured fields, one member each."""
    error = over_quota(ClientLimit.INGEST, Quota(1_000, 60.0), 11.2, "too much")
    answer = respond_error(error)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "12"
    assert answer.headers["ratelimit-policy"] == '"ingest";q=1000;w=60'
    assert answer.headers["ratelimit"] == '"ingest";r=0;t=12'
    open_now = OverLimit("x", limit="streams_per_subject", amount=5, seconds=None, retry_after=10)
    answer = respond_error(open_now)
    assert answer.headers["ratelimit-policy"] == '"streams_per_subject";q=5'
    assert answer.headers["ratelimit"] == '"streams_per_subject";r=0'


def test_a_client_is_known_by_its_subject_or_its_address() -> None:
    """A subject cannot pass as an address."""
    assert client_name(ANYONE, "203.0.113.7") == "address 203.0.113.7"
    assert client_name(Principal("address 203.0.113.7")) != "address 203.0.113.7"
    assert client_name(Principal("ana"), "203.0.113.7") == client_name(Principal("ana"))


# -- decisions that cannot be stored ------------------------------------------------------------


class FullIngest:
    """Takes a batch, and later has no room for it; or none from the start."""

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once

    def accept(self, _: DecisionBatch) -> asyncio.Future[Receipt]:
        if self._at_once:
            raise Unavailable("no room")
        done: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(done.set_exception, Unavailable("no database"))
        return done


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_cannot_be_stored_is_given_back(at_once: bool) -> None:
    """Its producer will send it again, as often as needed."""
    limit = IngestLimit(60, now=StillClock())
    ingest = cast(Ingest, FullIngest(at_once=at_once))
    decisions = Decisions(ingest, Sites(), limit=limit)
    batch = cast(DecisionBatch, type("", (), {"decisions": [None] * 40})())
    for _ in range(5):
        with pytest.raises(Unavailable, match=r"^no "):
            await decisions.accept(batch, ANA, ANYONE)
        await asyncio.sleep(0)
    limit.take(ANA, 60)
