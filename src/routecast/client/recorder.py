"""Decisions to a server, from the midst of a program that must not wait for it."""

import atexit
import logging
import os
import queue
import secrets
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final, Self, Unpack

from routecast.client.address import DEFAULT_SERVER, Server
from routecast.client.backoff import Backoff
from routecast.client.credentials import Token
from routecast.client.decision import Decision, copied, encode
from routecast.client.delivery import Delivery
from routecast.errors import Refused, Unauthenticated, Unavailable
from routecast.protocol import MAX_BATCH, DecisionIn, Receipt

logger: Final = logging.getLogger("routecast.client")

CAPACITY: Final = 100_000  # decisions; a few hundred bytes each
BATCH: Final = 1_000
LINGER: Final = 0.2
EXIT_TIMEOUT: Final = 5.0
_MAX_BODY: Final = 1024 * 1024  # what proxies take without being told to (nginx: 1 MiB)
_MAX_WARNINGS: Final = 100
_TOO_LARGE: Final = 413  # the batch; its halves may not be
_UNREADABLE: Final = 400  # what one decision may bring upon the others of its batch
_MAX_PARTINGS: Final = 64  # of one batch: a server that refuses all of it is not asked for each
_MAX_CAUSES: Final = 32  # of one outage, that are told


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of all decisions recorded: each is in one of the first five.

    `sent` were accepted, `duplicates` known already, `rejected` not wanted by the server (or no
    decision at all), `dropped` lost for want of room or time. `retried` counts each decision again
    whenever it was sent again.
    """

    sent: int = 0
    duplicates: int = 0
    rejected: int = 0
    dropped: int = 0
    waiting: int = 0
    retried: int = 0


# Its number, when it was recorded, and what was given. A plain tuple: it is made in a fraction of
# the time that a named one takes, and Python's garbage collector soon looks away from it.
_Entry = tuple[int, float, Any]


class Recorder:
    """Takes decisions in within microseconds, and sends them in batches from a thread of its own.

    `record` never waits and never raises. At most `capacity` decisions wait; when there are more,
    the oldest are dropped (`drop_oldest`): what a router does now is worth more than what it did.
    A batch goes when `linger` seconds have passed or `batch` decisions are there. Each decision has
    its id before it is first sent, so that one sent again counts once.

    Use as a context manager, or `close` it; what waits at the interpreter's exit is sent then, for
    at most `exit_timeout` seconds. A forked child starts empty, with ids of its own; children that
    end by `os._exit`, as those of `multiprocessing` do, must close theirs.

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
        self._server = Server.parse(url)
        _check_range("capacity", capacity, 1, sys.maxsize)
        _check_range("batch", batch, 1, sys.maxsize)
        _check_range("linger", linger, 0, threading.TIMEOUT_MAX)
        _check_range("exit_timeout", exit_timeout, 0, threading.TIMEOUT_MAX)
        self._capacity = capacity
        # Half of the room, at most: what is in flight cannot be dropped, and it is the oldest.
        self._batch = min(batch, MAX_BATCH, max(capacity // 2, 1))
        self._linger = linger
        self._token = token
        self._exit_timeout = exit_timeout
        self._begin()
        _recorders.add(self)
        atexit.register(self.close, exit_timeout)

    def _begin(self) -> None:
        """Start from nothing: in a new recorder, or in a forked child."""
        self._prefix = secrets.token_hex(8)
        # Numbered without a hole, so a hole in what comes out is what was dropped.
        self._numbers = count()
        self._waiting: deque[_Entry] = deque(maxlen=self._capacity)
        # Unlike an Event, it may be rung by a signal handler that interrupts its own ringing.
        self._bell: queue.SimpleQueue[Future[bool] | None] = queue.SimpleQueue()
        self._asleep = True
        self._deadline: float | None = None  # of the monotonic clock, once closed
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        # What follows is the thread's own; others only read it.
        self._flushes: list[tuple[int, Future[bool]]] = []
        self._known = Counters()
        self._taken = 0
        self._next = 0
        self._in_flight = 0
        self._room = self._capacity  # for those that wait, apart from those in flight
        self._ended = False
        self._causes: set[str] = set()  # of the present outage
        self._told: set[str] = set()

    # -- the caller's side ----------------------------------------------------------------------

    def record(
        self, decision: Mapping[str, Any] | DecisionIn | None = None, /, **fields: Unpack[Decision]
    ) -> None:
        """Take one decision in: as names and values, as a mapping, or as a `DecisionIn`.

        What is None is left out. Without an `id` it gets one; without a `timestamp`, the present.
        """
        given = fields if decision is None else copied(decision, fields)
        self._waiting.append((next(self._numbers), time.time(), given))
        if len(self._waiting) > self._room:
            self._drop_oldest()
        if self._asleep:
            self._ring(None)

    def flush(self, timeout: float | None = None) -> bool:
        """Send at once; return whether all recorded until now is settled within `timeout` seconds.

        False where the server cannot be reached in time: decisions go on waiting for it, until
        `close` gives them up.
        """
        if self._thread is None and (not self._waiting or self._deadline is not None):
            return not self._waiting
        done: Future[bool] = Future()
        self._ring(done)
        if self._ended:
            return not self._unsettled
        try:
            return done.result(timeout)
        except TimeoutError:
            return False

    def close(self, timeout: float | None = None) -> bool:
        """Send what waits, for at most `timeout` seconds (`exit_timeout`), and end.

        Return whether all of it was settled; what was not is dropped, as is all recorded later.
        """
        atexit.unregister(self.close)
        seconds = self._exit_timeout if timeout is None else timeout
        if first := self._deadline is None:
            self._deadline = time.monotonic() + seconds
            if self._waiting:
                self._start()
            self._bell.put(Future())
        if self._thread is not None:
            self._thread.join(seconds)
        # What was dropped for want of room is in `counters` only: this is what time was short for.
        unsettled = self._unsettled
        if first and unsettled:
            words = "%s: closed after %g s with %s decisions not sent, or not answered for"
            logger.warning(words, self._server, seconds, f"{unsettled:,}")
        return not unsettled

    @property
    def counters(self) -> Counters:
        """What became of the decisions so far."""
        return self._count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _unsettled(self) -> int:
        return self._in_flight + len(self._waiting)

    @property
    def _over(self) -> bool:
        """Whether what is not settled by now is given up."""
        if self._deadline is None:
            return False
        return self._late() or not (self._thread and self._thread.is_alive())

    def _count(self) -> Counters:
        over = self._over
        try:
            oldest = self._waiting[0][0]
        except IndexError:
            oldest = self._next
        # Threads may append out of order by a few, so for an instant this may be short by a few.
        lost = max(oldest - self._taken, 0)
        unsettled = self._unsettled
        if over:
            return replace(self._known, dropped=lost + unsettled)
        return replace(self._known, dropped=lost, waiting=unsettled)

    def _drop_oldest(self) -> None:
        with suppress(IndexError):  # the thread took it
            self._pop()

    def _ring(self, flush: "Future[bool] | None") -> None:
        self._asleep = False
        if self._deadline is None:
            self._start()
        self._bell.put(flush)

    def _start(self) -> None:
        if self._thread is None and self._starting.acquire(blocking=False):
            thread = threading.Thread(target=self._run, name="routecast-recorder", daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError:  # no more threads are to be had, or the interpreter is ending
                self._asleep = True
            finally:
                self._starting.release()

    # -- the thread's side ----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with closing(Delivery(self._server, self._token)) as delivery:
                while self._rest():
                    while self._waiting and not self._late():
                        self._deliver(delivery, self._take())
                        self._answer_flushes()
                    self._answer_flushes()
        finally:
            # What still waits stays where it is: it counts as dropped.
            self._ended = True  # who rings from now on looks for himself
            while not self._bell.empty():
                self._hear(0)
            for _, flush in self._flushes:
                flush.set_result(not self._unsettled)

    def _rest(self) -> bool:
        """Wait for a decision, and a little for others to go with it; False at the end."""
        self._asleep = True
        while not self._waiting and self._deadline is None and not self._flushes:
            self._hear(None)
        self._asleep = False
        if len(self._waiting) < self._batch and self._deadline is None and not self._flushes:
            self._hear(self._linger)
        return bool(self._deadline is None or (self._waiting and not self._late()))

    def _hear(self, seconds: float | None) -> bool:
        """Wait for the bell; return whether somebody waits for a flush."""
        try:
            flush = self._bell.get(timeout=seconds)
        except queue.Empty:
            return False
        if flush is None:
            return False
        self._flushes.append((self._taken + len(self._waiting), flush))
        return True

    def _answer_flushes(self) -> None:
        if self._in_flight:  # given up
            return
        for due, flush in self._flushes:
            if due <= self._taken or not self._waiting:
                flush.set_result(True)
        self._flushes = [flush for flush in self._flushes if not flush[1].done()]

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _take(self) -> list[bytes]:
        """Take the oldest decisions, as many as go into one body."""
        texts: list[bytes] = []
        size = 0
        while self._waiting and len(texts) < self._batch and size < _MAX_BODY:
            self._room -= 1  # before it is free, so that nothing goes there meanwhile
            try:
                entry = self._pop()
            except IndexError:  # it was just dropped
                self._room += 1
                break
            self._taken += 1
            try:
                number, at, given = entry
                texts.append(encode(given, f"{self._prefix}-{number}", at))
            except Exception as error:  # a decision may hold any object of the caller's
                self._room += 1
                self._reject(1, f"no decision: {error}")
            else:
                size += len(texts[-1])
                self._in_flight += 1
        return texts

    def _pop(self) -> _Entry:
        entry = self._waiting.popleft()
        self._next = max(self._next, entry[0] + 1)
        return entry

    def _deliver(self, delivery: Delivery, texts: list[bytes]) -> None:
        """Send one batch until the server has answered for all of it, or time is up."""
        parts, partings, backoff = [texts] if texts else [], 0, Backoff()
        while parts:
            part = parts.pop()
            try:
                self._settle(delivery.send(b"[" + b",".join(part) + b"]"))
            except Exception as error:  # a token may be none: the thread must go on
                if self._may_send_again(error):
                    self._tell_failing(str(error))
                    if not self._pause(backoff.next(), getattr(error, "retry_after", 0)):
                        return
                    self._add(retried=len(part))
                    parts.append(part)
                    continue
                refused = error.code if isinstance(error, Refused) else None
                unreadable = refused == _UNREADABLE and partings < _MAX_PARTINGS
                if len(part) > 1 and (refused == _TOO_LARGE or unreadable):
                    partings += unreadable
                    half = len(part) // 2
                    parts += part[half:], part[:half]
                    continue
                self._reject(len(part), str(error))
            self._in_flight -= len(part)
            self._room += len(part)

    def _may_send_again(self, error: Exception) -> bool:
        new_token = isinstance(error, Unauthenticated) and callable(self._token)
        return new_token or isinstance(error, Unavailable)

    def _pause(self, seconds: float, least: float) -> bool:
        """Wait `least + seconds`, or only `least` once a flush is wanted; False when time is up."""
        began = time.monotonic()
        until = began + least + seconds
        while (now := time.monotonic()) < until and not self._late():
            if self._deadline is not None:
                until = min(until, self._deadline)
            if self._hear(max(until - now, 0)):
                until = began + least
        return not self._late()

    def _settle(self, receipt: Receipt) -> None:
        self._add(sent=receipt.accepted, duplicates=receipt.duplicates)
        if receipt.rejected_count:
            self._add(rejected=receipt.rejected_count)
            for why in [rejection.error for rejection in receipt.rejected] or ["no word why"]:
                self._tell_rejected(why)
        if self._causes:
            self._causes.clear()
            logger.info("%s takes decisions again; %s", self._server, self.counters)

    def _reject(self, decisions: int, why: str) -> None:
        self._add(rejected=decisions)
        self._tell_rejected(why)

    def _tell_rejected(self, why: str) -> None:
        if why not in self._told and len(self._told) < _MAX_WARNINGS:
            self._told.add(why)
            logger.warning("rejected, for the first time: %s", why)

    def _tell_failing(self, why: str) -> None:
        if why not in self._causes and len(self._causes) < _MAX_CAUSES:
            self._causes.add(why)
            logger.warning("%s; decisions wait", why)

    def _add(self, **more: int) -> None:
        known = self._known
        self._known = replace(known, **{name: getattr(known, name) + n for name, n in more.items()})


def _check_range(name: str, value: float, least: int, most: float) -> None:
    if not least <= value <= most:  # nor is NaN
        raise ValueError(f"{name}: {value} is not between {least} and {most:g}")


# Forked children must neither send what the parent sends, nor wait for its thread.
_recorders: Final["weakref.WeakSet[Recorder]"] = weakref.WeakSet()


def _begin_in_child() -> None:
    for recorder in list(_recorders):
        if recorder._deadline is None:
            recorder._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
