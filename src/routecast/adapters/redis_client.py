"""Redis clients: for a server, Sentinel or Cluster, by the URL, behind a circuit breaker.

Valkey works the same way. All commands that are used exist since Redis 6.2.
"""

import asyncio
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl, unquote

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from routecast.circuit_breaker import CircuitBreaker
from routecast.errors import BadSettings, Declined, Unavailable
from routecast.urls import masked, split_url

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

log = logging.getLogger(__name__)

# Timeouts, in seconds: to connect, for one reply, and for a whole call with its questions to
# sentinels.
REDIS_CONNECT_SECONDS: Final = 1.0
REDIS_ANSWER_SECONDS: Final = 1.0
CALL_SECONDS: Final = 2.0
# The pause, in seconds, after a failure that did not open the circuit breaker, or while another
# call tries whether Redis is back.
PAUSE_SECONDS: Final = 0.1
# Part of every key: nodes of different versions share data only if this is equal.
REDIS_FORMAT: Final = 1

_PORTS: Final = {"": 6379, "sentinel": 26379, "cluster": 6379}
_TLS_OPTIONS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})
_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})
_REQUIREMENTS: Final = {"none", "optional", "required"}  # of `ssl_cert_reqs`
# Error replies that mean that another server must be used. All other error replies are answers to
# the command; other exceptions of the client library are not.
_WRONG_SERVER: Final = (exceptions.ReadOnlyError, exceptions.ClusterDownError)
# Errors that the library itself expects: after them the state of its connections is known.
_EXPECTED: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.RedisClusterException,
    OSError,  # TimeoutError is one, too
)
# Characters shown of an error text of the library, which may quote received bytes.
MAX_CHARACTERS_SHOWN: Final = 300

RedisClient: TypeAlias = "Redis | RedisCluster"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The parts of a Redis URL. `kind` is "" (one server), "sentinel" or "cluster"."""

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
    """Parse a Redis URL. Raises BadSettings, which never shows a password."""
    with _as_setting_error(url):
        return _parse(url)


@contextmanager
def _as_setting_error(url: str) -> Iterator[None]:
    try:
        yield
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
    login, _, addresses = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    hosts = tuple(_host(text, _PORTS[kind]) for text in addresses.split(",") if text)
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


def _check_tls(options: Mapping[str, str]) -> None:
    """Raise ValueError if a file or option for TLS cannot be used."""
    if options.get("ssl_cert_reqs", "required") not in _REQUIREMENTS:
        raise ValueError(f"ssl_cert_reqs must be one of {', '.join(sorted(_REQUIREMENTS))}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities := options.get("ssl_ca_certs"):
        try:
            context.load_verify_locations(authorities)
        except OSError as error:
            raise ValueError(f"ssl_ca_certs: {authorities}: {_reason(error)}") from None
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if key and not certificate:
        raise ValueError("ssl_keyfile needs ssl_certfile, the certificate of this key")
    if certificate:
        files = " and ".join(filter(None, (certificate, key)))
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            raise ValueError(f"ssl_certfile, ssl_keyfile: {files}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    # For existing files, OpenSSL only names the line of its source.
    shown = error.strerror if not isinstance(error, ssl.SSLError) else None
    return shown or "is not in the form that is needed (PEM)"


def _host(text: str, port: int) -> tuple[str, int]:
    parts = split_url(f"//{text}")
    try:
        return parts.hostname or "localhost", parts.port or port
    except ValueError:  # its text may contain half a password
        raise ValueError("a port must be a number up to 65535") from None


def _connect(address: RedisAddress) -> tuple[RedisClient, list[Redis]]:
    """Return a client, and the sentinels that it asks; nothing is connected yet."""
    limits: dict[str, Any] = {
        "socket_connect_timeout": REDIS_CONNECT_SECONDS,
        "socket_timeout": REDIS_ANSWER_SECONDS,
        "protocol": 2,  # answers in the same shape from every server
        "retry": Retry(NoBackoff(), 0),  # the breaker does that
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
        # One more try, with the new topology: by this a client notices that it has changed.
        limits["retry"] = Retry(NoBackoff(), 1)
        return RedisCluster(startup_nodes=nodes, **login, **limits), []
    if address.kind == "sentinel":
        of_sentinels = {
            "username": address.options.get("sentinel_username"),
            "password": address.options.get("sentinel_password"),
            **limits,
            "socket_connect_timeout": REDIS_CONNECT_SECONDS / 2,  # there are other sentinels to ask
            "socket_timeout": REDIS_ANSWER_SECONDS / 2,
        }
        sentinel = _Sentinels(  # type: ignore[no-untyped-call]  # -- the library left it untyped
            list(address.hosts), sentinel_kwargs=of_sentinels, **one
        )
        return sentinel.master_for(address.service), sentinel.sentinels
    ((host, port),) = address.hosts
    return Redis(host=host, port=port, **one), []


class _Sentinels(Sentinel):
    """Sentinels that are asked one after the other, even if one of them fails in an unusual way."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the master's address. Raises ConnectionError with the reason of each sentinel."""
        failures = []
        for index, sentinel in enumerate(self.sentinels):
            where = sentinel.connection_pool.connection_kwargs
            at = f"sentinel {where['host']}:{where['port']}"
            try:
                masters: Any = await sentinel.sentinel_masters()
                state = masters.get(service_name)
                is_usable = state is not None and self.check_master_state(state, service_name)
            except Exception as error:  # the server may be no sentinel at all
                failures.append(f"{at}: {text_of(error)}")
                continue
            if is_usable:
                # The next time, the one that has answered is asked first.
                self.sentinels[0], self.sentinels[index] = sentinel, self.sentinels[0]
                return state["ip"], state["port"]
            if state is None:
                known = ", ".join(map(repr, sorted(masters))) or "none"
                failures.append(f"{at} knows no master {service_name!r}; it knows: {known}")
            else:
                failures.append(f"{at} takes the master {service_name!r} for down")
        raise exceptions.ConnectionError("; ".join(failures))


