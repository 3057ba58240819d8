"""The Python client and its token: scripted servers announce its expiry, and refuse it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from routecast.client import Health, Metrics, State, Unauthenticated, connect, stream
from routecast.client.auth import Token
from routecast.protocol import Refresh, Subscribe
from routecast.retry import Backoff
from tests.support.scripted_server import ScriptedConnection, scripted, snapshot, until
from tests.support.wire import ANSWERS, GOLDEN

WAIT_SECONDS = 20.0
EXPIRING = GOLDEN["token-expiring"]["message"]

Row = dict[str, Any]


async def take(metrics: AsyncIterator[Metrics]) -> Metrics:
    """Return the next metrics."""
    async with asyncio.timeout(WAIT_SECONDS):
        return await anext(metrics)


async def take_until(metrics: AsyncIterator[Metrics], total: int) -> None:
    """Take metrics until they have this total; older ones may be skipped."""
    while (await take(metrics)).total_decisions != total:
        pass


def token_of(row: Row) -> Token:
    """Return the token of a row of the table: a text or a function."""
    numbers = count(1)
    if row["token"] == "text":
        return "t1"
    return (lambda: "t1") if row["token"] == "same" else (lambda: f"t{next(numbers)}")


class Script:
    """A server that sends a document on its first connection, and then what the event says.

    `shown` has the credential of each connection, `heard` the messages after the first `subscribe`.
    """

    def __init__(self, event: str) -> None:
        self.event = event
        self.shown: list[str] = []
        self.heard: list[Any] = []

    async def __call__(self, connection: ScriptedConnection) -> None:
        assert connection.socket.request
        self.shown.append(connection.socket.request.headers["Authorization"])
        await connection.hello()
        assert isinstance(await connection.receive(), Subscribe)
        if self.event == "refused again" and len(self.shown) == 2:
            await connection.close(4401)
            return
        await connection.send(snapshot(len(self.shown), {"total_decisions": len(self.shown)}))
        if self.event == "token_expiring":
            await connection.send(EXPIRING)
            await connection.send(snapshot(2, {"total_decisions": 2}))
        elif len(self.shown) == 1:
            await connection.close(4401, "the token has expired")
        try:
            while True:
                self.heard.append(await connection.receive())
        except ConnectionClosed:
            return


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each delay longer than a test, so that what comes at once is told from what waits."""
    monkeypatch.setattr(Backoff, "next", lambda _, least=0.0: least + 10 * WAIT_SECONDS)


async def outcome(row: Row, script: Script) -> str:
    """Return what a client does, in the words of the table."""
    healths: list[Health] = []
    async with (
        scripted(script) as server,
        connect(server.url, token=token_of(row), on_change=healths.append) as client,
    ):
        feed = await client.subscribe()
        if row["event"] == "token_expiring":
            # `unsubscribe` comes after any answer to what the server sent before this document.
            await take_until(feed, 2)
            await feed.close()
            await until(lambda: bool(script.heard))
            return "refresh" if isinstance(script.heard[0], Refresh) else "nothing"
        if row["event"] == "refused again":
            await until(lambda: len(lost(healths)) == 2)
            return "retry" if (lost(healths)[1].retry_in or 0) > WAIT_SECONDS else "at_once"
        try:
            await take_until(feed, 2)
        except Unauthenticated:
            return "final"
        return "at_once"


def lost(healths: list[Health]) -> list[Health]:
    """Return the health after each loss of the connection."""
    return [health for health in healths if health.state is State.RECONNECTING]


@pytest.mark.parametrize("row", ANSWERS["tokens"], ids=lambda r: f"{r['token']} {r['event']}")
async def test_a_stream_does_with_its_token_what_the_table_says(row: Row) -> None:
    """A new token replaces the old one on the open connection, or on the next one."""
    script = Script(row["event"])
    assert await outcome(row, script) == row["does"]
    connections = 2 if row["does"] in ("at_once", "retry") else 1
    assert script.shown == [f"Bearer t{number + 1}" for number in range(connections)]
    if row["does"] == "refresh":
        assert script.heard[0] == Refresh("t2")


