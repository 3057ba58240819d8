"""A harness of the fan-out: connections over a live snapshot, on a clock that tests set."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, cast

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.default_session import DefaultSession
from routecast.core.delta import Delta
from routecast.core.message import JSON, AddressedMessage, Encoding
from routecast.core.payload import Payload
from routecast.core.render_budget import RenderBudget
from routecast.core.snapshot import Snapshot
from routecast.core.topology import Topology
from routecast.core.versions import Stamps
from routecast.core.view import View, ViewSubscription
from routecast.edge.asgi_connection import AsgiBatch
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.ports import Batch, PongReport, Reading
from routecast.protocol import CloseCode, Position, Source
from routecast.services.metrics_reader import MetricsReader
from routecast.services.renders import Renders
from routecast.services.snapshot_loader import SnapshotLoader
from routecast.streaming.channels import BATCH_SIZE, MAX_COALESCED, Channels
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.history_subscriptions import HistorySubscriptions
from routecast.streaming.peers import Peer, Peers
from tests.support.clock import HeldClock, HeldTimers
from tests.support.decisions import NOW, cells_of, kept
from tests.support.running_services import running
from tests.support.v1 import merged

FAST = 0.1
# When a harness begins: at a multiple of all intervals that tests use.
START = 1_000.0
CLIENT = "192.0.2.1"
# What each part of a rendering costs its client, in seconds. By a real clock, one full garbage
# collection of the test run would use up a client's rendering time.
CHARGED_SECONDS = 1e-6


class FakeConnection:
    """A connection that accepts payloads while it `is_open` (`ports.Connection`)."""

    kind = "WebSocket"

    def __init__(self, client: str = CLIENT) -> None:
        self.client = client
        self.agent = "test"
        self.unsent = 0
        self.saved_by_compression: int | None = 7
        self.is_open = True
        self.sent: list[Payload] = []
        self.prepared: list[Payload] = []
        self.replies: list[dict[str, Any]] = []
        self.skipped = 0
        self.failed: CloseCode | None = None
        self.stopped: CloseCode | None = None
        self.return_ms: int | None = None
        self._peer: Peer | None = None

    @property
    def peer(self) -> Peer:
        assert self._peer is not None
        return self._peer

    @peer.setter
    def peer(self, peer: Peer) -> None:
        self._peer = peer

    def new_batch(self) -> Batch:
        return AsgiBatch()

    def send(self, payload: Payload) -> bool:
        if self.is_open:
            self.sent.append(payload)
        else:
            self.skipped += 1
        return self.is_open

    def prepare(self, payload: Payload) -> None:
        self.prepared.append(payload)

    def reply(self, data: bytes) -> None:
        self.replies.append(json.loads(data))

    def has_room(self) -> bool:
        return self.is_open

    def fail(self, code: CloseCode) -> None:
        self.failed = code

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        self.stopped, self.return_ms = code, return_ms

    def pong(self) -> PongReport | None:
        return None

    def drain(self) -> None:
        """Accept payloads from now on, and catch up."""
        self.is_open = True
        self.peer.catch_up()

    def close(self, code: int = CloseCode.DONE) -> None:
        """End the connection."""
        self.peer.close(code)

    def counts(self) -> list[Any]:
        """Return the count of decisions in each document of the default stream."""
        return [json.loads(payload.body).get("total_decisions") for payload in self.sent]

    # -- routecast.v1 ---------------------------------------------------------------------------

    def request(self, **message: Any) -> None:
        """Send a message of routecast.v1."""
        self.peer.receive(json.dumps(message))

    def subscribe(self, identity: str = "main", **asked: Any) -> None:
        """Subscribe over routecast.v1."""
        self.request(type="subscribe", id=identity, **asked)

    def messages(self, identity: str = "main") -> list[dict[str, Any]]:
        """Return the messages under an id; each delta must follow the message before it."""
        sent = [
            json.loads(payload.body)
            for payload in self.sent
            if isinstance(payload, AddressedMessage) and payload.identity == identity
        ]
        seq = None
        for message in sent:
            if message["type"] == "delta":
                assert message["base"] == seq
            if message["type"] != "error":
                seq = message["position"]["seq"]
        return sent

    def types(self, identity: str = "main") -> list[str]:
        """Return the types of the messages under an id."""
        return [message["type"] for message in self.messages(identity)]

    def total(self, identity: str = "main") -> int:
        """Return the count of decisions that a client of routecast.v1 knows of."""
        document: dict[str, Any] = {}
        for message in self.messages(identity):
            before = document if message["type"] == "delta" else {}
            document = merged(before, message.get("data", {}))
        return int(document.get("total_decisions", -1))


class FanoutHarness:
    """Connections, channels and renders over a live snapshot; the test makes commits.

    `source` is where numbers come from: LIVE, another source, or None if nothing can answer.
    """

    def __init__(
        self,
        store: SqliteStore,
        cache: MemoryCache,
        clock: HeldClock,
        *,
        batch_size: int = BATCH_SIZE,
        max_coalesced: int = MAX_COALESCED,
        limit: int = 1_000,
    ) -> None:
        self.clock = clock
        self.timers = HeldTimers(START)
        self.instruments = Instruments()
        self.snapshot = Snapshot(Position("e", 0), NOW)
        self.source: Source | None = Source.LIVE
        self.reads = 0  # reads from other sources than live state
        self._charges = count()
        loader = SnapshotLoader(
            store,
            cache,
            MemoryBus(),
            MemoryCluster(),
            clock,
            self.timers,
            self.instruments,
            Topology(),
        )
        self.reader = MetricsReader(self.reading, lambda: None, loader, clock, self.instruments)
        self.budget = RenderBudget()
        self.renders = Renders(
            self.reader, self.budget, self.instruments, self.timers, used=self._used
        )
        self.manager = ConnectionManager(self.instruments, limit)
        self.channels = Channels(
            self.manager,
            self,
            self.renders,
            clock,
            self.timers,
            self.instruments,
            batch_size=batch_size,
            max_coalesced=max_coalesced,
        )
        self.serve_history(None)

    def serve_history(self, histories: HistorySubscriptions | None) -> None:
        """Make new connections get histories from there."""
        self.peers = Peers(self.manager, self.channels, cast(Any, histories), self.timers)

    def _used(self) -> float:
        """Return a processor time that has grown by CHARGED_SECONDS since the last call."""
        return next(self._charges) * CHARGED_SECONDS

    # -- state (`channels.DocumentSource`) ------------------------------------------------------

    def reading(self) -> Reading | None:
        return None if self.source is None else Reading(self.snapshot, self.source, NOW)

    def reading_now(self) -> Reading | None:
        return self.reading() if self.source is Source.LIVE else None

    async def read(self) -> Reading:
        self.reads += self.source is not Source.LIVE
        await asyncio.sleep(0)
        reading = self.reading()
        if reading is None:
            raise Unavailable("nothing")
        return reading

    def covering(self, reading: Reading, view: View) -> Reading | None:
        return reading

    def lacks(self, view: View) -> bool:
        return False

    def is_ready(self, reading: Reading, view: View, now: int | None = None) -> bool:
        return self.reader.is_ready(reading, view, now)

    def stamps(self, reading: Reading, view: View, now: int) -> Stamps:
        return self.reader.stamps(reading, view, now)

    def document(self, reading: Reading, view: View, now: int) -> dict[str, Any] | None:
        return self.reader.document(reading, view, now)

    def commit(self, *given: Mapping[str, Any], **one: Any) -> None:
        """Commit decisions, one if none is `given`, and notify the channels."""
        seq = self.snapshot.position.seq + 1
        decisions = [kept(seq * 10_000 + place, **each) for place, each in enumerate(given)]
        cells = cells_of(decisions or [kept(seq * 10_000, **one)])
        self.snapshot.apply(Delta(Position("e", seq), cells, NOW))
        self.channels.push()

    # -- connections ----------------------------------------------------------------------------

    def connect(
        self,
        interval: float = FAST,
        view: View | None = None,
        client: str = CLIENT,
        connection: FakeConnection | None = None,
    ) -> FakeConnection:
        """Return a new connection of the default stream."""
        session = DefaultSession(ViewSubscription(view or View(), interval))
        return self._start(connection or FakeConnection(client), session, None)

    def connect_v1(
        self,
        encoding: Encoding = JSON,
        client: str = CLIENT,
        connection: FakeConnection | None = None,
    ) -> FakeConnection:
        """Return a new connection of routecast.v1."""
        session = DefaultSession(ViewSubscription(View(), FAST))
        return self._start(connection or FakeConnection(client), session, encoding)

    def _start(
        self, connection: FakeConnection, session: DefaultSession, encoding: Encoding | None
    ) -> FakeConnection:
        connection.peer = self.peers.peer(connection, session, encoding)
        connection.peer.start()
        return connection

    # -- time -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve channels and render views during the body."""
        async with running(self.channels.run()), running(self.renders.run()):
            yield

    async def settle(self) -> None:
        """Return when all due channels are served, and all requested views are rendered."""
        quiet = 0
        while quiet < 10:
            await asyncio.sleep(0)
            quiet = 0 if self.is_busy() else quiet + 1

    def is_busy(self) -> bool:
        """Whether the services have something to do now."""
        return bool(self.channels.is_due or self.renders.is_due)

    async def go_to(self, seconds: float) -> None:
        """Move the clock to this number of seconds after the start, through all timers."""
        moment = START + seconds
        await self.settle()
        while (pending := self.timers.pending()) and pending[0] <= moment:
            self._set(max(pending[0], self.timers.moment))
            await self.settle()
        self._set(moment)
        await self.settle()

    def _set(self, moment: float) -> None:
        self.clock.moment += round((moment - self.timers.moment) * 1_000_000)
        self.timers.go_to(moment)

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return self.timers.moment - START

    async def go(self, seconds: float) -> None:
        """Move the clock forward."""
        await self.go_to(self.seconds + seconds)

    def count(self, name: str, **labels: str) -> float:
        """Return the value of a counter."""
        sample = self.instruments.registry.get_sample_value
        return sample(f"routecast_{name}_total", labels) or 0
