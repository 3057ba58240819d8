"""The engines that the settings name: the database, what nodes share in Redis, keys for tokens."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.clock import SystemClock
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.prices import GenaiPrices
from routecast.adapters.store.null import NullStore
from routecast.core.topology import Topology
from routecast.instruments import Instruments
from routecast.ports import (
    Bus,
    Cache,
    Clock,
    Cluster,
    KeyStore,
    Prices,
    Store,
    TemporaryRecords,
    TokenVerifier,
)
from routecast.server.config import Settings
from routecast.server.databases import file_of, open_store
from routecast.slices import Slices

# The modules of Redis and tokens are imported in the functions that use them. A process
# that uses none of them starts a third sooner.
if TYPE_CHECKING:
    from routecast.adapters.redis_check import RedisCheck


@dataclass(frozen=True, slots=True)
class Engines:
    """The adapters that an application uses."""

    store: Store
    cache: Cache
    bus: Bus
    cluster: Cluster
    clock: Clock
    prices: Prices
    instruments: Instruments = field(default_factory=Instruments)
    slices: Slices = field(default_factory=Slices)
    redis: "RedisCheck | None" = None  # None without a Redis
    tokens: TokenVerifier | None = None  # None if no setting names a key for tokens
    keys: KeyStore | None = None  # None without a database
    records: TemporaryRecords | None = None  # None: this process keeps them itself


def open_engines(settings: Settings) -> Engines:
    """Return the engines that the settings name, not yet opened. Raises BadSettings."""
    clock, instruments, slices = SystemClock(), Instruments(), Slices()
    database = None
    if settings.role != "stream":
        database = open_store(settings.database_url, connections=settings.database_connections)
    engines = Engines(
        store=database or NullStore(),
        cache=MemoryCache(clock, settings.cache_seconds, slices),
        bus=MemoryBus(),
        cluster=MemoryCluster(),
        clock=clock,
        prices=GenaiPrices(instruments.prices_skipped.inc),
        instruments=instruments,
        slices=slices,
        tokens=_open_verifier(settings),
        keys=database,
    )
    if settings.redis_url:
        return _on_redis(engines, settings, settings.redis_url)
    instruments.redis_up.set(math.nan)
    return engines


def _open_verifier(settings: Settings) -> TokenVerifier | None:
    """Return the keys for tokens that the settings name; None for none. Raises BadSettings."""
    if not settings.takes_tokens:
        return None
    from routecast.adapters.jwks import JwkSet
    from routecast.adapters.jwt_keys import JwtVerifier, public_keys, secret_key

    keys = []
    if settings.jwt_secret is not None:
        keys.append(secret_key(settings.jwt_secret.get_secret_value()))
    if settings.jwt_public_key is not None:
        keys.extend(public_keys(settings.jwt_public_key))
    fetch = JwkSet(settings.jwks_url).fetch if settings.jwks_url is not None else None
    return JwtVerifier(keys, fetch)


def _on_redis(engines: Engines, settings: Settings, url: str) -> Engines:
    """Return engines whose cache, bus and cluster are those of a Redis."""
    from routecast.adapters.bus.redis import RedisBus
    from routecast.adapters.cache.redis import RedisCache
    from routecast.adapters.cluster.redis import RedisCluster
    from routecast.adapters.records.redis import RedisRecords
    from routecast.adapters.redis_check import RedisCheck
    from routecast.adapters.redis_client import RedisLink
    from routecast.circuit_breaker import CircuitBreaker

    link = partial(RedisLink, url, settings.redis_prefix, CircuitBreaker("Redis"))
    return replace(
        engines,
        cache=RedisCache(link(), settings.cache_seconds, engines.slices),
        bus=RedisBus(link(), engines.instruments),
        cluster=RedisCluster(link()),
        redis=RedisCheck(link(), engines.instruments.redis_up.set),
        records=RedisRecords(link()),
    )


def topology_of(settings: Settings) -> Topology:
    """Return what a node with these settings shares with others."""
    has_store = settings.role != "stream"
    return Topology(
        has_bus=settings.redis_url is not None,
        has_store=has_store,
        shares_store=has_store and file_of(settings.database_url) is None,
    )