async def test_a_token_is_refreshed_each_time_that_it_expires() -> None:
    """A function that returns what was sent already makes no further `refresh`."""
    tokens = iter(["t1", "t2", "t2", "t3"])
    heard: list[Any] = []

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        await connection.send(EXPIRING)
        heard.append(await connection.receive())
        await connection.send(EXPIRING, EXPIRING)
        heard.append(await connection.receive())
        await connection.wait_closed()

    async with (
        scripted(script) as server,
        connect(server.url, token=lambda: next(tokens)) as client,
    ):
        await client.subscribe()
        await until(lambda: len(heard) == 2)
    assert heard == [Refresh("t2"), Refresh("t3")]


@pytest.mark.parametrize("error", [ConnectionError("away"), KeyError("token")])
async def test_an_error_of_the_function_does_not_end_an_open_stream(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """While the old token is good the stream goes on; the log says that there is no new one."""
    answers: Iterator[Any] = iter(["t1", error])

    def token() -> str:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return str(found)

    async with (
        scripted(Script("token_expiring")) as server,
        connect(server.url, token=token) as client,
    ):
        await take_until(await client.subscribe(), 2)
        assert client.health.state is State.CONNECTED
    assert f"there is no new token yet ({type(error).__name__}" in caplog.text


async def test_after_an_oserror_of_the_function_a_refused_stream_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The provider of tokens may be away for a moment."""
    monkeypatch.setattr(Backoff, "next", lambda _, least=0.0: least)
    answers: Iterator[Any] = iter(["t1", *[ConnectionError("away")] * 3, "t2"])

    def token() -> str:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return str(found)

    script = Script("refused")
    async with scripted(script) as server, connect(server.url, token=token) as client:
        await take_until(await client.subscribe(), 2)
    assert script.shown == ["Bearer t1", "Bearer t2"]


async def test_a_refresh_that_is_refused_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The server's reason is in the log; the stream goes on until the old token expires."""

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.receive()
        await connection.send(EXPIRING)
        assert isinstance(await connection.receive(), Refresh)
        error = {"type": "error", "code": "bad_request", "retryable": False}
        await connection.send({**error, "message": "token: it is another subject's"})
        await connection.send(snapshot(1, {"total_decisions": 1}))
        await connection.wait_closed()

    numbers = count(1)
    async with (
        scripted(script) as server,
        connect(server.url, token=lambda: f"secret{next(numbers)}") as client,
    ):
        await take(await client.subscribe())
    assert "token: it is another subject's" in caplog.text
    assert "secret" not in caplog.text


async def test_the_default_stream_reconnects_with_a_new_token() -> None:
    """It cannot refresh a token, so the server closes it when the token expires."""
    numbers = count(1)
    shown = []

    async def script(connection: ScriptedConnection) -> None:
        assert connection.socket.request
        shown.append(connection.socket.request.headers["Authorization"])
        await connection.send({"total_decisions": len(shown), "timestamp": "now"})
        if len(shown) == 1:
            await connection.close(4401)
        await connection.wait_closed()

    async with (
        scripted(script, protocols=()) as server,
        connect(server.url, token=lambda: f"t{next(numbers)}", protocols=()) as client,
    ):
        await take_until(await client.subscribe(), 2)
    assert shown == ["Bearer t1", "Bearer t2"]


async def test_a_fixed_token_that_expires_is_reported_with_advice() -> None:
    """The text says what happened and what to do, and has no token in it."""

    async def script(connection: ScriptedConnection) -> None:
        await connection.hello()
        await connection.close(4401, "the token has expired")

    async with scripted(script) as server:
        with pytest.raises(Unauthenticated) as raised:
            await take(stream(server.url, token="secret"))
    assert str(raised.value) == (
        "closed with 4401: the token has expired; give another token or API key, as `token` in a "
        "program, in ROUTECAST_API_KEY for a command; a function as `token` can renew it"
    )
