"""Connecting: to several hosts, through poolers, with settings that hold and a bound on silence.

A pooler such as PgBouncer may give each transaction another session of the server. A session that
may be of such a one is *pooled*: it prepares no statements, does nothing outside of transactions,
and each transaction sets its settings anew (`session.transaction`). A pooler greets a client before
a server is there for it, so it cannot tell the number of the process that will answer: by this it
is found, whether it pools by session or by transaction.
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
    settle_in,
)
from routecast.errors import BadDatabase

log = logging.getLogger(__name__)

# All hosts are asked within this time, in seconds: nobody waits for a session for less.
ASK_SECONDS: Final = 4.5
# A host that said nothing is asked last for this time, in seconds.
SILENT_SECONDS: Final = 60.0
# In seconds. A lock is waited for longer than a node that stopped in a transaction may hold it.
LOCK_SECONDS: Final = 5
IDLE_SECONDS: Final = 3
STATEMENT_SECONDS: Final = 20
# When the server itself says nothing any more.
DATABASE_ANSWER_SECONDS: Final = 25.0
# Statements that a session keeps prepared.
PREPARED: Final = 100

# What each process has logged, which would else come with each store that it opens.
_logged: set[str] = set()


def settings_of(address: Address, *, patient: bool = False) -> dict[str, str]:
    """Return the settings of a session, as the server shows them. A patient one takes its time."""
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
    """Makes the sessions of one database. Any number of nodes may have one each."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._address: Address | None = None
        self._pooled: bool | None = None  # not known yet
        # By the URLs of hosts: which gave the last session, and when others said nothing.
        self._last: str | None = None
        self._silent: dict[str, float] = {}

    @property
    def address(self) -> Address:
        """What the URL says. Raises BadDatabase where that cannot be done."""
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
        """Return a session with its settings, of the first host that gives one.

        Of ASK_SECONDS each host but the last has an equal share, so that one which says nothing
        leaves time for the others; a patient session has no such bound.

        Raises BadDatabase where the URL cannot be used, and what asyncpg raises: `failures` tells
        which of that is hopeless.
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
        """The hosts' URLs: the one that gave the last session first, those silent lately last."""
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
                target_session_attrs=SessionAttribute.any,  # whatever the environment says
            )
        except ssl.SSLError:  # some of which are a ValueError, too
            raise
        except (asyncpg.ClientConfigurationError, ValueError):
            # Whose text may hold a piece of the password.
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
        except BaseException:
            session.terminate()
            raise
        return session

    async def _set_up(self, session: DatabaseSession, settings: dict[str, str]) -> ServerIdentity:
        async with session.transaction():
            answer = await settle_in(session, settings, local=True)
            pooled = self.address.pooled or answer.process != session.get_server_pid()
            if not pooled:
                await settle_in(session, settings, local=False)
        session.setup = Setup(pooled, settings, answer.server)
        if pooled and self._pooled is False:
            # It has come between us and the server while we run; prepared statements would mix.
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
        if number and hasattr(socket, name):  # not every system has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)
