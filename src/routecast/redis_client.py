"""Redis clients: a URL picks one for a server, for Sentinel or for Cluster; a breaker guards it.

Valkey is spoken to alike. What is used here has been there since Redis 6.2.
"""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl, unquote

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from routecast.breaker import Breaker
from routecast.errors import BadSettings, Unavailable
from routecast.urls import masked, split_url

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# To connect; to get one answer; for a call with all it takes, asking sentinels included.
CONNECT_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 1.0
CALL_SECONDS: Final = 2.0
# After a failure that did not open the breaker.
PAUSE_SECONDS: Final = 0.1
# Part of every key: nodes of different versions share what they write only when this is equal.
FORMAT: Final = 1

_PORTS: Final = {"": 6379, "sentinel": 26379, "cluster": 6379}
_TLS_OPTIONS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})
_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})
# The engine could not be asked, or did not answer: what a breaker counts.
_FAILED: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.RedisClusterException,
    exceptions.ClusterDownError,
    exceptions.ReadOnlyError,
    OSError,  # TimeoutError is one, too
)

Client: TypeAlias = "Redis | RedisCluster"
T = TypeVar("T")


class Refused(Unavailable):
    """Redis answers, but not this: it has no memory left, say, or does not allow the command."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """What a Redis URL says. `kind` is "" (one server), "sentinel" or "cluster"."""

    kind: str
    hosts: tuple[tuple[str, int], ...]
    tls: bool
    username: str | None
    password: str | None
    database: int
    service: str  # Sentinel's name for the master
    socket: str  # path of a Unix socket
    options: Mapping[str, str]


def parse_address(url: str) -> RedisAddress:
    """Return what a Redis URL says. Raises BadSettings, which never shows a password."""
    try:
        return _parse(url)
    except ValueError as error:
        raise BadSettings(f"redis (ROUTECAST_REDIS_URL) {masked(url)!r}: {error}") from None


def _parse(url: str) -> RedisAddress:
    parts = split_url(url)
    scheme, _, kind = parts.scheme.partition("+")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unix = parts.scheme == "unix"
    if not unix and (scheme not in {"redis", "rediss", "valkey", "valkeys"} or kind not in _PORTS):
        raise ValueError(
            "must start with redis://, rediss:// (TLS), redis+sentinel://, redis+cluster:// or "
            "unix://"
        )
    login, _, places = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    hosts = tuple(_host(place, _PORTS[kind]) for place in places.split(",") if place)
    if len(hosts) > 1 and not kind:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    path = [unquote(part) for part in parts.path.split("/") if part]
    service = path.pop(0) if kind == "sentinel" and path else ""
    if kind == "sentinel" and not service:
        raise ValueError("name the master, as in redis+sentinel://host:26379,host:26379/mymaster")
    database = options.pop("db", "0") if unix else path.pop(0) if path else "0"
    if not database.isdecimal() or (path and not unix):
        raise ValueError("the path must be the number of a database, such as /0")
    if kind == "cluster" and int(database):
        raise ValueError("Redis Cluster has no database but 0")
    tls = scheme in {"rediss", "valkeys"}
    known = (_TLS_OPTIONS if tls else frozenset()) | (
        _SENTINEL_OPTIONS if kind == "sentinel" else frozenset()
    )
    if options.keys() - known:
        raise ValueError(f"the options it takes are: {', '.join(sorted(known)) or 'none'}")
    return RedisAddress(
        kind=kind,
        hosts=hosts or (("localhost", _PORTS[kind]),),
        tls=tls,
        username=unquote(username) or None,
        password=unquote(password) or None,
        database=int(database),
        service=service,
        socket=unquote(parts.path) if unix else "",
        options=options,
    )


def _host(place: str, port: int) -> tuple[str, int]:
    parts = split_url(f"//{place}")
    try:
        return parts.hostname or "localhost", parts.port or port
    except ValueError:  # whose text may show half a password
        raise ValueError("a port must be a number up to 65535") from None


def _connect(address: RedisAddress) -> tuple[Client, list[Redis]]:
    """Return a client, and those it asks for the way; nothing is connected yet."""
    limits: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "protocol": 2,  # answers in the same shape from every server
        "retry": Retry(NoBackoff(), 0),  # the breaker's business
    }
    tls = {name: value for name, value in address.options.items() if name in _TLS_OPTIONS}
    if address.tls:
        limits |= {"ssl": True, **tls}
    login: dict[str, Any] = {"username": address.username, "password": address.password}
    one = {"db": address.database, **login, **limits}
    if address.socket:
        return Redis(unix_socket_path=address.socket, **one), []
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        # Once more, with the new topology, is how a client learns that it changed.
        limits["retry"] = Retry(NoBackoff(), 1)
        return RedisCluster(startup_nodes=nodes, **login, **limits), []
    if address.kind == "sentinel":
        of_sentinels = {
            "username": address.options.get("sentinel_username"),
            "password": address.options.get("sentinel_password"),
            **limits,
            "socket_connect_timeout": CONNECT_SECONDS / 2,  # there are others to ask
            "socket_timeout": ANSWER_SECONDS / 2,
        }
        sentinel = Sentinel(  # type: ignore[no-untyped-call]  # -- the library left it untyped
            list(address.hosts), sentinel_kwargs=of_sentinels, **one
        )
        return sentinel.master_for(address.service), sentinel.sentinels
    ((host, port),) = address.hosts
    return Redis(host=host, port=port, **one), []


class RedisLink:
    """A Redis client of an adapter's own, behind the breaker that a node's adapters share."""

    def __init__(self, url: str, prefix: str, breaker: Breaker) -> None:
        self._prefix = prefix
        self._breaker = breaker
        self._client, self._guides = _connect(parse_address(url))

    def key(self, name: str) -> str:
        """Return the key for a name; all keys of one prefix are in one slot of a Cluster."""
        return f"{{{self._prefix}}}:{FORMAT}:{name}"

    async def call(self, ask: Callable[[Client], Awaitable[T]]) -> T:
        """Ask Redis, within CALL_SECONDS. Raises Unavailable: Refused when it answered with no."""
        try:
            with _cancellable(), self._breaker.call():
                try:
                    async with asyncio.timeout(CALL_SECONDS):
                        return await ask(self._client)
                except _FAILED as error:
                    if isinstance(error, exceptions.ReadOnlyError):
                        await self._leave()
                    raise Unavailable(str(error) or "no answer in time") from error
        except exceptions.RedisError as error:
            raise Refused(str(error)) from error

    async def _leave(self) -> None:
        """Hang up on a server that is no master any more: its name may lead to the new one."""
        if isinstance(self._client, Redis):
            await self._client.connection_pool.disconnect()

    async def pause(self) -> None:
        """Wait, after a call that failed, until there is a point in the next."""
        await asyncio.sleep(max(self._breaker.wait, PAUSE_SECONDS * (1 + random.random()) / 2))

    async def close(self) -> None:
        """Hang up. May be called twice."""
        for client in (self._client, *self._guides):
            await client.aclose()


@contextmanager
def _cancellable() -> Iterator[None]:
    """Raise a cancellation that went under in the body.

    redis-py sends with asyncio.wait_for, which up to Python 3.11 swallows one that comes just
    when the sending is done: a task told to end would go on for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    known = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > known:
            raise asyncio.CancelledError


def compress(data: bytes) -> bytes:
    """Return bytes made smaller, for what goes over the network and stays in memory there."""
    return zstd.compress(data, 1)


def decompress(data: bytes) -> bytes:
    """Return what `compress` was given. Raises ValueError on anything else."""
    try:
        return zstd.decompress(data)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None
