"""Decisions to a server, from the midst of a program that must not wait for it."""

import atexit
import logging
import os
import queue
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from typing import Any, Final, Literal, Self, TypedDict, Unpack

import msgspec

from routecast.client.address import DEFAULT_SERVER, Server
from routecast.client.backoff import Backoff
from routecast.client.credentials import Token
from routecast.client.delivery import Delivery
from routecast.errors import Unauthenticated, Unavailable
from routecast.protocol import MAX_BATCH, DecisionIn, Receipt

logger: Final = logging.getLogger("routecast.client")

CAPACITY: Final = 100_000  # decisions; a few hundred bytes each
BATCH: Final = 1_000
LINGER: Final = 0.2
EXIT_TIMEOUT: Final = 5.0
_MAX_BODY: Final = 1024 * 1024  # what proxies take without being told to (nginx: 1 MiB)
_MAX_DECISION: Final = 64 * 1024
_MAX_WARNINGS: Final = 100
_COUNTING: Final = 0.2  # seconds, once time is up, to count what was not sent

_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


class Decision(TypedDict, total=False):
    """What may be recorded of a decision; `strategy` and `provider` must be."""

    strategy: str
    provider: str
    model: str | None
    id: str | None
    timestamp: datetime | float | str | None
    confidence: float | Literal["high", "medium", "low"] | None
    cost: float | None
    latency_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    status: Literal["success", "error"] | None
    fallback: bool | None
    reason: str | None
    project: str | None


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
    Raises BadParameter when `url` is no address.
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
        self._capacity = capacity
        self._batch = min(batch, MAX_BATCH)
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
        self._bell: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
        self._asleep = True
        self._deadline: float | None = None  # of the monotonic clock, once closed
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        # What follows is the thread's own; others only read it.
        self._flushes: list[tuple[int, threading.Event]] = []
        self._known = Counters()
        self._taken = 0
        self._next = 0
        self._in_flight = 0
        self._failing = False
        self._told: set[str] = set()

    # -- the caller's side ----------------------------------------------------------------------

    def record(
        self, decision: Mapping[str, Any] | DecisionIn | None = None, /, **fields: Unpack[Decision]
    ) -> None:
        """Take one decision in: as names and values, as a mapping, or as a `DecisionIn`.

        What is None is left out. Without an `id` it gets one; without a `timestamp`, the present.
        """
        given = fields if decision is None else _copied(decision, fields)
        self._waiting.append((next(self._numbers), time.time(), given))
        if self._asleep:
            self._ring(None)

    def flush(self, timeout: float | None = None) -> bool:
        """Send at once; return whether all recorded until now is settled within `timeout` seconds.

        False where the server cannot be reached in time: decisions go on waiting for it.
        """
        if self._deadline is not None or (self._thread is None and not self._waiting):
            return not self.counters.waiting
        done = threading.Event()
        self._ring(done)
        return done.wait(timeout)

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
            self._bell.put(threading.Event())
        if self._thread is not None:
            self._thread.join(seconds + _COUNTING)
        # What was dropped for want of room is in `counters` only: this is what time was short for.
        unsettled = self._known.dropped + self.counters.waiting
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

    def _count(self) -> Counters:
        waiting, taken = len(self._waiting), self._taken
        try:
            oldest = self._waiting[0][0]
        except IndexError:
            oldest = self._next
        # Threads may append out of order by a few, so for an instant this may be short by a few.
        lost = max(oldest - taken, 0)
        if self._deadline is not None and not (self._thread and self._thread.is_alive()):
            lost, waiting = lost + waiting, 0
        known = self._known
        return replace(known, dropped=known.dropped + lost, waiting=waiting + self._in_flight)

    def _ring(self, event: threading.Event | None) -> None:
        self._asleep = False
        if self._deadline is None:
            self._start()
            self._bell.put(event)

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
        with closing(Delivery(self._server, self._token)) as delivery:
            while self._rest():
                while self._waiting and not self._late():
                    self._deliver(delivery, self._take())
                    self._answer_flushes()
                self._answer_flushes()
        # Counted as in flight meanwhile, so that who closes counts each of them, too.
        while self._waiting:
            self._pop()
            self._in_flight += 1
        given_up, self._in_flight = self._in_flight, 0
        self._add(dropped=given_up)

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
            event = self._bell.get(timeout=seconds)
        except queue.Empty:
            return False
        if event is None:
            return False
        self._flushes.append((self._taken + len(self._waiting), event))
        return True

    def _answer_flushes(self) -> None:
        for due, event in self._flushes:
            if due <= self._taken or not self._waiting:
                event.set()
        self._flushes = [flush for flush in self._flushes if not flush[1].is_set()]

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _take(self) -> list[bytes]:
        """Take the oldest decisions, as many as go into one body."""
        texts: list[bytes] = []
        size = 0
        while self._waiting and len(texts) < self._batch and size < _MAX_BODY:
            try:
                texts.append(self._encoded(self._pop()))
            except Exception as error:  # a decision may hold any object of the caller's
                self._reject(1, f"no decision: {error}")
            else:
                size += len(texts[-1])
                self._in_flight += 1
        return texts

    def _pop(self) -> _Entry:
        entry = self._waiting.popleft()
        self._taken += 1
        self._next = max(self._next, entry[0] + 1)
        return entry

    def _encoded(self, entry: _Entry) -> bytes:
        number, at, fields = entry
        known = {name: value for name, value in fields.items() if value is not None}
        text = _encode({"id": f"{self._prefix}-{number}", "timestamp": at, **known})
        if len(text) > _MAX_DECISION:
            raise ValueError(f"it takes more than {_MAX_DECISION:,} bytes")
        return text

    def _deliver(self, delivery: Delivery, texts: list[bytes]) -> None:
        """Send one batch until the server has answered for it, or time is up."""
        if not texts:
            return
        size, body, backoff = len(texts), b"[" + b",".join(texts) + b"]", Backoff()
        while True:
            try:
                self._settle(delivery.send(body))
                break
            except (Unavailable, Unauthenticated) as error:
                if isinstance(error, Unauthenticated) and not callable(self._token):
                    self._reject(size, str(error))
                    break
                self._tell_failing(str(error))
                if not self._pause(backoff.next(), getattr(error, "retry_after", 0)):
                    self._add(dropped=size)
                    break
                self._add(retried=size)
            except Exception as error:  # refused, or a token that is none: the thread must go on
                self._reject(size, str(error))
                break
        self._in_flight = 0

    def _pause(self, seconds: float, least: float) -> bool:
        """Wait so long, or only the `least` once somebody wants a flush; False when time is up."""
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
        if self._failing:
            self._failing = False
            logger.info("%s takes decisions again; %s", self._server, self.counters)

    def _reject(self, decisions: int, why: str) -> None:
        self._add(rejected=decisions)
        self._tell_rejected(why)

    def _tell_rejected(self, why: str) -> None:
        if why not in self._told and len(self._told) < _MAX_WARNINGS:
            self._told.add(why)
            logger.warning("rejected, for the first time: %s", why)

    def _tell_failing(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            logger.warning("%s; decisions wait", why)

    def _add(self, **more: int) -> None:
        known = self._known
        self._known = replace(known, **{name: getattr(known, name) + n for name, n in more.items()})


def _copied(decision: Mapping[str, Any] | DecisionIn, more: Mapping[str, Any]) -> Any:
    """Return a decision as it is now, since the caller may change it; what is none, as it is."""
    try:
        known = decision if isinstance(decision, Mapping) else msgspec.structs.asdict(decision)
        return {**known, **more}
    except Exception:  # the caller must not fail for it: `_encoded` does
        return decision


# Forked children must neither send what the parent sends, nor wait for its thread.
_recorders: Final["weakref.WeakSet[Recorder]"] = weakref.WeakSet()


def _begin_in_child() -> None:
    for recorder in list(_recorders):
        if recorder._deadline is None:
            recorder._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
