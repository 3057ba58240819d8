"""`AsgiConnection`: when it sends, when it skips a payload, and when it gives up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Scope

from routecast.core.access import Principal
from routecast.core.payload import Payload
from routecast.edge.asgi_connection import SEND_SECONDS, AsgiConnection
from routecast.edge.sse import MetricsEvents
from routecast.edge.ws.asgi_route import MetricsSocket
from routecast.errors import BadCredential, RoutecastError, Unavailable
from routecast.instruments import Instruments
from routecast.protocol import CloseCode
from routecast.streaming.connections import ABNORMAL_CLOSURE
from tests.support.running_services import PATIENCE, until

GOODBYE = b"goodbye"


class RecordingPeer:
    """A peer that records the calls of the connection (`peers.Peer`)."""

    def __init__(self, connection: AsgiConnection) -> None:
        self._connection = connection
        self.started = asyncio.Event()
        self.caught_up = 0
        self.closed: int | None = None

    def start(self) -> None:
        self.started.set()

    def receive(self, message: str | bytes) -> None:
        self._connection.reply(b"answer")

    def catch_up(self) -> None:
        self.caught_up += 1
        self._connection.send(Payload(b"newest"))

    def say_goodbye(self, code: CloseCode, reconnect_after_ms: int) -> None:
        self._connection.reply(GOODBYE)

    def close(self, code: int) -> None:
        self.closed = code


def test_compression_is_that_of_another_server() -> None:
    """What it saves is not known for a WebSocket; events are not compressed."""
    assert AsgiConnection("WebSocket", "192.0.2.1").saved_by_compression is None
    assert AsgiConnection("SSE", "192.0.2.1").saved_by_compression == 0


class Client:
    """A client that takes one message for each `read`, and the server's connection to it."""

    def __init__(self) -> None:
        self.connection = AsgiConnection("WebSocket", "192.0.2.1")
        self.peer = RecordingPeer(self.connection)
        self.instruments = Instruments()
        self.taken: list[bytes] = []
        self.comments = 0
        self.gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.ended: tuple[int, bool] | None = None
        self._reads = asyncio.Semaphore(0)

    def read(self, count: int = 1) -> None:
        for _ in range(count):
            self._reads.release()

    async def _send(self, payload: Payload) -> None:
        await self._reads.acquire()
        self.taken.append(payload.body)

    async def _comment(self) -> None:
        self.comments += 1

    @asynccontextmanager
    async def connected(
        self, idle_seconds: float | None = None, send_seconds: float = SEND_SECONDS
    ) -> AsyncIterator[None]:
        async def run() -> None:
            self.ended = await self.connection.run(
                self.peer,
                self.instruments,
                send=self._send,
                listen=self.gone,
                idle=self._comment,
                idle_seconds=idle_seconds,
                send_seconds=send_seconds,
            )

        task = asyncio.create_task(run())
        try:
            async with asyncio.timeout(PATIENCE):
                await self.peer.started.wait()
                yield
                await task
        finally:
            task.cancel()


async def test_one_payload_waits_and_the_newest_follows() -> None:
    """Payloads in between are skipped; answers are not."""
    client = Client()
    connection, peer = client.connection, client.peer
    async with client.connected():
        assert connection.send(Payload(b"1"))
        for number in range(2, 5):
            assert not connection.send(Payload(b"%d" % number))
        assert not connection.has_room()
        connection.receive("?")
        client.read(3)
        await until(lambda: len(client.taken) == 3)
        await until(connection.has_room)
        connection.send(Payload(b"5"))
        client.read()
        await until(lambda: len(client.taken) == 4)
        client.gone.set_result(CloseCode.GOING_AWAY)
    assert client.taken == [b"1", b"answer", b"newest", b"5"]
    assert peer.caught_up == 1
    assert (client.ended, peer.closed) == ((CloseCode.GOING_AWAY, False), CloseCode.GOING_AWAY)


