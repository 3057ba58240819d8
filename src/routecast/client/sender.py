"""One server, one set of settings, one process: its queue, its connection, its thread."""

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Final

from routecast.client.auth import Token
from routecast.client.counters import Books, LockFreeCount
from routecast.client.decision import encode
from routecast.client.http_sender import TIMEOUT, HttpSender
from routecast.client.in_flight import InFlightBatch
from routecast.client.native import Bell, Lock, uwsgi_will_fork
from routecast.client.stream_errors import MAX_CAUSES_TOLD
from routecast.client.threads import Threads
from routecast.client.url import Server
from routecast.errors import RoutecastError, Unavailable
from routecast.protocol import MAX_BATCH, Receipt
from routecast.retry import Backoff

logger: Final = logging.getLogger("routecast.client")

LONGEST_IDLE: Final = 5.0  # seconds without a decision, after which thread and connection end
_MAX_BODY: Final = 1024 * 1024  # what proxies take without being told to (nginx: 1 MiB)
_MAX_WARNINGS: Final = 100
_MOST_SPLIT: Final = 64  # a server that calls all of a batch unreadable is not asked for each
_TELL_DROPPED: Final = 60.0  # seconds between two log lines about decisions that were dropped
_SHORTEST_LOOK: Final = 0.001
_LONGEST_LOOK: Final = 0.02

# Whose it is, its number, when it was recorded, and what was given. A plain tuple: it is made in a
# fraction of the time that a named one takes, and Python's garbage collector soon looks away.
RecordedEntry = tuple[Books, int, float, Any]
_Encoded = tuple[Books, bytes]


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """What a recorder was made with. Those with equal settings share a sender in each process."""

    server: Server
    token: Token | None
    capacity: int
    batch: int
    linger: float
    exit_timeout: float


