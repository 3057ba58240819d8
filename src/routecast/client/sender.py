"""`Sender`: the queue, thread and connection that recorders with equal settings share."""

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Final

from routecast.client.auth import Token
from routecast.client.counters import LockFreeCount, Tally
from routecast.client.decision import encode
from routecast.client.http_sender import TIMEOUT, HttpSender
from routecast.client.in_flight import InFlightBatch
from routecast.client.native_threads import Lock, WakeSignal, uwsgi_will_fork
from routecast.client.stream_errors import MAX_CAUSES_LOGGED
from routecast.client.threads import Threads
from routecast.client.url import Server
from routecast.errors import RoutecastError, Unavailable
from routecast.protocol import MAX_BATCH, Receipt
from routecast.retry import Backoff

logger: Final = logging.getLogger("routecast.client")

LONGEST_IDLE: Final = 5.0  # seconds without a decision after which thread and connection end
_MAX_BODY: Final = 1024 * 1024  # the default limit of proxies (nginx: 1 MiB)
_MAX_WARNINGS: Final = 100
_MOST_SPLIT: Final = 64  # how often one batch is halved if the server cannot read it
_LOG_DROPPED_SECONDS: Final = 60.0  # seconds between two log lines about dropped decisions
_SHORTEST_LOOK: Final = 0.001
_LONGEST_LOOK: Final = 0.02

# The tally of its recorder, its number, when it was recorded, and its values. A plain tuple: a
# named one takes several times as long to make, and the garbage collector soon ignores plain ones.
RecordedEntry = tuple[Tally, int, float, Any]
_EncodedEntry = tuple[Tally, bytes]


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """The settings of a recorder. Recorders with equal settings share a sender in each process."""

    server: Server
    token: Token | None
    capacity: int
    batch: int
    linger: float
    exit_timeout: float


