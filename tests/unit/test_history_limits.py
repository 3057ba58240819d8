"""Limits of histories: the number for each client, and the bytes of all."""

import asyncio
from contextlib import AsyncExitStack, suppress

import httpx2
import pytest
from fastapi import FastAPI

from routecast.core.history import HISTORY_FIELDS, HistoryQuery, history_query
from routecast.core.time_series import HistoryResponse
from routecast.edge.http.history import history_router
from routecast.edge.problem import on_routecast_error
from routecast.errors import RoutecastError, Unavailable
from routecast.streaming import history_limits as module
from routecast.streaming.history_limits import HistoryLimits, most_bytes
from tests.support.running_services import PATIENCE

LARGE = history_query(points=2000, group_by="model", fields=HISTORY_FIELDS)


def small(number: int) -> HistoryQuery:
    return history_query(points=1 + number)


async def test_one_client_has_a_limited_number_of_histories() -> None:
    """Different ones count; equal ones are read once, so many clients at one address may ask."""
    admission = HistoryLimits()
    async with AsyncExitStack() as under_way:
        for number in range(module.MAX_EACH):
            for _ in range(20):
                await under_way.enter_async_context(admission.enter("a", small(number)))
        with pytest.raises(Unavailable, match="at most 8 different histories of one address"):
            await under_way.enter_async_context(admission.enter("a", small(100)))
        await under_way.enter_async_context(admission.enter("b", small(100)))
    async with admission.enter("a", small(100)):
        assert admission._asked.keys() == {"a"}
    assert not admission._asked


async def test_addresses_of_one_subnet_are_one_client_over_http() -> None:
    """A client with one address of a /64 has all of them."""
    asked, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def answer(query: HistoryQuery) -> HistoryResponse:
        asked.release()
        await go_on.wait()
        raise Unavailable("enough")

    app = FastAPI()
    app.include_router(history_router(answer, HistoryLimits()))
    app.add_exception_handler(RoutecastError, on_routecast_error)

    async def ask(number: int, address: str) -> str:
        transport = httpx2.ASGITransport(app, client=(address, 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answered = await http.get("/v1/history", params={"points": 1 + number})
            detail: str = answered.json()["detail"]
            return detail

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as asking:
        for number in range(module.MAX_EACH):
            asking.create_task(ask(number, f"2001:db8::{number:x}"))
        for _ in range(module.MAX_EACH):
            await asked.acquire()
        assert "at most 8 different" in await ask(100, "2001:db8::ffff")
        asking.create_task(ask(100, "2001:db8:0:1::1"))
        await asked.acquire()
        go_on.set()


async def test_large_answers_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one client leave room for others; the end of one makes room for the next."""
    monkeypatch.setattr(module, "MAX_BYTES_EACH", 2 * most_bytes(LARGE))
    admission = HistoryLimits()
    let_go, inside = asyncio.Event(), []

    async def ask(client: str) -> None:
        async with admission.enter(client, LARGE):
            inside.append(client)
            await let_go.wait()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask("greedy")) for _ in range(3)]
        tasks.append(group.create_task(ask("other")))
        while len(inside) < 3:  # noqa: ASYNC110  # -- two of one client, and the other's
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert sorted(inside) == ["greedy", "greedy", "other"]
        let_go.set()
    assert inside.count("greedy") == 3
    assert not admission._bytes.total()


async def test_a_client_that_waits_too_long_is_refused_with_a_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that gives up while it waits leaves nothing behind."""
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", most_bytes(LARGE))
    monkeypatch.setattr(module, "MAX_BYTES_EACH", most_bytes(LARGE))
    admission = HistoryLimits()
    async with admission.enter("a", LARGE):
        monkeypatch.setattr(module, "ROOM_WAIT_SECONDS", 0.01)
        with pytest.raises(Unavailable) as refused:
            async with admission.enter("b", LARGE):
                raise AssertionError("there is no room")
        assert refused.value.retry_after == 5
        monkeypatch.setattr(module, "ROOM_WAIT_SECONDS", 30)
        waiting = asyncio.create_task(admission.enter("c", LARGE).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
    async with admission.enter("d", LARGE):
        assert admission._waiting == 0
