"""Renders: views are rendered between other work, in a fair order."""

import asyncio
from collections.abc import AsyncIterator
from functools import cache

import pytest

from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.breakdown import CELLS_PER_STEP, STEPS_AT_ONCE
from routecast.core.delta import Delta
from routecast.core.rollup import Cells
from routecast.core.view import View
from routecast.errors import Unavailable
from routecast.protocol import Position
from routecast.services.renders import MAX_WAITING_PER_CLIENT, MAX_WAITING_VIEWS
from tests.support.clock import HeldClock
from tests.support.decisions import NOW, cells_of, kept
from tests.support.fanout import FanoutHarness
from tests.support.running_services import PATIENCE, running

# Rendering a view of SERIES strategies takes TURNS turns of the event loop.
TURNS = 5
SERIES = TURNS * STEPS_AT_ONCE * CELLS_PER_STEP
GREEDY, MODEST = "192.0.2.1", "192.0.2.2"


@pytest.fixture
async def fanout(
    store: SqliteStore, cache: MemoryCache, clock: HeldClock
) -> AsyncIterator[FanoutHarness]:
    """Live state with SERIES series."""
    made = FanoutHarness(store, cache, clock)
    made.snapshot.apply(Delta(Position("e", 1), many_cells(), NOW))
    async with running(made.renders.run()):
        yield made


@cache
def many_cells() -> Cells:
    return cells_of([kept(number, strategy=f"s{number}") for number in range(SERIES)])


def view(number: int = 0) -> View:
    """Return a view that differs with each number."""
    return View(provider=frozenset({"gemini", f"p{number}"}))


async def ready(fanout: FanoutHarness, asked: View, client: str = MODEST) -> None:
    """Return when a view is ready."""
    done = asyncio.Event()
    fanout.renders.request(asked, client, done.set)
    async with asyncio.timeout(PATIENCE):
        await done.wait()


async def test_others_have_turns_while_a_view_is_made(fanout: FanoutHarness) -> None:
    """A view with many series is rendered in steps, and its document is available after that."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    assert not (await fanout.reader.encoded_documents({view(): MODEST}))
    async with running(count()):
        await ready(fanout, view())
    assert turns >= TURNS
    assert view() in (await fanout.reader.encoded_documents({view(): MODEST}))


async def test_equal_views_are_made_once(fanout: FanoutHarness) -> None:
    """All clients that asked for it are called when it is ready."""
    await asyncio.gather(*(ready(fanout, view(), client) for client in (MODEST, GREEDY) * 20))
    assert fanout.count("renders") == 0  # it is ready; the document is encoded when it is read


async def test_a_client_that_used_its_time_comes_last(fanout: FanoutHarness) -> None:
    """The order of requests does not matter, and the plain view waits for no one."""
    fanout.budget.charge(GREEDY, 0.27, fanout.timers.now())
    order: list[str] = []
    done = asyncio.Event()
    fanout.renders.request(view(1), GREEDY, lambda: (order.append("greedy"), done.set()))
    fanout.renders.request(view(2), MODEST, lambda: order.append("modest"))
    fanout.renders.request(View(), GREEDY, lambda: order.append("plain"))
    await fanout.settle()
    assert order == ["plain", "modest"]
    await fanout.go(fanout.budget.wait(GREEDY, fanout.timers.now()))
    assert done.is_set()
    assert order == ["plain", "modest", "greedy"]


async def test_a_view_is_paid_by_any_client_that_waits_for_it(fanout: FanoutHarness) -> None:
    """A client without rendering time does not delay another one that wants the same view."""
    fanout.budget.charge(GREEDY, 100, fanout.timers.now())
    paid = fanout.budget.wait(GREEDY, fanout.timers.now())
    fanout.renders.request(view(), GREEDY, lambda: None)
    await fanout.settle()
    assert fanout.renders._waiting
    await ready(fanout, view(), MODEST)
    assert fanout.budget.wait(GREEDY, fanout.timers.now()) == paid
    assert MODEST in fanout.budget._paid


async def test_an_equal_request_is_answered_once(fanout: FanoutHarness) -> None:
    """A client that waits for long takes no more memory with each request."""
    told: list[str] = []
    for name in ("one", "one", "other"):
        fanout.renders.request(view(), MODEST, told.append, name)
    await fanout.settle()
    assert told == ["one", "other"]


async def test_no_client_takes_all_places(fanout: FanoutHarness) -> None:
    """A client that asks for too many views is refused, with a time to try again."""
    for number in range(MAX_WAITING_PER_CLIENT):
        fanout.renders.request(view(number), GREEDY, lambda: None)
    with pytest.raises(Unavailable, match="too many views") as refused:
        fanout.renders.request(view(MAX_WAITING_PER_CLIENT), GREEDY, lambda: None)
    assert refused.value.retry_after >= 1
    fanout.renders.request(view(0), GREEDY, lambda: None)  # the same again takes no place
    fanout.renders.request(View(), GREEDY, lambda: None)
    await ready(fanout, view(MAX_WAITING_PER_CLIENT), MODEST)


async def test_the_number_of_places_is_limited(fanout: FanoutHarness) -> None:
    """The limit is for all clients together."""
    for number in range(MAX_WAITING_VIEWS):
        fanout.renders.request(view(number), f"192.0.2.{number}", lambda: None)
    with pytest.raises(Unavailable, match="too many views"):
        fanout.renders.request(view(MAX_WAITING_VIEWS), MODEST, lambda: None)


async def test_a_request_costs_its_client(fanout: FanoutHarness) -> None:
    """Without rendering time its document is refused, but not that of the plain view."""
    assert (await fanout.renders.encoded_document(view(), GREEDY)).position == Position("e", 1)
    assert GREEDY in fanout.budget._paid
    fanout.budget.charge(GREEDY, 100, fanout.timers.now())
    with pytest.raises(Unavailable, match="rendering time") as refused:
        await fanout.renders.encoded_document(view(), GREEDY)
    assert refused.value.retry_after > 60
    assert (await fanout.renders.encoded_document(View(), GREEDY)).position == Position("e", 1)
    assert (await fanout.renders.encoded_document(view(), MODEST)).position == Position("e", 1)


async def test_a_view_without_a_source_leaves_the_queue(fanout: FanoutHarness) -> None:
    """It keeps no place, and its client gets the error document."""
    fanout.source = None
    await ready(fanout, view())
    assert not fanout.renders._waiting
