"""`Recorder`: sends decisions to a server from a program that must not wait for it."""

import logging
import sys
import threading
import time
from functools import partial
from os import getpid
from typing import Any, Final, Self, Unpack

from routecast.client.auth import Token
from routecast.client.counters import Counters, Tally
from routecast.client.decision import Decision, copied
from routecast.client.process import here
from routecast.client.sender import RecorderSettings, Sender
from routecast.client.url import DEFAULT_SERVER, Server

logger: Final = logging.getLogger("routecast.client")

CAPACITY: Final = 100_000  # decisions; a few hundred bytes each
BATCH: Final = 1_000
LINGER: Final = 0.2
EXIT_TIMEOUT: Final = 5.0


class Recorder:
    """Queues decisions, and sends them in batches from a background thread.

    Use it as a context manager, or `close` it. Otherwise the exit of the program sends the
    decisions that wait. Lost decisions are logged.

    Each decision has its id before it is first sent, so that it counts once even if it is sent
    again.

    A recorder belongs to the process that uses it: queue, thread, connection and ids are made at
    the first `record` in a process, so a recorder may be made before a fork, and pickled. In each
    process, recorders with equal arguments share a queue, a thread and a connection.

    Args:
        url: The address of the server, as for `Client`.
        capacity: The maximum number of decisions that wait or are being sent, from 1; default
            100,000. If there are more, the oldest are dropped, because new ones are worth more.
        batch: The number of waiting decisions at which a batch is sent, and the maximum number in a
            batch, from 1; default 1,000. A batch never has more than 50,000, nor more than half of
            `capacity`.
        linger: How long the first decision of a batch waits for others, in seconds; default 0.2.
        token: A token or an API key, sent as `Authorization: Bearer`. A function is called before
            each batch, and returns the token. After its exception, or if the server refuses the
            token that it returned, the batch is sent later.
        exit_timeout: How long the exit of the program may take to send what waits, in seconds, for
            all recorders together; default 5.

    Raises:
        BadParameter: `url` is not an address of a server.
        ValueError: A number is out of its range.

    Examples:
        >>> with Recorder("http://127.0.0.1:8000") as recorder:
        ...     recorder.record(strategy="hybrid", provider="gemini", cost=0.0023)
        >>> recorder.counters.sent
        1
    """

    def __init__(
        self,
        url: str = DEFAULT_SERVER,
        *,
        capacity: int = CAPACITY,
        batch: int = BATCH,
        linger: float = LINGER,
        token: Token | None = None,
        exit_timeout: float = EXIT_TIMEOUT,
    ) -> None:
        _check_range("capacity", capacity, 1, sys.maxsize)
        _check_range("batch", batch, 1, sys.maxsize)
        _check_range("linger", linger, 0, threading.TIMEOUT_MAX)
        _check_range("exit_timeout", exit_timeout, 0, threading.TIMEOUT_MAX)
        self._settings = RecorderSettings(
            Server.parse(url), token, capacity, batch, linger, exit_timeout
        )
        self._closed = False
        # By process id: after a fork, `_begin` removes the parent's.
        self._mine: dict[int, tuple[Tally, Sender]] = {}

    # -- what programs call ---------------------------------------------------------------------

    def record(self, decision: Any = None, /, **fields: Unpack[Decision]) -> None:
        """Queue one decision, in some microseconds. It never waits, and never raises.

        Any thread, signal handler or greenlet may call it. The fields are copied, so the caller may
        change the decision afterwards. A decision that cannot be used counts as rejected, and the
        log says why.

        Args:
            decision: A mapping with the fields of a `Decision`, or an object with these fields: a
                dataclass, a pydantic model, a row of pandas and similar ones.
            **fields: The fields of a `Decision`. They replace those of `decision`.

        Examples:
            >>> call = {"strategy": "hybrid", "provider": "gemini"}
            >>> with Recorder("http://127.0.0.1:8000") as recorder:
            ...     recorder.record(call, latency_ms=374)
        """
        try:
            given = copied(decision, fields)
            tally, sender = self._mine.get(getpid()) or self._begin()
            number = tally.recorded.add()
            if not self._closed:
                sender.put((tally, number, time.time(), given))
        except Exception:  # any error: the program must not fail because of it
            logger.exception("a decision could not be recorded")

    def flush(self, timeout: float | None = None) -> bool:
        """Send waiting decisions now, and wait until they are settled.

        It blocks: with asyncio, use `await asyncio.to_thread(recorder.flush)`.

        Args:
            timeout: The maximum time to wait, in seconds. None: no limit, also if the server cannot
                be reached.

        Returns:
            Whether the outcome of each decision that was recorded before is known. After False,
            the others continue to wait.
        """
        if (mine := self._mine.get(getpid())) is None:
            return True
        tally, sender = mine
        until = None if timeout is None else time.monotonic() + timeout
        due = tally.recorded.value
        if not self._closed:
            sender.hurry()
        return sender.await_settled(tally, due, until)

    def close(self, timeout: float | None = None) -> bool:
        """Send waiting decisions, and end. `with` calls it.

        It blocks as `flush` does. Decisions that are not settled in time are dropped, and so are
        decisions that are recorded later. Other recorders with the same arguments continue.

        Args:
            timeout: The maximum time to wait, in seconds. None: `exit_timeout`.

        Returns:
            Whether the outcome of each decision is known. After False, a warning in the log has the
            number of the others.
        """
        first, self._closed = not self._closed, True
        if (mine := self._mine.get(getpid())) is None:
            return True
        tally, sender = mine
        seconds = self._settings.exit_timeout if timeout is None else timeout
        due = tally.recorded.value
        sender.hurry()
        settled = sender.await_settled(tally, due, time.monotonic() + seconds)
        lost = tally.unsettled
        tally.over = True
        sender.wake()
        # Only those that were not sent in time; decisions dropped for lack of room are logged
        # elsewhere.
        if first and not settled:
            words = "%s: closed after %g s with %s decisions not sent, or not answered for"
            logger.warning(words, self._settings.server, seconds, f"{lost:,}")
        return settled

    @property
    def counters(self) -> Counters:
        """The outcomes of the decisions that this recorder has recorded in this process.

        Examples:
            >>> Recorder().counters
            Counters(sent=0, duplicates=0, rejected=0, dropped=0, waiting=0, retried=0, conflicts=0)
        """
        mine = self._mine.get(getpid())
        return Counters() if mine is None else mine[0].counters()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # The arguments only: another process has decisions of its own.
        arguments = self._settings
        made = partial(
            type(self),
            capacity=arguments.capacity,
            batch=arguments.batch,
            linger=arguments.linger,
            token=arguments.token,
            exit_timeout=arguments.exit_timeout,
        )
        return made, (arguments.server.url,)

    # -- what belongs to a process --------------------------------------------------------------

    def _begin(self) -> tuple[Tally, Sender]:
        """Make the tally and find the sender, at the first use in a process."""
        pid = getpid()
        # One operation, so that threads which come at once get the same.
        mine = self._mine.setdefault(pid, (Tally(), here().sender(self._settings)))
        mine[0].over = self._closed
        for other in list(self._mine):
            if other != pid:
                self._mine.pop(other, None)
        return mine


def _check_range(name: str, value: float, least: int, most: float) -> None:
    if not least <= value <= most:  # NaN is refused, too
        raise ValueError(f"{name}: {value} is not between {least} and {most:g}")
