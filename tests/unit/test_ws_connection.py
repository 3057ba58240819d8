"""A WebSocket connection on its transport: what each event does in each of its states."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.frames import CloseCode as WireCode
from websockets.uri import parse_uri

from routecast.adapters.clock import SystemTimers
from routecast.core.access import ANYONE, Principal, Scope
from routecast.core.default_session import DefaultSession
from routecast.core.message import Encoding
from routecast.core.payload import Payload
from routecast.core.sites import Sites
from routecast.edge.access import MAX_VERIFYING_OF_ADDRESS, Access, CookieIn, TicketIn
from routecast.edge.admission import AdmissionControl
from routecast.edge.ws.connection import (
    NEXT_STATES,
    PROGRESS_BYTES,
    ConnectionState,
    WebSocketConnection,
    WebSocketEdge,
)
from routecast.errors import BadCredential, Unavailable
from routecast.instruments import Instruments
from routecast.ports import Connection
from routecast.protocol import CloseCode
from routecast.services.authenticator import Authenticator
from routecast.services.renders import Renders
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.heartbeat import PING_SECONDS, Heartbeat
from routecast.streaming.peers import Peer, Peers
from tests.support.running_services import PATIENCE, until

LARGE = Payload(b"x" * 4_000_000)


class RecordingPeer:
    """A peer that records the calls of the connection (`peers.Peer`)."""

    def __init__(self, manager: ConnectionManager, connection: Connection) -> None:
        self._manager = manager
        self._connection = connection
        self.received: list[str | bytes] = []
        self.caught_up = 0
        self.closed: int | None = None

    def start(self) -> None:
        self._manager.connect(self._connection)

    def receive(self, message: str | bytes) -> None:
        self.received.append(message)

    def catch_up(self) -> None:
        self.caught_up += 1

    def say_goodbye(self, code: CloseCode, reconnect_after_ms: int) -> None:
        """Say nothing."""

    def close(self, code: int) -> None:
        self.closed = code
        self._manager.disconnect(self._connection, code)


class RecordingPeers(Peers):
    """Makes peers that record their calls."""

    def __init__(self, manager: ConnectionManager) -> None:
        self.manager = manager

    def peer(
        self,
        connection: Connection,
        session: DefaultSession,
        encoding: Encoding | None,
        principal: Principal = ANYONE,
    ) -> Peer:
        return RecordingPeer(self.manager, connection)


class Client:
    """A client, and the server's connection to it."""

    def __init__(
        self, edge: WebSocketEdge, connection: WebSocketConnection, reader: socket.socket
    ) -> None:
        self.edge = edge
        self.connection = connection
        self._socket = reader
        self._protocol = ClientProtocol(parse_uri("ws://localhost/ws/metrics"), max_size=None)

    @property
    def peer(self) -> RecordingPeer:
        return cast(RecordingPeer, self.connection.peer)

    async def upgrade(self) -> None:
        """Do the WebSocket handshake."""
        self.request()
        await self.read(1)

    def request(self, **more: str) -> None:
        """Have the server get the request of the handshake, with more fields."""
        request = self._protocol.connect()
        request.headers.update(more)
        fields = [
            (name.lower().encode(), value.encode()) for name, value in request.headers.raw_items()
        ]
        self._protocol.send_request(request)
        self._protocol.data_to_send()
        self.connection.upgrade("GET", b"/ws/metrics", fields, "192.0.2.1")

    async def read(self, count: int) -> list[Any]:
        """Return the next events, at least `count` of them."""
        loop, events = asyncio.get_running_loop(), []
        async with asyncio.timeout(PATIENCE):
            while len(events) < count:
                data = await loop.sock_recv(self._socket, 2**16)
                if not data:
                    break
                self._protocol.receive_data(data)
                events += self._protocol.events_received()
        return events

    async def send(self, act: Callable[[ClientProtocol], None]) -> None:
        """Send the bytes that a call makes the protocol send."""
        act(self._protocol)
        data = b"".join(self._protocol.data_to_send())
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def fill(self) -> None:
        """Make the server send more than the socket holds."""
        self.connection.send(LARGE)
        await until(lambda: state_of(self.connection) is ConnectionState.FULL)