class Sender:
    """Takes entries from any thread, and sends them in batches from its own thread.

    The thread starts with the first entry and ends after some seconds without one. If no thread
    can be started, as at the exit of the interpreter, the caller's thread sends.
    """

    def __init__(self, settings: RecorderSettings, threads: Threads) -> None:
        self.settings: Final = settings
        self._server = settings.server
        # At most half of the room: entries in flight are the oldest, and cannot be dropped.
        self._batch = min(settings.batch, MAX_BATCH, max(settings.capacity // 2, 1))
        self._threads = threads
        self._waiting: deque[RecordedEntry] = deque()
        self._wake_signal = WakeSignal()
        self._asleep = True
        self._hurried = False
        self._at_work = Lock()
        self._is_queued = False
        self._dropped = LockFreeCount()  # because there was no room
        self._deadline: float | None = None  # of the monotonic clock, once the process ends
        self._ended = False  # the exit handler has run: each caller sends its own entries now
        # Only the thread that sends writes the following; others read it.
        self._until: float | None = None  # until when the caller's thread sends
        self._in_flight: InFlightBatch[_EncodedEntry] = InFlightBatch(())
        self._taking = False  # whether entries have left `_waiting` that are not in flight yet
        self._room = settings.capacity  # for waiting entries, without those in flight
        self._causes: set[str] = set()  # of the present outage
        self._logged: set[str] = set()
        self._logged_dropped = 0
        self._logged_dropped_at = -_LOG_DROPPED_SECONDS

    # -- for callers ----------------------------------------------------------------------------

    def put(self, entry: RecordedEntry) -> None:
        """Queue an entry; drop the oldest one if there is no room."""
        waiting = self._waiting
        waiting.append(entry)
        count = len(waiting)
        if count > self._room:
            self._drop_oldest()
        if self._asleep:
            self._ensure_thread()
        elif count == self._batch:
            self._wake_signal.wake()

    def hurry(self) -> None:
        """Send waiting entries now, without lingering and without the rest of a delay."""
        self._hurried = True
        self._wake_signal.wake()

    def await_settled(self, tally: Tally, due: int, until: float | None) -> bool:
        """Wait until `due` decisions of a recorder are settled; return whether they are.

        It polls: sleeping lets greenlets run, and cannot hang on a lost notification. If no thread
        can be started, the caller's thread sends.
        """
        pause = _SHORTEST_LOOK
        while tally.settled < due and not tally.over:
            now = time.monotonic()
            if (until is not None and now >= until) or self._is_over(now):
                return False
            if not self._at_work.locked() and not self._find_thread():
                self._work(until)
            else:
                time.sleep(pause if until is None else min(pause, until - now))
                pause = min(2 * pause, _LONGEST_LOOK)
        return tally.settled >= due

    def end_by(self, deadline: float) -> None:
        """Send until `deadline`, and not after it: the process ends."""
        self._deadline = deadline
        self._wake_signal.wake()

    def finish(self, until: float) -> None:
        """Wait until all is sent, at most `until` a time; without a thread, send in this one."""
        pause = _SHORTEST_LOOK
        while self._is_owed() and (now := time.monotonic()) < until:
            if self._at_work.locked():
                time.sleep(min(pause, until - now))
                pause = min(2 * pause, _LONGEST_LOOK)
            else:
                self._work(until)

    def end(self) -> int:
        """Send the last entries; return the number of those that are lost because time is up."""
        self._ended = self._asleep = True
        if self._deadline is not None:
            self.finish(self._deadline)  # entries that were added during the last check
        return self._give_up()

    def work(self) -> None:
        """Send entries until no more come: the body of the sending thread."""
        self._is_queued = False
        self._work(None)

    def wake(self) -> None:
        """Wake the sender: its thread may be needed elsewhere, or its entries given up."""
        self._wake_signal.wake()

    def refuse(self) -> None:
        """Drop all waiting entries: there are too many senders."""
        self._is_queued = False
        self._asleep = True
        while self._waiting:
            self._drop_oldest()

    def _is_owed(self) -> bool:
        """Whether any entry waits or is in flight that its recorder has not given up."""
        return self._taking or any(not tally.over for tally in self._owners())

    def _owners(self) -> list[Tally]:
        """Return the tally of each entry that waits or is in flight."""
        waiting = [entry[0] for entry in tuple(self._waiting)]  # a copy: other threads change it
        return waiting + [tally for tally, _ in self._in_flight.left]

    def _drop_oldest(self) -> None:
        with suppress(IndexError):  # the thread took it
            tally = self._waiting.popleft()[0]
            tally.dropped.add()
            if not tally.over:
                self._dropped.add()

    def _ensure_thread(self) -> None:
        if self._ended:
            self._send_late()
        elif self._deadline is None:
            self._asleep = False
            served = False
            try:
                served = self._at_work.locked() or self._find_thread()
                self._wake_signal.wake()
            finally:
                if not served:
                    self._asleep = True  # so that the next entry tries again
            if uwsgi_will_fork():
                self._log_once(
                    "recorded in uWSGI's master, which sends nothing; its workers do",
                    "record after the fork, or start uWSGI with --lazy-apps",
                )

    def _find_thread(self) -> bool:
        """Have a thread send; return False if none can be started."""
        if self._is_queued:
            return self._threads.start()
        self._is_queued = True
        return self._threads.run(self)

    def _send_late(self) -> None:
        """Send entries that were recorded after the exit handler, or log that they are lost."""
        if self.end():
            words = "recorded while the program ends, and too late to be sent"
            self._log_once("lost, for the first time", f"{self._server}: {words}")

    def _give_up(self) -> int:
        """Count unsettled decisions as lost; return their number."""
        lost = [tally for tally in self._owners() if not tally.over]
        for tally in lost:
            tally.over = True
        self._log_dropped()
        return len(lost)

    def _is_over(self, now: float) -> bool:
        """Whether unsettled decisions are given up now."""
        return self._deadline is not None and now >= self._deadline

    # -- for the thread that sends --------------------------------------------------------------

    def _work(self, until: float | None) -> None:
        # Checks again after the release: a caller in between saw `_at_work` locked and left.
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
            if self._in_flight.left:  # of an earlier thread whose time was up
                self._deliver(connection)
            while self._rest():
                while self._waiting and not self._late():
                    self._take()
                    self._deliver(connection)
                    self._log_dropped(every=_LOG_DROPPED_SECONDS)

    def _rest(self) -> bool:
        """Wait for a decision, and then `linger` for others; False at the end."""
        if self._left() is not None:
            return bool(self._waiting) and not self._late()
        self._asleep = True
        until = time.monotonic() + LONGEST_IDLE
        with self._threads.resting(self):
            while not self._waiting and self._deadline is None:
                left = until - time.monotonic()
                if left <= 0 or self._threads.wanted:
                    return False
                self._wake_signal.wait(left)
        if self._deadline is None:
            self._asleep = False
        until = time.monotonic() + self.settings.linger
        while len(self._waiting) < self._batch and not self._hurried and not self._threads.wanted:
            left = until - time.monotonic()
            if left <= 0 or self._deadline is not None:
                break
            self._wake_signal.wait(left)
        self._hurried = False
        return bool(self._waiting) and not self._late()

    def _left(self) -> float | None:
        """Return the seconds for which it may send; None without a limit."""
        limits = [limit for limit in (self._deadline, self._until) if limit is not None]
        return min(limits) - time.monotonic() if limits else None

    def _late(self) -> bool:
        left = self._left()
        return left is not None and left <= 0

    def _take(self) -> None:
        """Take the oldest decisions, as many as fit into one body."""
        self._taking = True
        taken: list[_EncodedEntry] = []  # other threads see its entries so far
        new_token = callable(self.settings.token)
        self._in_flight = InFlightBatch(taken, new_token=new_token, most_split=_MOST_SPLIT)
        size = 0
        while self._waiting and len(taken) < self._batch and size < _MAX_BODY:
            self._room -= 1  # before the entry leaves the queue, so that no other one uses its room
            try:
                tally, number, at, given = self._waiting.popleft()
            except IndexError:  # it was just dropped
                self._room += 1
                break
            if tally.over:  # closed, and given up
                self._room += 1
                continue
            try:
                text, left_out = encode(given, f"{tally.prefix}-{number}", at)
            except Exception as error:  # a decision may hold any object of the caller's
                self._room += 1
                self._reject([tally], f"cannot be sent: {error}")
            else:
                taken.append((tally, text))
                size += len(text)
                for why in left_out:
                    self._log_once("a field is left out, for the first time", why)
        self._taking = False

    def _deliver(self, connection: "_Connection") -> None:
        """Send the entries in flight until the server has answered for all, or time is up.

        The rest then stays in flight.
        """
        answers = self._in_flight.run(connection.send, self._wait, Backoff(), self._drop_given_up)
        for part, answer in answers:
            owners = [tally for tally, _ in part]
            if isinstance(answer, Receipt):
                self._settle(answer, owners)
            else:
                self._reject(owners, str(answer))
            self._room += len(part)

    def _drop_given_up(self, part: Sequence[_EncodedEntry]) -> Sequence[_EncodedEntry]:
        """Return the entries of a part that their recorders have not given up."""
        wanted = [entry for entry in part if not entry[0].over]
        self._room += len(part) - len(wanted)
        return wanted

    def _wait(self, error: RoutecastError, least: float, delay: float) -> bool:
        """Wait before a part is sent again; False if time is up."""
        self._log_failing(str(error))
        if not self._pause(delay, least):
            return False
        for tally, _ in self._in_flight.next_part:
            tally.retried += not tally.over
        return True

    def _pause(self, seconds: float, least: float) -> bool:
        """Wait `least + seconds`, or only `least` after `hurry`; False if time is up."""
        began = time.monotonic()
        until = began + least + seconds
        while (now := time.monotonic()) < until and not self._late():
            left = self._left()
            self._wake_signal.wait(until - now if left is None else max(min(until - now, left), 0))
            if self._hurried:
                self._hurried = False
                until = began + least
            if all(tally.over for tally, _ in self._in_flight.left):
                return not self._late()
            self._log_dropped(every=_LOG_DROPPED_SECONDS)
        return not self._late()

    def _settle(self, receipt: Receipt, batch: Sequence[Tally]) -> None:
        """Count each decision of a batch once, also if the receipt's sum differs.

        A receipt does not say which decisions were duplicates or conflicts. If recorders share a
        batch, the first decisions are counted as such, so only the sums over recorders are exact.
        """
        listed = {one.index for one in receipt.rejected if 0 <= one.index < len(batch)}
        others = [tally for index, tally in enumerate(batch) if index not in listed]
        unlisted = min(max(receipt.rejected_count - len(listed), 0), len(others))
        accepted = min(max(receipt.accepted, 0), len(others) - unlisted)
        known = len(others) - unlisted - accepted
        conflicts = min(max(receipt.conflicts, 0), known)
        rejected = [batch[index] for index in listed] + others[:unlisted]
        # The log comes first, so that it is complete when `flush` returns.
        self._log_receipt(receipt, rejected=bool(rejected), conflicts=conflicts > 0)
        for tally, count in Counter(others[unlisted + known :]).items():
            tally.sent += count
        for tally, count in Counter(others[unlisted:][:conflicts]).items():
            tally.conflicts += count
        for tally, count in Counter(others[unlisted + conflicts :][: known - conflicts]).items():
            tally.duplicates += count
        for tally, count in Counter(rejected).items():
            tally.rejected += count

    def _log_receipt(self, receipt: Receipt, rejected: bool, conflicts: bool) -> None:
        if rejected:
            for why in [rejection.error for rejection in receipt.rejected] or ["no reason given"]:
                self._log_rejected(why)
        if conflicts:
            why = "the server, or this batch, has another decision with the same id"
            self._log_once("conflicts, for the first time", f"{why}: each needs its own")
        for warning in receipt.warnings:
            words = "not used as it was sent, for the first time"
            self._log_once(words, f"{warning.field}: {warning.message}")
        if self._causes:
            self._causes.clear()
            logger.info("%s accepts decisions again", self._server)

    def _reject(self, batch: Sequence[Tally], why: str) -> None:
        self._log_rejected(why)
        for tally in batch:
            tally.rejected += 1

    def _log_rejected(self, why: str) -> None:
        self._log_once("rejected, for the first time", why)

    def _log_once(self, what: str, why: str) -> None:
        words = f"{what}: {why}"
        if words not in self._logged and len(self._logged) < _MAX_WARNINGS:
            self._logged.add(words)
            logger.warning("%s", words)

    def _log_failing(self, why: str) -> None:
        if why not in self._causes and len(self._causes) < MAX_CAUSES_LOGGED:
            self._causes.add(why)
            logger.warning("%s; decisions wait", why)

    def _log_dropped(self, every: float = 0.0) -> None:
        dropped = self._dropped.value
        now = time.monotonic()
        if dropped > self._logged_dropped and now - self._logged_dropped_at >= every:
            words = "%s: %s decisions were dropped, because more than %s waited"
            more = f"{dropped - self._logged_dropped:,}"
            logger.warning(words, self._server, more, f"{self.settings.capacity:,}")
            self._logged_dropped, self._logged_dropped_at = dropped, now

    def _warn_of_uwsgi(self) -> None:
        options = getattr(sys.modules.get("uwsgi"), "opt", None)
        if options is not None and not {"enable-threads", "threads", "gevent"} & set(options):
            self._log_once(
                "uWSGI lets no thread run between requests, so decisions wait for the next one",
                "start it with --enable-threads",
            )


class _Connection:
    """Makes an `HttpSender` when it is needed, so that a failure to make it is retried, too."""

    def __init__(self, settings: RecorderSettings, seconds: float | None) -> None:
        self._settings = settings
        self._timeout = TIMEOUT if seconds is None else min(max(seconds, _SHORTEST_LOOK), TIMEOUT)
        self._http: HttpSender | None = None

    def send(self, part: Sequence[_EncodedEntry]) -> Receipt:
        """Send a part of a batch. Raises as `HttpSender.send` does, and nothing else."""
        try:
            if self._http is None:
                self._http = self._connect()
            return self._http.send(b"[" + b",".join(text for _, text in part) + b"]", len(part))
        except RoutecastError:
            raise
        except Exception as error:  # its text may show what was sent, such as the token
            raise RoutecastError(type(error).__name__) from error

    def _connect(self) -> HttpSender:
        server, token = self._settings.server, self._settings.token
        try:
            return HttpSender(server, token, timeout=self._timeout)
        except Exception as error:
            words = f"{server}: cannot be connected to: {type(error).__name__}: {error}"
            raise Unavailable(words, retry_after=0) from None

    def close(self) -> None:
        """Close the connection."""
        if self._http is not None:
            self._http.close()
