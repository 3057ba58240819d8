"""Decisions to a server, from the midst of a program that must not wait for it."""

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
    """Takes decisions in within microseconds, and sends them in batches from a background thread.

    `record` never waits and never raises. At most `capacity` decisions wait; when there are more,
    the oldest are dropped: what a router does now is worth more than what it did. A batch goes
    when `linger` seconds have passed or `batch` decisions are there. Each decision has its id
    before it is first sent, so that one sent again counts once.

    It belongs to the process that uses it: queue, thread, connection and ids are made at the first
    `record` in a process, so a recorder may be made before a fork and pickled. In each process,
    recorders with equal arguments share a queue, a thread and a connection.

    Use as a context manager, or `close` it; what waits at the exit of the program is sent then, for
    at most `exit_timeout` seconds, which all recorders share. What is lost is logged.

    `token` is sent as `Authorization: Bearer`; a function is asked for it before each batch.
    Raises BadParameter when `url` is no address, and ValueError for a number that cannot work.
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
        # Of this process, by its id; those of a parent are found here at most once.
        self._mine: dict[int, tuple[Tally, Sender]] = {}

    # -- what programs call ---------------------------------------------------------------------

    def record(self, decision: Any = None, /, **fields: Unpack[Decision]) -> None:
        """Take one decision in: as names and values, as a mapping, or as an object with fields.

        Objects are a `DecisionIn`, a dataclass, a model of pydantic, a row of pandas and the like.
        What is None is left out. Without an `id` it gets one; without a `timestamp`, the present.
        """
        try:
            given = copied(decision, fields)
            tally, sender = self._mine.get(getpid()) or self._begin()
            number = tally.recorded.add()
            if not self._closed:
                sender.put((tally, number, time.time(), given))
        except Exception:  # whatever it is, the program around it has its own work to do
            logger.exception("a decision could not be recorded")

    def flush(self, timeout: float | None = None) -> bool:
        """Send at once; return whether all recorded until now is settled within `timeout` seconds.

        False where the server cannot be reached in time: decisions go on waiting for it, until
        `close` gives them up.
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
        """Send what waits, for at most `timeout` seconds (`exit_timeout`), and end.

        Return whether all of it was settled; what was not is dropped, as is all recorded later.
        Other recorders with the same arguments go on.
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
        sender.ring()
        # What was dropped for want of room is told elsewhere: this is what time was short for.
        if first and not settled:
            words = "%s: closed after %g s with %s decisions not sent, or not answered for"
            logger.warning(words, self._settings.server, seconds, f"{lost:,}")
        return settled

    @property
    def counters(self) -> Counters:
        """What became of the decisions recorded so far by this recorder in this process."""
        mine = self._mine.get(getpid())
        return Counters() if mine is None else mine[0].counters()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickle and copy the arguments alone: another process has decisions of its own."""
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
        """Start from nothing, at the first use in a process."""
        pid = getpid()
        # One operation, so that threads which come at once get the same.
        mine = self._mine.setdefault(pid, (Tally(), here().sender(self._settings)))
        mine[0].over = self._closed
        for other in list(self._mine):
            if other != pid:
                self._mine.pop(other, None)
        return mine


def _check_range(name: str, value: float, least: int, most: float) -> None:
    if not least <= value <= most:  # nor is NaN
        raise ValueError(f"{name}: {value} is not between {least} and {most:g}")