def state_of(connection: WebSocketConnection) -> ConnectionState:
    return connection._state


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A client before its handshake."""
    instruments = Instruments()
    manager = ConnectionManager(instruments, limit=10)
    admits_all = cast(Renders, type("", (), {"admit": lambda *_: None})())
    admission = AdmissionControl(manager, admits_all, interval=5, sites=Sites(), max_per_address=0)
    edge = WebSocketEdge(
        RecordingPeers(manager), admission, Heartbeat(SystemTimers()), instruments, compress=False
    )
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport, connection = await asyncio.get_running_loop().connect_accepted_socket(
        edge.protocol, ours
    )
    yield Client(edge, connection, theirs)
    transport.abort()
    theirs.close()
    await until(lambda: state_of(connection) is ConnectionState.CLOSED)


def test_every_state_leads_to_the_closed_one() -> None:
    """The closed state leads to none, and no state leads back to the first one."""
    assert set(NEXT_STATES) == set(ConnectionState)
    for state in ConnectionState:
        assert (ConnectionState.CLOSED in NEXT_STATES[state]) is (
            state is not ConnectionState.CLOSED
        )
        assert ConnectionState.CONNECTING not in NEXT_STATES[state]
    assert NEXT_STATES[ConnectionState.CLOSING] == {ConnectionState.CLOSED}


async def test_a_full_socket_is_skipped_until_it_has_drained(client: Client) -> None:
    """The peer is called once after that, if a payload was skipped."""
    await client.upgrade()
    connection, peer = client.connection, client.peer
    await client.fill()
    assert not connection.can_send
    assert not connection.has_room()
    await client.read(1)
    await until(lambda: connection.can_send)
    assert peer.caught_up == 1
    await client.fill()
    await client.read(1)
    await until(lambda: connection.can_send)
    assert peer.caught_up == 1
    await client.fill()
    assert not connection.send(Payload(b"skipped"))
    await client.read(1)
    await until(lambda: peer.caught_up == 2)


async def test_a_slow_client_is_kept_while_it_takes_enough(client: Client) -> None:
    """It is aborted if it has taken less than PROGRESS_BYTES since the last check."""
    await client.upgrade()
    connection, peer, loop = client.connection, client.peer, asyncio.get_running_loop()
    unsent = connection._transport.get_write_buffer_size
    await client.fill()
    before, taken = unsent(), 0
    while unsent() > before - PROGRESS_BYTES:
        taken += len(await loop.sock_recv(client._socket, 4_096))
    connection._check_progress(before)
    assert state_of(connection) is ConnectionState.FULL
    assert peer.closed is None
    before = unsent()
    while unsent() == before:
        taken += len(await loop.sock_recv(client._socket, 4_096))
    assert taken < len(LARGE.body)
    connection._check_progress(before)
    await until(lambda: peer.closed is not None)
    assert peer.closed == CloseCode.TOO_SLOW


async def test_nothing_is_sent_after_a_close_frame(client: Client) -> None:
    """Payloads, replies and pings are not sent, and messages of the client are ignored."""
    await client.upgrade()
    connection, peer = client.connection, client.peer
    connection.stop(CloseCode.RESTART)
    connection.stop(CloseCode.SILENT)
    assert not connection.send(Payload(b"late"))
    connection.reply(b"late")
    connection.ping()
    connection.abort(CloseCode.SILENT)
    assert state_of(connection) is ConnectionState.CLOSING
    (closing,) = await client.read(1)
    assert Close.parse(closing.data).code == CloseCode.RESTART
    await until(lambda: peer.closed is not None)
    assert peer.closed == CloseCode.RESTART
    assert await client.read(1) == []


async def test_a_client_that_closes_is_answered(client: Client) -> None:
    """The answer has the client's code, which is also counted."""
    await client.upgrade()
    peer = client.peer
    await client.send(lambda protocol: protocol.send_close(WireCode.GOING_AWAY))
    (closing,) = await client.read(1)
    assert (closing.opcode, Close.parse(closing.data).code) == (Opcode.CLOSE, 1001)
    await client.send(lambda protocol: protocol.send_eof())
    client._socket.shutdown(socket.SHUT_WR)
    await until(lambda: peer.closed is not None)
    assert peer.closed == CloseCode.GOING_AWAY


