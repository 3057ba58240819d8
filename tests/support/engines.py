"""Caches, buses and clusters for tests, in memory and on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol
from uuid import uuid4

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.bus.redis import RedisBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.cache.redis import RedisCache
from routecast.adapters.clock import SystemClock
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.cluster.redis import RedisCluster
from routecast.adapters.records.memory import MemoryRecords
from routecast.adapters.records.redis import RedisRecords
from routecast.adapters.redis_client import RedisLink
from routecast.circuit_breaker import CircuitBreaker
from routecast.instruments import Instruments
from routecast.ports import PRESENCE_SECONDS, Bus, Cache, Cluster, TemporaryRecords

# An engine that works answers within this time, in seconds.
PATIENCE = 30.0


class Shared(Protocol):
    """Makes adapters of one engine, each as for another node."""

    def cache(self, lifetime: float) -> Cache:
        """Make a cache that keeps a snapshot for this number of seconds."""
        ...

    def bus(self) -> Bus:
        """Make a bus of one node."""
        ...

    def cluster(self, presence: float = PRESENCE_SECONDS) -> Cluster:
        """Make a cluster of one node, whose report is valid for this number of seconds."""
        ...

    def records(self) -> TemporaryRecords:
        """Make the temporary records of one node."""
        ...


class SharedMemory:
    """The engines of a single process, in memory."""

    def __init__(self) -> None:
        self._bus = MemoryBus()

    def cache(self, lifetime: float) -> Cache:
        return MemoryCache(SystemClock(), lifetime)

    def bus(self) -> Bus:
        return self._bus

    def cluster(self, presence: float = PRESENCE_SECONDS) -> Cluster:
        return MemoryCluster()

    def records(self) -> TemporaryRecords:
        return MemoryRecords(SystemClock())


class SharedRedis:
    """The engines of nodes on a Redis, under a prefix; by default one that no other test uses."""

    def __init__(self, url: str, prefix: str | None = None) -> None:
        self.prefix = prefix or uuid4().hex
        self.instruments = Instruments()
        self._url = url

    def link(self) -> RedisLink:
        return RedisLink(self._url, self.prefix, CircuitBreaker("Redis"))

    def cache(self, lifetime: float = 30.0) -> RedisCache:
        return RedisCache(self.link(), lifetime)

    def bus(self) -> RedisBus:
        return RedisBus(self.link(), self.instruments)

    def cluster(self, presence: float = PRESENCE_SECONDS) -> RedisCluster:
        return RedisCluster(self.link(), presence)

    def records(self) -> RedisRecords:
        return RedisRecords(self.link())


@asynccontextmanager
async def carried(bus: Bus) -> AsyncIterator[Bus]:
    """Run a bus and wait until it is connected; close it at the end."""
    task = asyncio.create_task(bus.run())
    try:
        async with asyncio.timeout(PATIENCE):
            while bus.failing:  # noqa: ASYNC110  -- it has no event of its own
                await asyncio.sleep(0.001)
        yield bus
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await bus.close()
