"""Batches of WebSocket connections: each client reads what was sent, however compressed."""

import gc
import json
import random
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from routecast.core.document import EncodedDocument
from routecast.core.message import JSON, WINDOW_BYTES, AddressedMessage, Message, SentMessage
from routecast.core.payload import Payload
from routecast.edge.ws.batch import (
    INDEPENDENT,
    MAX_PLAN_PARTS,
    PLAIN,
    Compression,
    WebSocketBatch,
    keep_context,
    share,
)
from routecast.edge.ws.frames import saved_bytes
from routecast.ports import PongReport
from routecast.protocol import Position, SnapshotOut, Source

CLIENTS = 20


class Connection:
    """One end of a socket pair (`batch.BatchedConnection`), and a client that reads the other."""

    kind, client, agent, unsent = "WebSocket", "192.0.2.1", "", 0

    def __init__(self, stack: ExitStack, compression: Compression) -> None:
        self.ours, self._theirs = (stack.enter_context(each) for each in socket.socketpair())
        self.batches: tuple[WebSocketBatch, ...] = ()
        self.compression = PLAIN
        self.saved = 0
        share([self], compression)
        self.descriptor = self.ours.fileno()
        self._is_open = True
        self._reader = Protocol(Side.CLIENT, state=State.OPEN)
        if compression is not PLAIN:
            self._reader.extensions = [PerMessageDeflate(not compression.in_context, True, 15, 15)]
        self.bytes = 0

    @property
    def can_send(self) -> bool:
        return self._is_open

    def set_open(self, is_open: bool) -> None:
        """Make it accept messages, or none, as if the socket was full."""
        self._is_open = is_open
        for batch in self.batches:
            batch.invalidate()

    def new_batch(self) -> WebSocketBatch:
        return WebSocketBatch()

    def send(self, payload: Payload) -> bool:
        if not self._is_open:
            return False
        data = self.compression.form(payload)
        self.saved += saved_bytes(payload, data)
        if self.compression.is_context(payload, data):
            keep_context([self], self.compression, payload)
        self.ours.sendall(data)
        return True

    def send_rest(self, data: bytes, sent: int) -> None:
        raise AssertionError("the socket is large enough")

    def pong(self) -> PongReport | None:
        raise NotImplementedError

    def prepare(self, payload: Payload) -> None:
        raise NotImplementedError

    def reply(self, data: bytes) -> None:
        raise NotImplementedError

    def has_room(self) -> bool:
        raise NotImplementedError

    def fail(self, code: int) -> None:
        raise NotImplementedError

    def stop(self, code: int, return_ms: int | None = None) -> None:
        raise NotImplementedError

    def read(self) -> list[bytes]:
        """Return the messages that the client has received since the last call."""
        try:
            data = self._theirs.recv(2**20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        self.bytes += len(data)
        self._reader.receive_data(data)
        return [bytes(each.data) for each in self._reader.events_received() if type(each) is Frame]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """The stack that closes all sockets at the end."""
    with ExitStack() as stack:
        yield stack


def in_context(stack: ExitStack, count: int = CLIENTS) -> list[Connection]:
    """Return connections that compress each message after the one before."""
    return [Connection(stack, Compression(in_context=True)) for _ in range(count)]


def message(number: int, identity: str = "main") -> AddressedMessage:
    """Return a message that is large enough to be compressed."""
    return Message(JSON, snapshot(number, "abc" * 400)).for_id(identity)


def snapshot(number: int, models: str) -> SnapshotOut:
    data = {"total_decisions": number, "models": models, "more": [number] * 20}
    position = Position("e", number)
    return SnapshotOut(
        id="", position=position, source=Source.LIVE, age_ms=0, data=data, timestamp=""
    )


def batch_of(connections: list[Connection]) -> WebSocketBatch:
    batch = WebSocketBatch()
    for connection in connections:
        batch.add(connection)
    return batch


def parts_of(batch: WebSocketBatch) -> int | None:
    """Return the number of parts in a send plan; None if there is none."""
    return None if batch._plan is None else len(batch._plan[0])


def test_each_kind_of_compression_is_served(stack: ExitStack) -> None:
    """All kinds in one batch get the same document, each as its client agreed."""
    kinds = [PLAIN, INDEPENDENT, Compression(in_context=True), Compression(in_context=True)]
    connections = [Connection(stack, kind) for kind in kinds * 5]
    batch = batch_of(connections)
    for number in range(3):
        payload = message(number)
        assert batch.send(payload) == []
        assert [connection.read() for connection in connections] == [[payload.body]] * 20
    document = EncodedDocument(json.dumps({"x": "y" * 2_000}).encode(), None, None)
    for connection in connections[:2]:
        connection.send(document)
        assert connection.read() == [document.body]
    plain, deflated = connections[0].bytes, connections[2].bytes
    assert deflated < plain / 5


def test_connections_in_step_are_one_part(stack: ExitStack) -> None:
    """They are also one part if each was sent an equal first message alone."""
    connections, first = in_context(stack), message(0)
    for connection in connections:
        connection.send(first)
    batch = batch_of(connections)
    for number in range(1, 4):
        batch.send(message(number))
        assert parts_of(batch) == 1
    assert len({id(connection.compression) for connection in connections}) == 1


def test_two_subscriptions_of_the_same_connections_are_planned_once(stack: ExitStack) -> None:
    """Each message is compressed after the last one of either subscription."""
    connections = in_context(stack)
    one, other = batch_of(connections), batch_of(connections)
    plans = []
    for number in range(10):
        one.send(message(number, "one"))
        other.send(message(number, "other"))
        plans.append((one._plan, other._plan))
    assert {parts_of(one), parts_of(other)} == {1}
    assert all(plan is plans[2][0] for plan, _ in plans[3:])
    assert all(plan is plans[2][1] for _, plan in plans[3:])


def test_subscriptions_of_some_connections_settle(stack: ExitStack) -> None:
    """A batch of some of the connections splits the context once, and not at each message."""
    connections = in_context(stack)
    one, other = batch_of(connections), batch_of(connections[: CLIENTS // 2])
    plans = []
    for number in range(10):
        one.send(message(number, "one"))
        other.send(message(number, "other"))
        plans.append((one._plan, other._plan))
    assert (parts_of(one), parts_of(other)) == (2, 1)
    assert len({id(plan) for plan, _ in plans[3:]}) == 1


def test_many_parts_come_together_again(stack: ExitStack) -> None:
    """Parts with different contexts become one after they were sent the same message."""
    connections = in_context(stack)
    for number, connection in enumerate(connections):
        connection.send(message(number, f"alone {number}"))
    batch = batch_of(connections)
    batch.send(message(100))
    assert parts_of(batch) is None  # there were more than MAX_PARTS
    batch.send(message(101))
    assert parts_of(batch) == 1
    assert MAX_PLAN_PARTS < CLIENTS


def test_what_compression_saves_is_counted_for_a_part_as_a_whole(stack: ExitStack) -> None:
    """A message changes no connection; what they saved is moved to them when someone looks."""
    connections = [Connection(stack, INDEPENDENT) for _ in range(CLIENTS)]
    batch = batch_of(connections)
    for number in range(3):
        batch.send(message(number))
    assert {connection.saved for connection in connections} == {0}
    batch.settle()
    (saved,) = {connection.saved for connection in connections}
    assert saved > 0
    batch.settle()
    assert {connection.saved for connection in connections} == {saved}


def test_full_and_closed_connections_are_taken_out(stack: ExitStack) -> None:
    """Full ones are returned and closed ones removed; the others stay one part."""
    connections = in_context(stack)
    batch = batch_of(connections)
    batch.send(message(0))
    connections[3].set_open(False)
    assert batch.send(message(1)) == [connections[3]]
    batch.remove(connections[4])
    assert connections[4].batches == ()
    assert batch.send(message(2)) == [connections[3]]
    connections[3].set_open(True)
    assert batch.send(message(3)) == []
    assert len(batch) == CLIENTS - 1
    read = [[json.loads(each)["data"]["total_decisions"] for each in c.read()] for c in connections]
    assert read[3] == [0, 3]
    assert read[4] == [0, 1]
    assert read[5] == [0, 1, 2, 3]


@pytest.mark.parametrize("before", [None, message(0).sent])
def test_a_prepared_message_is_not_compressed_again(before: SentMessage | None) -> None:
    """A large message is compressed in advance; a small or uncompressed one is not."""
    compression = Compression(in_context=True)
    compression.before = before
    large = Message(JSON, snapshot(1, "abc" * WINDOW_BYTES)).for_id("main")
    PLAIN.prepare(large)
    assert not large.forms
    compression.prepare(large)
    (form,) = large.forms.values()
    assert compression.form(large) is form
    small = message(1)
    compression.prepare(small)
    assert not small.forms


def test_a_batch_is_freed_at_once(stack: ExitStack) -> None:
    """A batch is freed, with its send plan, when its connections have left."""
    connections = in_context(stack)
    batch = batch_of(connections)
    batch.send(message(0))
    gc.collect()
    gc.disable()
    try:
        for connection in connections:
            batch.remove(connection)
        del batch
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert {connection.batches for connection in connections} == {()}


def test_a_large_message_is_let_go_of(stack: ExitStack) -> None:
    """The server keeps only the part of a message to which the next one may refer."""
    (connection,) = in_context(stack, 1)
    noise = random.Random(1).randbytes(40_000).hex()
    large = Message(JSON, snapshot(1, noise)).for_id("h")
    references = sys.getrefcount(large)
    connection.send(large)
    assert connection.read() == [large.body]
    assert sys.getrefcount(large) == references
    assert connection.compression.before is not None
    assert len(connection.compression.before.end) == WINDOW_BYTES < len(large.body)
    connection.send(message(2))
    assert connection.read() == [message(2).body]


class Model:
    """Batches with connections, and what each client was sent since it last read."""

    def __init__(self, connections: list[Connection], rng: random.Random) -> None:
        self._rng = rng
        self.connections = connections
        self.batches: list[tuple[WebSocketBatch, list[Connection]]] = [
            (WebSocketBatch(), []) for _ in range(3)
        ]
        self.sent: dict[Connection, list[bytes]] = {each: [] for each in connections}
        self.plain: Counter[Connection] = Counter()  # bytes without compression

    def step(self, number: int) -> None:
        """Do a random operation."""
        place, connection = self._rng.randrange(3), self._rng.choice(self.connections)
        batch, members = self.batches[place]
        payload = message(number, f"{place}")
        match self._rng.choice(["send"] * 5 + ["come or go", "fill or drain", "send alone"]):
            case "send":
                assert batch.send(payload) == [each for each in members if not each.can_send]
                self._note(members, payload)
            case "come or go" if connection in members:
                batch.remove(connection)
                members.remove(connection)
            case "come or go":
                batch.add(connection)
                members.append(connection)
            case "fill or drain":
                connection.set_open(not connection.can_send)
            case "send alone":
                assert connection.send(payload) == connection.can_send
                self._note([connection], payload)

    def _note(self, connections: list[Connection], payload: Payload) -> None:
        for each in connections:
            if each.can_send:
                self.sent[each].append(payload.body)
                self.plain[each] += len(Frame(Opcode.TEXT, payload.body).serialize(mask=False))


@pytest.mark.parametrize("seed", range(12))
def test_each_client_reads_what_it_was_sent(stack: ExitStack, seed: int) -> None:
    """For any joining, leaving, skipping and sending; what compression saved is counted right."""
    rng = random.Random(seed)
    kinds = [PLAIN, INDEPENDENT]
    connections = [Connection(stack, rng.choice(kinds)) for _ in range(4)] + in_context(stack, 12)
    model = Model(connections, rng)
    for number in range(300):
        model.step(number)
        if number % 20 == 0:
            for each in connections:
                assert each.read() == model.sent[each]
                model.sent[each].clear()
                for batch in each.batches:
                    batch.settle()
                assert each.saved == model.plain[each] - each.bytes
    assert sum(each.saved for each in connections) > sum(each.bytes for each in connections)
    contexts = [c.compression for c in connections if c.compression.in_context]
    assert all(each.users == contexts.count(each) for each in contexts)