async def test_an_operator_sees_the_last_pong_and_the_unsent_bytes(client: Client) -> None:
    """A pong is measured from its ping, and not if something else came before it."""
    await client.upgrade()
    connection = client.connection
    heartbeat = connection._edge.heartbeat
    assert connection.pong() is None
    heartbeat.pinged = heartbeat.since(0) - 3  # three seconds ago
    connection.ping()
    await client.read(1)
    await client.send(lambda protocol: None)  # the pong
    await until(lambda: connection.pong() is not None)
    found = connection.pong()
    assert found is not None
    assert 3_000 <= found.round_trip_ms < 60_000
    assert 0 <= found.age < 60
    heartbeat.pinged = heartbeat.since(0)
    connection.ping()
    await client.read(1)
    waiting = connection.pong()
    assert waiting is not None
    assert waiting.round_trip_ms == found.round_trip_ms
    assert waiting.age >= PING_SECONDS - found.round_trip_ms / 1000
    before = connection.unsent
    await client.fill()
    assert connection.unsent > before + 1_000_000
    await client.read(1)
    await until(lambda: connection.unsent == 0)


async def test_pings_are_answered_or_the_connection_is_aborted(client: Client) -> None:
    """Any message counts as an answer; a connection with a full socket is not aborted."""
    await client.upgrade()
    connection, peer = client.connection, client.peer
    connection.ping()
    assert connection.awaits_pong
    (ping,) = await client.read(1)
    assert ping.opcode is Opcode.PING
    await client.send(lambda protocol: None)  # the pong
    await until(lambda: not connection.awaits_pong)
    await client.fill()
    connection.ping()
    connection.abort(CloseCode.SILENT)
    assert not connection.awaits_pong
    assert state_of(connection) is ConnectionState.FULL
    await client.read(1)
    await until(lambda: connection.can_send)
    connection.abort(CloseCode.SILENT)
    (closing,) = await client.read(1)
    assert Close.parse(closing.data).code == CloseCode.SILENT
    await until(lambda: peer.closed == CloseCode.SILENT)


async def test_a_refused_client_has_no_peer(client: Client) -> None:
    """It gets an HTTP answer, and later bytes are ignored."""
    connection = client.connection
    connection.upgrade("GET", b"/elsewhere", [(b"host", b"localhost")], "192.0.2.1")
    assert state_of(connection) is ConnectionState.CLOSING
    assert connection.peer is None
    connection.data_received(Frame(Opcode.TEXT, b"{}").serialize(mask=True))
    await until(lambda: state_of(connection) is ConnectionState.CLOSED)


async def test_a_reset_ends_every_state(client: Client) -> None:
    """The peer is told once, also if the socket is full."""
    await client.upgrade()
    peer = client.peer
    await client.fill()
    client._socket.close()
    await until(lambda: peer.closed is not None)
    assert peer.closed == 1006
    assert client.connection.peer is None


# -- credentials that are verified elsewhere ------------------------------------------------------


class SlowAuthenticator:
    """An authenticator that knows no credential until the test says whose all of them are."""

    required = True

    def __init__(self) -> None:
        self.told = asyncio.get_running_loop().create_future()

    def recognise(self, _: str) -> Principal | None:
        return self.told.result() if self.told.done() else None

    async def authenticate(self, _: str) -> Principal:
        principal: Principal = await asyncio.shield(self.told)
        return principal


@pytest.fixture
async def slow(client: Client) -> SlowAuthenticator:
    """The authenticator of the server of `client`."""
    authenticator = SlowAuthenticator()
    client.edge.admission.access = Access(cast(Authenticator, authenticator), insecure=True)
    return authenticator


READER = Principal("ana", frozenset({Scope.READ}))
HERE = "192.0.2.1"