class RedisLink:
    """The Redis client of one adapter, behind the circuit breaker that a node's adapters share.

    Raises BadSettings if the URL, or a file that it names, cannot be used.
    """

    def __init__(self, url: str, prefix: str, breaker: CircuitBreaker) -> None:
        self._prefix = prefix
        self._breaker = breaker
        self.address = parse_address(url)
        if self.address.tls:
            with _as_setting_error(url):
                _check_tls(self.address.options)
        self._client, self._sentinels = _connect(self.address)

    def key(self, name: str) -> str:
        """Return the key for a name; all keys with one prefix are in one slot of a Cluster."""
        return f"{{{self._prefix}}}:{REDIS_FORMAT}:{name}"

    async def call(
        self,
        ask: Callable[[RedisClient], Awaitable[Any]],
        read: Callable[[Any], T] = lambda reply: reply,
    ) -> T:
        """Call Redis, within CALL_SECONDS, and return the reply as `read` returns it.

        Raises Declined if Redis answers with an error, and Unavailable for any other failure. If
        `read` raises, the reply did not come from Redis: that is Unavailable, too.
        """
        with self._breaker.call(), _cancellable():
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    return read(await ask(self._client))
            except Exception as error:
                if _is_answer(error):
                    raise Declined(text_of(error)) from error
                if not isinstance(error, _EXPECTED):
                    # It is not Redis, or the library does not know the state of its connections.
                    log.debug("Unexpected error in a call of Redis", exc_info=True)
                    await self._disconnect()
                raise Unavailable(text_of(error)) from error

    async def _disconnect(self) -> None:
        """Close connections that may be broken. The next one may lead to another server."""
        with suppress(Exception):
            if isinstance(self._client, Redis):
                await self._client.connection_pool.disconnect()
            else:
                await self._client.aclose()

    async def pause(self) -> None:
        """Wait, after a failed call, until the next one may succeed."""
        await asyncio.sleep(max(self._breaker.wait, PAUSE_SECONDS))

    async def close(self) -> None:
        """Close all connections. May be called twice."""
        for client in (self._client, *self._sentinels):
            # Closing a broken connection may raise; nothing more can be done about it.
            with suppress(Exception):
                async with asyncio.timeout(REDIS_CONNECT_SECONDS):
                    await client.aclose()


def _is_answer(error: Exception) -> bool:
    """Whether an error is Redis's own reply to a command. Other errors are failures of Redis."""
    return isinstance(error, exceptions.ResponseError) and not isinstance(error, _WRONG_SERVER)


def refusal(reply: Any) -> str | None:
    """Return the text of a reply that is an error; None for any other reply.

    Raises the error if it is not an answer to the command.
    """
    if not isinstance(reply, Exception):
        return None
    if not _is_answer(reply):
        raise reply
    return text_of(reply)


def text_of(error: BaseException) -> str:
    """Return an error of Redis as one line, for logs and `/health`."""
    text = " ".join(str(error).split())[:MAX_CHARACTERS_SHOWN]
    if isinstance(error, exceptions.InvalidResponse):
        return f"what answers at its address does not speak Redis's protocol: {text}"
    if isinstance(error, exceptions.RedisError | exceptions.RedisClusterException | OSError):
        return text or "no answer in time"
    if isinstance(error, RuntimeError):  # uvloop, for a transport that was reset
        return "the connection was reset"
    return f"what answers at its address does not answer as Redis does ({type(error).__name__})"


@contextmanager
def _cancellable() -> Iterator[None]:
    """Raise a cancellation of this task that the body swallowed.

    redis-py sends with asyncio.wait_for. Up to Python 3.11, that swallows a cancellation that comes
    just as the sending ends, and the cancelled task would run for ever. A CancelledError that is
    not a cancellation of this task becomes Unavailable.
    """
    task = asyncio.current_task()
    assert task is not None
    known = task.cancelling()
    try:
        yield
    except asyncio.CancelledError as error:
        if task.cancelling() > known:
            raise
        raise Unavailable("the call was given up by the client library") from error
    finally:
        if task.cancelling() > known:
            raise asyncio.CancelledError


def is_done(reply: Any) -> bool:
    """Read the reply of a script that returns 1 if it did something, else 0."""
    if type(reply) is not int or reply not in (0, 1):
        raise ValueError("a script's reply is neither 0 nor 1")
    return bool(reply)


def compress(data: bytes) -> bytes:
    """Return compressed bytes, for the network and for Redis's memory."""
    return zstd.compress(data, 1)


def compress_pieces(pieces: Iterable[bytes]) -> bytes:
    """Return the compressed bytes of all pieces together. Other threads run meanwhile."""
    compressor = zstd.ZstdCompressor(1)
    return b"".join([*map(compressor.compress, pieces), compressor.flush()])


def decompress(data: bytes) -> bytes:
    """Return the bytes that were compressed. Raises ValueError on anything else."""
    try:
        return zstd.decompress(data)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None