class Sender:
    """Takes entries in from any thread, and sends them in batches from one of its own.

    The thread starts with the first entry and ends when none has come for some seconds. Where no
    thread is to be had, as at the exit of the interpreter, `send_here` sends in the caller's.
    """

    def __init__(self, settings: RecorderSettings, threads: Threads) -> None:
        self.settings: Final = settings
        self._server = settings.server
        # Half of the room, at most: what is in flight cannot be dropped, and it is the oldest.
        self._batch = min(settings.batch, MAX_BATCH, max(settings.capacity // 2, 1))
        self._threads = threads
        self._waiting: deque[RecordedEntry] = deque()
        self._bell = Bell()
        self._asleep = True
        self._hurried = False
        self._at_work = Lock()
        self._in_line = False
        self._dropped = LockFreeCount()  # for want of room
        self._deadline: float | None = None  # of the monotonic clock, once the process ends
        self._ended = False  # its exit handler is through: who records now sends by himself
        # What follows is written by the one who sends; others only read it.
        self._until: float | None = None  # for how long a caller sends by himself
        self._in_flight: InFlightBatch[_Encoded] = InFlightBatch(())
        self._taking = False  # something that waits no more, and is not in flight yet
        self._room = settings.capacity  # for those that wait, apart from those in flight
        self._causes: set[str] = set()  # of the present outage
        self._told: set[str] = set()
        self._told_dropped = 0
        self._told_dropped_at = -_TELL_DROPPED

    # -- for callers ----------------------------------------------------------------------------

    def put(self, entry: RecordedEntry) -> None:
        """Take an entry in; drop the oldest where there is no room."""
        waiting = self._waiting
        waiting.append(entry)
        count = len(waiting)
        if count > self._room:
            self._drop_oldest()
        if self._asleep:
            self._wake()
        elif count == self._batch:
            self._bell.ring()

    def hurry(self) -> None:
        """Have what waits sent at once: without lingering, and without the rest of a pause."""
        self._hurried = True
        self._bell.ring()

    def await_settled(self, books: Books, due: int, until: float | None) -> bool:
        """Wait until `due` decisions of a recorder are settled; return whether they are.

        It looks again and again: sleeping is the one way to wait that lets greenlets run, and that
        nothing can forget to end. Where no thread is to be had, it sends by itself.
        """
        pause = _SHORTEST_LOOK
        while books.settled < due and not books.over:
            now = time.monotonic()
            if (until is not None and now >= until) or self._is_over(now):
                return False
            if not self._at_work.locked() and not self._find_thread():
                self._work(until)
            else:
                time.sleep(pause if until is None else min(pause, until - now))
                pause = min(2 * pause, _LONGEST_LOOK)
        return books.settled >= due

    def end_by(self, deadline: float) -> None:
        """Send what waits until a moment, and then no more: the process ends."""
        self._deadline = deadline
        self._bell.ring()

    def finish(self, until: float) -> None:
        """Wait until all is sent, until a moment at most; without a thread, send it."""
        pause = _SHORTEST_LOOK
        while self._is_owed() and (now := time.monotonic()) < until:
            if self._at_work.locked():
                time.sleep(min(pause, until - now))
                pause = min(2 * pause, _LONGEST_LOOK)
            else:
                self._work(until)

    def end(self) -> int:
        """Take the last decisions in; return how many are lost, since time is up for them."""
        self._ended = self._asleep = True
        if self._deadline is not None:
            self.finish(self._deadline)  # what came while the last look was taken
        return self._give_up()

    def work(self) -> None:
        """Send what waits, and what comes, until nothing comes: for a thread of its own."""
        self._in_line = False
        self._work(None)

    def ring(self) -> None:
        """Have it look whether its thread is wanted, or what it sends was given up."""
        self._bell.ring()

    def refuse(self) -> None:
        """Drop all that waits: there are too many senders."""
        self._in_line = False
        self._asleep = True
        while self._waiting:
            self._drop_oldest()

    def _is_owed(self) -> bool:
        """Whether anything is not sent, or not answered for, that nobody gave up."""
        return self._taking or any(not books.over for books in self._owners())

    def _owners(self) -> list[Books]:
        """Return whose decisions wait or are in flight, one by one."""
        waiting = [entry[0] for entry in tuple(self._waiting)]  # a copy: it changes meanwhile
        return waiting + [books for books, _ in self._in_flight.left]

    def _drop_oldest(self) -> None:
        with suppress(IndexError):  # the thread took it
            books = self._waiting.popleft()[0]
            books.dropped.add()
            if not books.over:
                self._dropped.add()

    def _wake(self) -> None:
        if self._ended:
            self._send_late()
        elif self._deadline is None:
            self._asleep = False
            served = False
            try:
                served = self._at_work.locked() or self._find_thread()
                self._bell.ring()
            finally:
                if not served:
                    self._asleep = True  # so that the next one tries again
            if uwsgi_will_fork():
                self._tell_once(
                    "recorded in uWSGI's master, which sends nothing; its workers do",
                    "record after the fork, or start uWSGI with --lazy-apps",
                )

    def _find_thread(self) -> bool:
        """Have a thread send; return False when none can be started."""
        if self._in_line:
            return self._threads.start()
        self._in_line = True
        return self._threads.run(self)

    def _send_late(self) -> None:
        """Send what was recorded after the exit handler had its turn, or say that it is lost."""
        if self.end():
            words = "recorded while the program ends, and too late to be sent"
            self._tell_once("lost, for the first time", f"{self._server}: {words}")

    def _give_up(self) -> int:
        """Count what is not settled as lost; return how many decisions that are."""
        lost = [books for books in self._owners() if not books.over]
        for books in lost:
            books.over = True
        self._tell_dropped()
        return len(lost)

    def _is_over(self, now: float) -> bool:
        """Whether what is not settled by now is given up."""
        return self._deadline is not None and now >= self._deadline

    # -- for the one who sends ------------------------------------------------------------------

    def _work(self, until: float | None) -> None:
        # Looks again after it let go: who came in between went away, as somebody was at work.
        while (self._waiting or self._in_flight.left) and self._at_work.acquire():
            try:
                self._until = until
                self._send_all()
            finally:
                self._taking = False
                late = self._late()
                self._asleep = True
                self._at_work.release()
            if late:
                return

    def _send_all(self) -> None:
        self._warn_of_uwsgi()
        with closing(_Connection(self.settings, self._left())) as connection:
            if self._in_flight.left:  # of somebody whose time was up
                self._deliver(connection)
            while self._rest():
                while self._waiting and not self._late():
                    self._take()
                    self._deliver(connection)
                    self._tell_dropped(every=_TELL_DROPPED)

    def _rest(self) -> bool:
        """Wait for a decision, and a little for others to go with it; False at the end."""
        if self._left() is not None:
            return bool(self._waiting) and not self._late()
        self._asleep = True
        until = time.monotonic() + LONGEST_IDLE
        with self._threads.resting(self):
            while not self._waiting and self._deadline is None:
                left = until - time.monotonic()
                if left <= 0 or self._threads.wanted:
                    return False
                self._bell.wait(left)
        if self._deadline is None:
            self._asleep = False
        until = time.monotonic() + self.settings.linger
        while len(self._waiting) < self._batch and not self._hurried and not self._threads.wanted:
            left = until - time.monotonic()
            if left <= 0 or self._deadline is not None:
                break
            self._bell.wait(left)
        self._hurried = False
        return bool(self._waiting) and not self._late()

    def _left(self) -> float | None:
        """Return for how many seconds it may send; None: for ever."""
        limits = [limit for limit in (self._deadline, self._until) if limit is not None]
        return min(limits) - time.monotonic() if limits else None

    def _late(self) -> bool:
        left = self._left()
        return left is not None and left <= 0

    def _take(self) -> None:
        """Take the oldest decisions, as many as go into one body."""
        self._taking = True
        taken: list[_Encoded] = []  # others see what is in it so far
        new_token = callable(self.settings.token)
        self._in_flight = InFlightBatch(taken, new_token=new_token, most_split=_MOST_SPLIT)
        size = 0
        while self._waiting and len(taken) < self._batch and size < _MAX_BODY:
            self._room -= 1  # before it is free, so that nothing goes there meanwhile
            try:
                books, number, at, given = self._waiting.popleft()
            except IndexError:  # it was just dropped
                self._room += 1
                break
            if books.over:  # closed, and given up
                self._room += 1
                continue
            try:
                text, left_out = encode(given, f"{books.prefix}-{number}", at)
            except Exception as error:  # a decision may hold any object of the caller's
                self._room += 1
                self._reject([books], f"no decision: {error}")
            else:
                taken.append((books, text))
                size += len(text)
                for why in left_out:
                    self._tell_once("a field is left out, for the first time", why)
        self._taking = False

    def _deliver(self, connection: "_Connection") -> None:
        """Send what is in flight until the server has answered for all of it, or time is up.

        What is left then stays in flight.
        """
        answers = self._in_flight.run(connection.send, self._wait, Backoff(), self._drop_given_up)
        for part, answer in answers:
            owners = [books for books, _ in part]
            if isinstance(answer, Receipt):
                self._settle(answer, owners)
            else:
                self._reject(owners, str(answer))
            self._room += len(part)

    def _drop_given_up(self, part: Sequence[_Encoded]) -> Sequence[_Encoded]:
        """Return the decisions of a part whose recorders still want them sent."""
        wanted = [entry for entry in part if not entry[0].over]
        self._room += len(part) - len(wanted)
        return wanted

    def _wait(self, error: RoutecastError, least: float, delay: float) -> bool:
        """Wait before a part is sent again; False when time is up."""
        self._tell_failing(str(error))
        if not self._pause(delay, least):
            return False
        for books, _ in self._in_flight.next_part:
            books.retried += not books.over
        return True

    def _pause(self, seconds: float, least: float) -> bool:
        """Wait `least + seconds`, or only `least` once somebody hurries; False when time is up."""
        began = time.monotonic()
        until = began + least + seconds
        while (now := time.monotonic()) < until and not self._late():
            left = self._left()
            self._bell.wait(until - now if left is None else max(min(until - now, left), 0))
            if self._hurried:
                self._hurried = False
                until = began + least
            if all(books.over for books, _ in self._in_flight.left):
                return not self._late()
            self._tell_dropped(every=_TELL_DROPPED)
        return not self._late()

    def _settle(self, receipt: Receipt, batch: Sequence[Books]) -> None:
        """Count each decision of a batch once, whatever the receipt's sum is.

        A receipt does not say which decisions were known already, or had the id of another; where
        recorders share a batch, the first ones are taken for them, so only the sums over recorders
        are exact.
        """
        listed = {one.index for one in receipt.rejected if 0 <= one.index < len(batch)}
        others = [books for index, books in enumerate(batch) if index not in listed]
        unlisted = min(max(receipt.rejected_count - len(listed), 0), len(others))
        accepted = min(max(receipt.accepted, 0), len(others) - unlisted)
        known = len(others) - unlisted - accepted
        conflicts = min(max(receipt.conflicts, 0), known)
        rejected = [batch[index] for index in listed] + others[:unlisted]
        # The log comes first: `flush` returns once all are counted, and the log is complete then.
        self._tell_of(receipt, rejected=bool(rejected), conflicts=conflicts > 0)
        for books, count in Counter(others[unlisted + known :]).items():
            books.sent += count
        for books, count in Counter(others[unlisted:][:conflicts]).items():
            books.conflicts += count
        for books, count in Counter(others[unlisted + conflicts :][: known - conflicts]).items():
            books.duplicates += count
        for books, count in Counter(rejected).items():
            books.rejected += count

    def _tell_of(self, receipt: Receipt, rejected: bool, conflicts: bool) -> None:
        if rejected:
            for why in [rejection.error for rejection in receipt.rejected] or ["no word why"]:
                self._tell_rejected(why)
        if conflicts:
            why = "the server has another decision with this id, or an earlier one of the batch has"
            self._tell_once("conflicts, for the first time", f"{why}: each needs its own")
        for warning in receipt.warnings:
            words = "not used as it was sent, for the first time"
            self._tell_once(words, f"{warning.field}: {warning.message}")
        if self._causes:
            self._causes.clear()
            logger.info("%s takes decisions again", self._server)

    def _reject(self, batch: Sequence[Books], why: str) -> None:
        self._tell_rejected(why)
        for books in batch:
            books.rejected += 1

    def _tell_rejected(self, why: str) -> None:
        self._tell_once("rejected, for the first time", why)

    def _tell_once(self, what: str, why: str) -> None:
        words = f"{what}: {why}"
        if words not in self._told and len(self._told) < _MAX_WARNINGS:
            self._told.add(words)
            logger.warning("%s", words)

    def _tell_failing(self, why: str) -> None:
        if why not in self._causes and len(self._causes) < MAX_CAUSES_TOLD:
            self._causes.add(why)
            logger.warning("%s; decisions wait", why)

    def _tell_dropped(self, every: float = 0.0) -> None:
        dropped = self._dropped.value
        now = time.monotonic()
        if dropped > self._told_dropped and now - self._told_dropped_at >= every:
            words = "%s: %s decisions were dropped, because more than %s waited"
            more = f"{dropped - self._told_dropped:,}"
            logger.warning(words, self._server, more, f"{self.settings.capacity:,}")
            self._told_dropped, self._told_dropped_at = dropped, now

    def _warn_of_uwsgi(self) -> None:
        options = getattr(sys.modules.get("uwsgi"), "opt", None)
        if options is not None and not {"enable-threads", "threads", "gevent"} & set(options):
            self._tell_once(
                "uWSGI lets no thread run between requests, so decisions wait for the next one",
                "start it with --enable-threads",
            )


class _Connection:
    """A `HttpSender` that is made when it is needed, so that what fails there is tried again."""

    def __init__(self, settings: RecorderSettings, seconds: float | None) -> None:
        self._settings = settings
        self._timeout = TIMEOUT if seconds is None else min(max(seconds, _SHORTEST_LOOK), TIMEOUT)
        self._http: HttpSender | None = None

    def send(self, part: Sequence[_Encoded]) -> Receipt:
        """Send a part of a batch. Raises as `HttpSender.send` does, and nothing else."""
        try:
            if self._http is None:
                self._http = self._connect()
            return self._http.send(b"[" + b",".join(text for _, text in part) + b"]", len(part))
        except RoutecastError:
            raise
        except Exception as error:  # its text may show what was sent: the token, say
            raise RoutecastError(type(error).__name__) from error

    def _connect(self) -> HttpSender:
        server, token = self._settings.server, self._settings.token
        try:
            return HttpSender(server, token, timeout=self._timeout)
        except Exception as error:
            words = f"{server}: cannot be connected to: {type(error).__name__}: {error}"
            raise Unavailable(words, retry_after=0) from None

    def close(self) -> None:
        """Hang up."""
        if self._http is not None:
            self._http.close()