async def test_a_handshake_waits_for_the_verification(
    client: Client, slow: SlowAuthenticator
) -> None:
    """What the client sends meanwhile is read after the handshake, and no more than once."""
    client.request(Authorization="Bearer a")
    connection, loop = client.connection, asyncio.get_running_loop()
    early = b"".join(Frame(Opcode.TEXT, b"%d" % n).serialize(mask=True) for n in range(3))
    await loop.sock_sendall(client._socket, early)
    await until(lambda: connection._waiting is not None and connection._waiting.early == early)
    await loop.sock_sendall(client._socket, Frame(Opcode.TEXT, b"late").serialize(mask=True))
    await asyncio.sleep(0)
    assert not connection._transport.is_reading()
    assert state_of(connection) is ConnectionState.CONNECTING
    slow.told.set_result(READER)
    (answer,) = await client.read(1)
    assert answer.status_code == 101
    await until(lambda: len(client.peer.received) == 4)
    assert client.peer.received == ["0", "1", "2", "late"]
    assert connection._waiting is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadCredential("expired"), 401),
        (Unavailable("later"), 503),
        (RuntimeError("a fault"), 500),
    ],
)
async def test_a_handshake_is_refused_after_the_verification(
    client: Client, slow: SlowAuthenticator, error: Exception, status: int
) -> None:
    """The answer is complete, and the connection ends."""
    client.request(Authorization="Bearer a")
    slow.told.set_exception(error)
    raw = b""
    while data := await asyncio.get_running_loop().sock_recv(client._socket, 2**16):
        raw += data
    assert raw.startswith(b"HTTP/1.1 %d " % status)
    assert (b"www-authenticate: bearer" in raw.lower()) is (status == 401)
    await until(lambda: state_of(client.connection) is ConnectionState.CLOSED)
    assert client.edge.peers.manager.active == 0


async def test_a_missing_scope_is_refused_after_the_verification(
    client: Client, slow: SlowAuthenticator
) -> None:
    """Nothing is counted for a client that is not let in."""
    client.request(Authorization="Bearer a")
    slow.told.set_result(Principal("ana", frozenset({Scope.WRITE})))
    raw = await asyncio.get_running_loop().sock_recv(client._socket, 2**16)
    assert raw.startswith(b"HTTP/1.1 403 ")
    assert not client.edge.admission._admitted


async def test_a_client_that_leaves_before_the_end_of_its_handshake(
    client: Client, slow: SlowAuthenticator
) -> None:
    """Its task ends, and a verification that succeeds later opens nothing."""
    client.request(Authorization="Bearer a")
    connection = client.connection
    await until(lambda: connection._waiting is not None)
    assert connection._waiting is not None
    task = connection._waiting.task
    client._socket.close()
    await until(lambda: state_of(connection) is ConnectionState.CLOSED)
    slow.told.set_result(READER)
    await asyncio.wait([task])
    assert task.cancelled()
    assert connection.peer is None
    assert not client.edge.admission._admitted


async def test_the_number_and_the_time_of_verifications_are_limited(
    client: Client, slow: SlowAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over it, clients are told to come back."""
    monkeypatch.setattr("routecast.edge.access.MAX_VERIFYING", 2)
    access = client.edge.admission.access
    tasks = [asyncio.create_task(access.authenticate("a", HERE)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many credentials are"):
        await access.authenticate("a", HERE)
    # Of each kind of credential: others do not wait for the provider of tokens.
    for other in (CookieIn("a"), TicketIn("a", HERE)):
        with pytest.raises(BadCredential, match="this server has no"):
            await access.authenticate(other, HERE)
    tasks.pop().cancel()
    await asyncio.sleep(0)
    monkeypatch.setattr("routecast.edge.access.VERIFY_SECONDS", 0.01)
    with pytest.raises(Unavailable, match="in time"):
        await access.authenticate("a", HERE)
    slow.told.set_result(READER)
    assert await tasks.pop() is READER


async def test_one_address_leaves_room_for_the_credentials_of_others(
    client: Client, slow: SlowAuthenticator
) -> None:
    """Over its limit it is told to come back, until one of its own is verified or given up."""
    access = client.edge.admission.access

    async def begin(address: str) -> asyncio.Task[Principal]:
        task = asyncio.create_task(access.authenticate("a", address))
        await asyncio.sleep(0)
        return task

    tasks = [await begin(HERE) for _ in range(MAX_VERIFYING_OF_ADDRESS)]
    with pytest.raises(Unavailable, match="of this address"):
        await access.authenticate("a", HERE)
    with pytest.raises(BadCredential, match="this server has no"):
        await access.authenticate(CookieIn("a"), HERE)  # another kind
    tasks.append(await begin("198.51.100.7"))
    tasks[0].cancel()
    await asyncio.sleep(0)
    tasks[0] = await begin(HERE)
    slow.told.set_result(READER)
    assert await asyncio.gather(*tasks) == [READER] * len(tasks)
    assert not any(access._verifying.values())
