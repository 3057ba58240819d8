"""Clients of routecast.v1 that are written to together: when, and when they are told apart."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from routecast.core.message import JSON, Message
from routecast.edge.ws import batch as module
from routecast.edge.ws.batch import V1Connection
from routecast.edge.ws.connection import OPEN
from routecast.protocol import Position, SnapshotOut, Source
from routecast.streaming.channels import Cohort

CLIENTS = 20


def message(number: int) -> Message:
    """Return a message that is worth compressing."""
    data = {"total_decisions": number, "models": "abc" * 400}
    return Message(
        JSON,
        SnapshotOut(
            id="",
            position=Position("e", number),
            source=Source.LIVE,
            age_ms=0,
            data=data,
            timestamp="",
        ),
    )


@contextmanager
def connections(count: int) -> Iterator[list[V1Connection]]:
    """Return connections after their handshake, that agreed on compression with memory."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            ours, theirs = (stack.enter_context(each) for each in socket.socketpair())
            theirs.setblocking(False)
            each = object.__new__(V1Connection)
            each._ready, each._behind, each._deflates, each._remembers = True, False, True, True
            each._rider, each._before, each._code = b"", None, OPEN
            each._descriptor = ours.fileno()
            each.shard = None
            each._subscriber = cast(Any, SimpleNamespace(changed=lambda: None))
            made.append(each)
        yield made


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each batch of compressed clients that was planned."""
    sizes: list[int] = []
    plan = module._plan

    def note(members: Any) -> Any:
        made = plan(members)
        sizes.extend(len(some._connections) for some in made.in_step)
        return made

    monkeypatch.setattr(module, "_plan", note)
    return sizes


def cohort_of(members: list[V1Connection], identity: str) -> Cohort:
    cohort = Cohort(V1Connection, None, JSON, identity)
    cohort.members = cast(Any, dict.fromkeys(members))
    return cohort


def send(number: int, cohort: Cohort) -> None:
    made = message(number)
    assert V1Connection.send_all(made, made.under(cohort.identity), cohort) == []


async def test_after_a_ping_they_are_a_batch_again(plans: list[int]) -> None:
    """The message that takes the ping along goes to each of them; the next ones do not."""
    with connections(CLIENTS) as members:
        cohort = cohort_of(members, "main")
        for each in members:
            each._subscriber = cast(
                Any, SimpleNamespace(changed=lambda: setattr(cohort, "known", None))
            )
            each.shard = cast(Any, SimpleNamespace(known=None))
        send(1, cohort)
        V1Connection.queue_ping(cast(Any, SimpleNamespace(connections=members)))
        for number in (2, 3, 4):
            send(number, cohort)
    assert plans == [CLIENTS, CLIENTS]


async def test_two_subscriptions_of_a_connection_are_planned_once(plans: list[int]) -> None:
    """Each takes over what was sent last, if that is one message for all."""
    with connections(CLIENTS) as members:
        one, other = cohort_of(members, "one"), cohort_of(members, "other")
        for number in range(10):
            send(number, one)
            send(number, other)
            await asyncio.sleep(0)
    assert plans == [CLIENTS, CLIENTS]
