"""Connecting to PostgreSQL: several hosts, poolers, verified settings, bounded waiting.

A pooler such as PgBouncer may give each transaction another server session. A session that may come
from such a pooler is *pooled*: it prepares no statements, does nothing outside of transactions, and
applies its settings in each transaction (`connection.transaction`). A pooler accepts a client
before it has a server for it, so the process number that it tells is not that of the process that
answers. By this a pooler is detected, in session mode and in transaction mode.
"""

import asyncio
import logging
import socket
import ssl
import time
from typing import Final

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from routecast.adapters.store.postgres.address import Address, Keepalives, read_address
from routecast.adapters.store.postgres.connection import (
    NAME_SETTING,
    SCHEMA,
    DatabaseSession,
    ServerIdentity,
    Setup,
    apply_settings,
)
from routecast.errors import BadDatabase

log = logging.getLogger(__name__)

# The time for trying all hosts, in seconds: every wait for a session is at least this long.
ASK_SECONDS: Final = 4.5
# A host that did not answer is tried last for this time, in seconds.
SILENT_SECONDS: Final = 60.0
# Limits of the server, in seconds. The wait for a lock is longer than a node that is suspended in a
# transaction can hold it (IDLE_SECONDS).
LOCK_SECONDS: Final = 5
IDLE_SECONDS: Final = 3
STATEMENT_SECONDS: Final = 20
# The limit for a server that does not answer any more, in seconds.
DATABASE_ANSWER_SECONDS: Final = 25.0
# Statements that a session keeps prepared.
PREPARED: Final = 100

# The lines that this process has logged; otherwise each store that it opens would log them again.
_logged: set[str] = set()


def settings_of(address: Address, *, patient: bool = False) -> dict[str, str]:
    """Return the settings of a session, as the server shows them.

    A patient session, for long work, has no limits of time.
    """
    limits = {
        "lock_timeout": LOCK_SECONDS,
        "statement_timeout": STATEMENT_SECONDS,
        "idle_in_transaction_session_timeout": IDLE_SECONDS,
    }
    return {
        NAME_SETTING: address.application,
        "search_path": SCHEMA,
        "synchronous_commit": "on",
        "jit": "off",
        **{name: "0" if patient else f"{seconds}s" for name, seconds in limits.items()},
    }


class Connector:
    """Makes the sessions of one database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._address: Address | None = None
        self._pooled: bool | None = None  # unknown yet
        # By host URL: the host of the last session, and when others did not answer.
        self._last: str | None = None
        self._silent: dict[str, float] = {}

    @property
    def address(self) -> Address:
        """The contents of the URL. Raises BadDatabase if they are impossible."""
        if self._address is None:
            self._address = address = read_address(self._url)
            self._pooled = True if address.pooled else None
            for note in address.notes:
                log_once(f"The database URL: {note}")
        return self._address

    @property
    def pooled(self) -> bool:
        """Whether there is a pooler, as far as is known."""
        return self._pooled is not False

    async def connect(self, *, patient: bool = False) -> DatabaseSession:
        """Return a session with its settings applied, from the first host that gives one.

        Each host but the last has an equal share of ASK_SECONDS, so that a silent host leaves time
        for the others; a patient session has no such limit.

        Raises BadDatabase if the URL cannot be used, and the exceptions of asyncpg: `failures.py`
        tells which of them are permanent.
        """
        address = self.address
        turns = [(read_only, url) for read_only in address.roles for url in self._in_turn()]
        share = ASK_SECONDS / (len(turns) + 1)
        failure: Exception | None = None
        for number, (read_only, url) in enumerate(turns, 1):
            try:
                async with asyncio.timeout(None if patient or number == len(turns) else share):
                    session = await self._connect(url, read_only, patient=patient)
            except (
                OSError,
                TimeoutError,
                asyncpg.PostgresConnectionError,
                asyncpg.CannotConnectNowError,
                asyncpg.TargetServerAttributeNotMatched,
            ) as error:
                if isinstance(error, TimeoutError):
                    self._silent[url] = time.monotonic()
                failure = error
            else:
                self._last = url
                return session
        assert failure is not None
        raise failure

    def _in_turn(self) -> list[str]:
        """Return the hosts' URLs: that of the last session first, those silent recently last."""
        silent = {url for url, at in self._silent.items() if time.monotonic() - at < SILENT_SECONDS}
        return sorted(self.address.urls, key=lambda url: (url in silent, url != self._last))

    async def _connect(self, url: str, read_only: bool | None, *, patient: bool) -> DatabaseSession:
        address = self.address
        settings = settings_of(address, patient=patient)
        try:
            session: DatabaseSession = await asyncpg.connect(
                url,
                connection_class=DatabaseSession,
                timeout=address.connect_seconds,
                command_timeout=None if patient else DATABASE_ANSWER_SECONDS,
                statement_cache_size=0 if self.pooled else PREPARED,
                server_settings={} if address.options is None else {"options": address.options},
                ssl=address.tls,
                target_session_attrs=SessionAttribute.any,  # regardless of the environment
            )
        except ssl.SSLError:  # some of them are also a ValueError
            raise
        except (asyncpg.ClientConfigurationError, ValueError):
            # Its text may contain a part of the password.
            raise BadDatabase(
                "the URL cannot be used: check its host and port, and its files for TLS"
            ) from None
        try:
            keep_alive(session.transport, address.keepalives)
            async with asyncio.timeout(DATABASE_ANSWER_SECONDS):
                answer = await self._set_up(session, settings)
            if read_only not in (None, answer.read_only):
                wanted = "only reads" if read_only else "takes writes"
                raise asyncpg.TargetServerAttributeNotMatched(f"no host of the URL {wanted}")
        except BaseException:  # no error, and no cancellation, leaves the connection open
            session.terminate()
            raise
        return session

    async def _set_up(self, session: DatabaseSession, settings: dict[str, str]) -> ServerIdentity:
        async with session.transaction():
            answer = await apply_settings(session, settings, local=True)
            pooled = self.address.pooled or answer.process != session.get_server_pid()
            if not pooled:
                await apply_settings(session, settings, local=False)
        session.setup = Setup(pooled, settings, answer.server)
        if pooled and self._pooled is False:
            # A pooler was put before the server while this node runs: prepared statements would be
            # mixed up.
            self._pooled = True
            raise ConnectionError("a pooler has come in front of the server")
        self._pooled = pooled
        return answer

    def log_settings(self, session: DatabaseSession) -> None:
        """Log the settings of sessions, once in a process, because they do not change."""
        version = session.get_server_version()
        settings = ", ".join(
            f"{name} = {value}" for name, value in settings_of(self.address).items()
        )
        pooled = session.setup.pooled
        log_once(
            f"PostgreSQL {version.major}.{version.minor}{' through a pooler' if pooled else ''}; "
            f"each {'transaction' if pooled else 'session'} sets and reads back: {settings}"
        )


def log_once(line: str) -> None:
    """Log a line once in this process."""
    if line not in _logged:
        _logged.add(line)
        log.info("%s", line)


def keep_alive(transport: asyncio.Transport, keepalives: Keepalives) -> None:
    """Have the kernel notice a connection whose other end is gone."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX or not keepalives.on:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, number in (
        ("TCP_KEEPIDLE", keepalives.idle),
        ("TCP_KEEPINTVL", keepalives.interval),
        ("TCP_KEEPCNT", keepalives.count),
        ("TCP_USER_TIMEOUT", keepalives.unacked_ms),
    ):
        if number and hasattr(socket, name):  # some systems lack some of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)
