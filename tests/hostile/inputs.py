"""Hostile inputs. Each is a coroutine that attacks once; `attack` repeats all of them at once.

Every input has its own address in 127.0.0.0/8, so that it counts as a client.
"""

import asyncio
import base64
import contextlib
import gzip
import itertools
import json
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Final, NamedTuple

from tests.hostile import traffic
from tests.support.hostile_requests import CORPUS, VARIANTS
from tests.support.raw import TEXT, frame

GZIP: Final = "Content-Encoding: gzip"
ANSWER_SECONDS: Final = 30.0
COPIES: Final = 4  # of each expensive body, all different
_STARTED: Final = time.time()


class Target(NamedTuple):
    """A server's port, and the address that the attack comes from."""

    port: int
    address: str


@contextlib.asynccontextmanager
async def connect(
    target: Target,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect from the target's address."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", target.port, local_addr=(target.address, 0)
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(target: Target, data: bytes) -> bytes:
    """Send one request; return all bytes up to the end of the answer's head."""
    async with connect(target) as (reader, writer):
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(ANSWER_SECONDS):
            return await reader.readuntil(b"\r\n\r\n")


async def post(target: Target, body: bytes, *lines: str) -> bytes:
    """Send a batch."""
    return await exchange(target, traffic.request("/v1/decisions", body, *lines))


# -- HTTP ---------------------------------------------------------------------------------------


async def endless_trailers(target: Target) -> None:
    """Send trailers without end, after a chunked body."""
    path = random.choice(["/sse/metrics", "/health", "/v1/decisions"])
    method = "POST" if path == "/v1/decisions" else "GET"
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    async with connect(target) as (_, writer):
        writer.write(head.encode())
        for _ in range(20_000):
            writer.write(b"a:\r\n" * 1_000)
            await writer.drain()


async def endless_chunks(target: Target) -> None:
    """Send chunks of one byte with extensions, without end."""
    head = b"POST /v1/decisions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with connect(target) as (_, writer):
        writer.write(head)
        for _ in range(2_000):
            writer.write(b"1;name=value\r\nx\r\n" * 500)
            await writer.drain()


async def head_of_a_stream(target: Target) -> None:
    """Ask for a stream with HEAD and a request behind it, and disconnect."""
    async with connect(target) as (_, writer):
        writer.write(b"HEAD /sse/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2)
        await writer.drain()


async def pipelined_behind_a_stream(target: Target) -> None:
    """Ask for a stream with requests behind it, and disconnect."""
    async with connect(target) as (reader, writer):
        writer.write(b"GET /sse/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 5)
        await reader.readuntil(b"\r\n\r\n")


async def announced_bodies(target: Target) -> None:
    """Open many connections that announce a body and send none of it."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(250):
            _, writer = await stack.enter_async_context(connect(target))
            writer.write(b"POST /v1/decisions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            writer.write(b"Content-Length: 65536\r\n\r\n")
        await asyncio.sleep(5)


async def large_body_held_back(target: Target) -> None:
    """Send almost all of a large body, and then nothing."""
    async with connect(target) as (_, writer):
        writer.write(b"POST /v1/decisions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        writer.write(b"Content-Length: 16000000\r\n\r\n" + b" " * 8_000_000)
        await writer.drain()
        await asyncio.sleep(5)


async def offered_upgrade(target: Target) -> None:
    """Offer an upgrade that no server accepts, with a body that looks like a request."""
    hidden = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    answer = await post(target, hidden, "Connection: Upgrade", "Upgrade: h2c")
    assert answer.startswith(b"HTTP/1.1 4"), answer


async def corpus(target: Target) -> None:
    """Send one of the hostile requests of the HTTP tests."""
    case, variant = random.choice(CORPUS), random.choice(VARIANTS)
    async with connect(target) as (reader, writer):
        for piece in case.pieces(f"127.0.0.1:{target.port}", variant):
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await reader.read(65_536)


async def foreign_host(target: Target) -> None:
    """Use a foreign name that leads to this machine."""
    answer = await exchange(target, b"GET /health HTTP/1.1\r\nHost: rebind.example\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 421"), answer


async def bad_requests(target: Target) -> None:
    """Send many requests of which each would be a log line."""
    for _ in range(50):
        await exchange(target, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")


# -- decisions ----------------------------------------------------------------------------------


async def old_minutes(target: Target) -> None:
    """Send decisions in 2,000 old minutes, equal ones and others."""
    await post(target, _old_minutes(2_000, random.choice([0, 0, 3])), GZIP)


async def as_many_old_minutes_as_fit(target: Target) -> None:
    """Send the largest batch, each decision in another minute, from one of several ranges."""
    await post(target, _old_minutes(50_000, 35 * random.randrange(COPIES)), GZIP)


async def all_series_in_a_minute(target: Target) -> None:
    """Send a decision of each series, in one of several minutes."""
    for body in _all_series(random.randrange(COPIES)):
        await post(target, body, GZIP)


async def sums_beyond_64_bits(target: Target) -> None:
    """Send the largest costs and tokens."""
    await post(target, _dear(), GZIP)


async def unknown_models(target: Target) -> None:
    """Send models that no price table has, with tokens."""
    await post(target, _unknown_models(random.randrange(COPIES)), GZIP)


# Bodies are made once, before the attack. To make them all the time would take processor time
# from the server and its other clients on this machine.


@cache
def _old_minutes(count: int, days_ago: int) -> bytes:
    return traffic.old_minutes(count, _STARTED - days_ago * traffic.DAY)


@cache
def _all_series(variant: int) -> list[bytes]:
    return list(traffic.batches(traffic.every_other_series(_STARTED - 600 * variant)))


@cache
def _dear() -> bytes:
    dear = {"cost": 9000, "input_tokens": 10**9, "output_tokens": 10**9, "provider": "p1"}
    return traffic.packed([{**dear, "strategy": f"s{number % 2}"} for number in range(50_000)])


@cache
def _unknown_models(variant: int) -> bytes:
    tokens = {"provider": "openrouter", "strategy": "s1", "input_tokens": 10, "output_tokens": 10}
    names = (f"unknown/{variant}-{number}" for number in range(50_000))
    return traffic.packed([{**tokens, "model": name} for name in names])


def prepare() -> None:
    """Make the bodies that take long to make."""
    _dear()
    for days in (0, 3):
        _old_minutes(2_000, days)
    for variant in range(COPIES):
        _old_minutes(50_000, 35 * variant)
        _all_series(variant)
        _unknown_models(variant)


async def names_over_the_limit(target: Target) -> None:
    """Send new names and new projects, with known and with new ids."""
    tag = os.urandom(4).hex()
    some = [
        {"strategy": f"{tag}-{n}", "provider": "p1", "project": f"{tag}{n % 7}", "id": f"{n}"}
        for n in range(2_000)
    ]
    await post(target, traffic.packed(some), GZIP)


async def broken_lines(target: Target) -> None:
    """Send bodies whose errors take long to find."""
    body = random.choice(
        [
            b"x\n" * 99_000,
            b'{"strategy":"a","provider":"b","z":' * 49_000,
            b'{"strategy":"a","provider":"b","cost":1e999}\n' * 50_000,
            b'{"strategy":"a","provider":"b","confidence":1e-320}\n' * 50_000,
            b'[{"z":' + b"[" * 2_000 + b"]" * 2_000 + b"}]",
        ]
    )
    kind = "Content-Type: application/x-ndjson"
    await post(target, gzip.compress(body), GZIP, kind)


# -- documents ----------------------------------------------------------------------------------


async def different_documents(target: Target) -> None:
    """Ask for views that no other client has, one after the other."""
    for number in range(20):
        query = f"strategy=s1&strategy=x{random.randrange(10**9)}-{number}&window=1h"
        await exchange(
            target, f"GET /routing/metrics?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        )


@contextlib.asynccontextmanager
async def subscriber(
    target: Target,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a WebSocket with routecast.v1."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = [
        "GET /ws/metrics HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: routecast.v1.json",
    ]
    async with connect(target) as (reader, writer):
        writer.write("\r\n".join([*head, "", ""]).encode())
        await reader.readuntil(b"\r\n\r\n")
        yield reader, writer


def message(**fields: object) -> bytes:
    """Return a client's message as a frame."""
    return frame(TEXT, json.dumps(fields).encode())


def subscribe(identity: str, **asked: object) -> bytes:
    """Return a subscription to a view that no other client has."""
    chosen = {"strategy": ["s1", f"x{random.randrange(10**9)}"]}
    return message(type="subscribe", id=identity, filter=chosen, **asked)


async def many_views_on_one_connection(target: Target) -> None:
    """Subscribe to sixteen different views, ten times a second."""
    async with subscriber(target) as (reader, writer):
        for number in range(16):
            fields = ["total_decisions", "latency_ms", "models", "rate"]
            writer.write(subscribe(str(number), interval=0.1, fields=fields, window="1h"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while await reader.read(1 << 20):
                    pass


async def new_views_all_the_time(target: Target) -> None:
    """Open many connections, each with a new view every half second."""
    async with contextlib.AsyncExitStack() as stack:
        writers = []
        for _ in range(40):
            _, writer = await stack.enter_async_context(subscriber(target))
            writers.append(writer)
        for number in range(16):
            for writer in writers:
                writer.write(subscribe(str(number), interval=60))
            await asyncio.sleep(0.5)


async def large_histories_not_read(target: Target) -> None:
    """Ask for large histories over HTTP and WebSocket, and do not read them."""
    asked = {"points": 2_000, "group_by": "model", "from": "2026-01-01T00:00:00Z"}
    fields = ["count", "cost", "avg_cost", "errors", "avg_confidence", "input_tokens"]
    query = "&".join(f"{name}={value}" for name, value in asked.items())
    path = f"/v1/history?{query}&fields={','.join(fields)}"
    async with contextlib.AsyncExitStack() as stack:
        for number in range(20):
            if number % 2:
                _, writer = await stack.enter_async_context(connect(target))
                writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            else:
                _, writer = await stack.enter_async_context(subscriber(target))
                writer.write(message(type="history", id="h", fields=fields, **asked))
        await asyncio.sleep(8)


# Seconds between two attacks of each kind. Together they keep the server busy, and leave some
# processor time for the clients that behave well.
EVERY: Final[dict[Callable[[Target], Awaitable[None]], float]] = {
    endless_trailers: 2,
    endless_chunks: 5,
    head_of_a_stream: 0.2,
    pipelined_behind_a_stream: 0.5,
    announced_bodies: 1,
    large_body_held_back: 2,
    offered_upgrade: 0.5,
    corpus: 0.2,
    foreign_host: 1,
    bad_requests: 2,
    old_minutes: 2,
    as_many_old_minutes_as_fit: 20,
    all_series_in_a_minute: 20,
    sums_beyond_64_bits: 30,
    unknown_models: 20,
    names_over_the_limit: 5,
    broken_lines: 5,
    different_documents: 2,
    many_views_on_one_connection: 1,
    new_views_all_the_time: 2,
    large_histories_not_read: 5,
}


async def attack(port: int) -> None:
    """Repeat all attacks until cancelled."""
    async with asyncio.TaskGroup() as group:
        for number, (attempt, seconds) in enumerate(EVERY.items(), 1):
            group.create_task(_repeat(attempt, Target(port, f"127.0.1.{number}"), seconds))


async def _repeat(
    attempt: Callable[[Target], Awaitable[None]], target: Target, seconds: float
) -> None:
    for _ in itertools.count():
        # The server may close the connection or refuse the request.
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            await attempt(target)
        await asyncio.sleep(seconds * random.uniform(0.5, 1.5))
