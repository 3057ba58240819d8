"""Connections of a test, and a harness in which a manager serves them from a live snapshot."""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.budget import RenderBudget
from routecast.core.delta import Delta
from routecast.core.document import EncodedDocument
from routecast.core.groups import Group, PingState, Shard
from routecast.core.snapshot import Snapshot
from routecast.core.view import View, ViewSubscription
from routecast.instruments import Instruments
from routecast.ports import Reading
from routecast.protocol import CloseCode, Position, Source
from routecast.services.metrics_reader import MetricsReader
from routecast.services.renders import Renders
from routecast.services.snapshot_loader import SnapshotLoader
from routecast.streaming.connections import ConnectionManager
from tests.support.clock import HeldClock
from tests.support.decisions import NOW, cells_of, kept

FAST = 0.1


class FakeConnection:
    """A subscriber that reads every frame at once (`core.groups.Connection`)."""

    kind = "WebSocket"

    def __init__(
        self, interval: float = FAST, view: View | None = None, client: str = "192.0.2.1"
    ) -> None:
        self.client = client
        self.subscription = ViewSubscription(view or View(), interval)
        self.frames: list[EncodedDocument] = []
        self.times: list[float] = []
        self.stopped: CloseCode | None = None
        self.return_ms: int | None = None
        self.asks = 0  # for a sign of life
        self.rides = 0  # of these, with a frame
        self.asked = 0.0  # when that was last
        self.silent = False  # gives none
        self.given_up = False
        self.shard: Shard | None = None

    def offer(self, frame: EncodedDocument) -> bool:
        self.frames.append(frame)
        self.times.append(asyncio.get_running_loop().time())
        return True

    @classmethod
    def offer_all(cls, frame: EncodedDocument, shard: Shard) -> int:
        if shard.ping_state is PingState.DUE:
            for reader in cast(Iterable[FakeConnection], shard.connections):
                reader.rides += 1
            cls.flush_ping(shard)
        return sum(not connection.offer(frame) for connection in shard.connections)

    @property
    def group(self) -> Group | None:
        """Who it shares its ticks with."""
        return self.shard.group if self.shard is not None else None

    @staticmethod
    def queue_ping(shard: Shard) -> None:
        """Nothing to do: `flush_ping` sees it."""

    @staticmethod
    def flush_ping(shard: Shard) -> None:
        if shard.ping_state is not PingState.NONE:
            shard.ping_state = PingState.NONE
            for reader in cast(Iterable["FakeConnection"], shard.connections):
                reader.question()

    def question(self) -> None:
        """Take a question, and answer it."""
        self.asks += 1
        self.asked = asyncio.get_running_loop().time()
        if not self.silent:
            self.answer()

    def answer(self) -> None:
        """Give a sign of life."""
        if self.shard is not None:
            self.shard.responded.add(self)

    def give_up(self) -> None:
        self.given_up = True

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        self.stopped, self.return_ms = code, return_ms

    def counts(self) -> list[Any]:
        """Return the count of decisions in each frame."""
        return [json.loads(frame.body).get("total_decisions") for frame in self.frames]


class RidingConnection(FakeConnection):
    """A reader for whom alone it is noted that its question is due."""

    def __init__(self) -> None:
        super().__init__()
        self.due = False

    @staticmethod
    def queue_ping(shard: Shard) -> None:
        for reader in cast(Iterable["RidingConnection"], shard.connections):
            reader.due = True

    @staticmethod
    def flush_ping(shard: Shard) -> None:
        shard.ping_state = PingState.NONE
        for reader in cast(Iterable["RidingConnection"], shard.connections):
            if reader.due:
                reader.due = False
                reader.question()


class SlowConnection(FakeConnection):
    """A reader whose sign of life takes a moment."""

    def question(self) -> None:
        self.silent = True
        super().question()
        asyncio.get_running_loop().call_later(0.02, self.answer)


class FanoutHarness:
    """A manager over a live snapshot, to which commits are made by hand."""

    def __init__(self, store: SqliteStore, cache: MemoryCache, clock: HeldClock) -> None:
        self.instruments = Instruments()
        self.snapshot = Snapshot(Position("e", 0), NOW)
        self.up = True
        sources = SnapshotLoader(
            store, cache, MemoryBus(), MemoryCluster(), clock, self.instruments
        )
        self.latest = MetricsReader(self.reading, lambda: None, sources, clock, self.instruments)
        self.budget = RenderBudget()
        self.renders = Renders(self.latest, self.budget, self.instruments)
        self.manager = ConnectionManager(self, self.renders, self.instruments, limit=1000)
        self.load = 0.0  # how long the frames of a tick take, in seconds
        self.advanced: Callable[[], None] = lambda: None  # called after each commit

    def reading(self) -> Reading | None:
        return Reading(self.snapshot, Source.LIVE, NOW) if self.up else None

    def frame_now(self, view: View) -> EncodedDocument | None:
        return self.latest.frame_now(view)

    async def frames(self, views: Mapping[View, str]) -> dict[View, EncodedDocument]:
        await asyncio.sleep(self.load)
        return await self.latest.frames(views)

    async def broadcast(self, frame: EncodedDocument, readers: Iterable[FakeConnection]) -> None:
        """Send a frame to the groups of readers, as at a tick."""
        for group in {reader.group for reader in readers}:
            assert group is not None
            group.settle()
            await self.manager.broadcast(frame, group)

    def commit(self, **given: Any) -> None:
        seq = self.snapshot.position.seq + 1
        self.snapshot.apply(Delta(Position("e", seq), cells_of([kept(seq, **given)]), NOW))
        self.advanced()

    def count(self, name: str, **labels: str) -> float:
        sample = self.instruments.registry.get_sample_value
        return sample(f"routecast_{name}_total", labels) or 0