async def test_a_stop_comes_after_the_answers() -> None:
    """The goodbye is last, and later messages of the client are ignored."""
    client = Client()
    connection = client.connection
    async with client.connected():
        connection.send(Payload(b"1"))
        connection.receive("?")
        connection.stop(CloseCode.RESTART, 1_830)
        connection.stop(CloseCode.DONE, 5)
        connection.receive("?")
        client.read(10)
    assert client.taken == [b"1", b"answer", GOODBYE]
    assert client.ended == (CloseCode.RESTART, True)
    assert client.peer.closed == CloseCode.RESTART
    assert connection.reason == "reconnect_after_ms=1830"


async def test_a_client_that_reads_nothing_is_disconnected() -> None:
    """It is disconnected after the send limit, whatever waits for it."""
    client = Client()
    async with client.connected(send_seconds=0.05):
        client.connection.send(Payload(b"1"))
    assert client.ended == (CloseCode.TOO_SLOW, True)
    assert client.instruments.registry.get_sample_value("routecast_send_failures_total") == 1


async def test_a_client_that_reads_slowly_is_kept() -> None:
    """The limit is for each message, and not for all that wait."""
    client = Client()
    async with client.connected(send_seconds=0.5):
        for _ in range(12):
            client.connection.receive("?")
        for _ in range(12):
            await asyncio.sleep(0.05)  # together they take longer than the limit of one
            client.read()
        await until(lambda: len(client.taken) == 12)
        client.gone.set_result(CloseCode.DONE)
    assert client.ended == (CloseCode.DONE, False)


async def test_a_quiet_connection_gets_comments() -> None:
    """A comment is sent each time that nothing else was sent for `idle_seconds`."""
    client = Client()
    async with client.connected(idle_seconds=0.01):
        await until(lambda: client.comments >= 3)
        client.connection.send(Payload(b"1"))
        client.read()
        await until(lambda: client.taken)
        client.gone.set_result(CloseCode.DONE)


async def test_a_connection_is_freed_when_it_ends() -> None:
    """The connection and its peer no longer refer to each other."""
    client = Client()
    async with client.connected():
        client.gone.set_result(CloseCode.DONE)
    assert client.connection.peer is None


async def test_a_connection_ends_when_sending_fails() -> None:
    """In ASGI 2.4, `send` raises OSError if the client has left."""
    client = Client()

    async def fail(_: Payload) -> None:
        raise OSError

    client._send = fail  # type: ignore[method-assign]  # -- the client has left
    async with client.connected():
        client.connection.send(Payload(b"1"))
    assert (client.ended, client.peer.closed) == ((ABNORMAL_CLOSURE, False), ABNORMAL_CLOSURE)
    assert client.instruments.registry.get_sample_value("routecast_send_failures_total") == 1


# -- a credential that ends while the stream opens ------------------------------------------------


class EndingAccess:
    """An access that refuses a client which it has let in (`edge.access.Access`)."""

    def __init__(self, error: RoutecastError) -> None:
        self._error = error

    def require_valid(self, _: Principal) -> None:
        raise self._error


class OpenAdmission:
    """An admission that lets everyone in, and notes the release (`AdmissionControl`)."""

    released = 0

    def __init__(self, access: EndingAccess) -> None:
        self.access = access

    def admit_scope(self, _: Scope, **__: bool) -> tuple[None, str]:
        return None, "192.0.2.1"

    def release(self, _: str, __: Principal) -> None:
        self.released += 1


@pytest.mark.parametrize(
    ("error", "code"), [(BadCredential("revoked"), 4401), (Unavailable("not known"), 1011)]
)
async def test_no_stream_begins_whose_credential_may_have_ended(
    error: RoutecastError, code: int
) -> None:
    """The head is sent by then. Only after 4401 does the client need another credential."""
    admission = OpenAdmission(EndingAccess(error))
    given: Any = (None, admission, Instruments())
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(dict(message))

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"http_version": "1.1", "headers": [], "subprotocols": [], "method": "GET"}
    await MetricsSocket(*given)({"type": "websocket", **scope}, receive, send)
    assert sent[-1] == {"type": "websocket.close", "code": code}
    await MetricsEvents(*given)({"type": "http", **scope}, receive, send)
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert admission.released == 2
