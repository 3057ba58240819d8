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
    """Queues decisions within microseconds, and sends them in batches from a background thread.

    `record` never waits and never raises. At most `capacity` decisions wait; if there are more, the
    oldest are dropped, because new decisions are worth more. A batch is sent when `batch` decisions
    wait, or `linger` seconds after the first. Each decision gets its id before it is first sent, so
    that it counts once even if it is sent again.

    It belongs to the process that uses it: queue, thread, connection and ids are made at the first
    `record` in a process, so a recorder may be made before a fork and pickled. In each process,
    recorders with equal arguments share a queue, a thread and a connection.

    Use it as a context manager, or `close` it. Decisions that wait at the exit of the program are
    sent then, for at most `exit_timeout` seconds in all. Lost decisions are logged.

    `token` is sent as `Authorization: Bearer`; if it is a function, it is called before each batch.
    Raises BadParameter if `url` is not an address, and ValueError if a number is out of range.
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
        """Queue one decision: keyword arguments, a mapping, or an object with fields.

        Objects may be a `DecisionIn`, a dataclass, a pydantic model, a row of pandas and similar
        ones. Fields that are None are left out. Without an `id`, the decision gets one; without a
        `timestamp`, the current time.
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
        """Send now; return whether all earlier decisions are settled within `timeout` seconds.

        If the server cannot be reached in time, the result is False, and decisions continue to wait
        until `close` drops them.
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
        """Send waiting decisions for at most `timeout` seconds (default: `exit_timeout`), and end.

        Return whether all of them were settled. Others are dropped, and so are all decisions
        recorded later. Other recorders with the same arguments continue.
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
        """The outcomes of the decisions that this recorder has recorded in this process."""
        mine = self._mine.get(getpid())
        return Counters() if mine is None else mine[0].counters()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickle and copy the arguments only: another process has decisions of its own."""
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
