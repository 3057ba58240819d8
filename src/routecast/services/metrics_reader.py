"""The newest available numbers, and the documents made of them.

Sources are tried in order: live state, cache, database, the last known reading. If a reading does
not cover a view's window, the window is read from the database (`windows.py`). A view's document is
rendered and encoded once for all its clients, and again only when it may have changed.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from routecast.core.breakdown import Breakdown, Breakdowns
from routecast.core.decision import SECOND
from routecast.core.document import EncodedDocument, encode_document, error_document, finish
from routecast.core.metrics import Baseline, document
from routecast.core.render_budget import RenderBudget
from routecast.core.snapshot import Snapshot
from routecast.core.versions import Stamps
from routecast.core.view import View
from routecast.core.window import query_of
from routecast.errors import NotHeld, Unavailable
from routecast.instruments import Instruments
from routecast.patch import Document
from routecast.ports import Clock, Reading
from routecast.protocol import Position, Source
from routecast.services.snapshot_loader import SnapshotLoader
from routecast.services.windows import Windows

log = logging.getLogger(__name__)

# Without live state, cache and database are read at most once in this time, in microseconds.
REUSE: Final = SECOND
_NO_SOURCE: Final = "neither live state, cache nor database can answer"
# Views whose encoded document is kept; the least recently used one is dropped first.
MAX_VIEWS: Final = 512


class _CachedDocument(NamedTuple):
    """A document's bytes, and what they depend on: for an equal position and key they are equal."""

    position: Position
    time_key: int
    unterminated: bytes


async def _at_once() -> None:
    """Return at once: without live state, no commit is ever being applied."""


class MetricsReader:
    """Reads the newest numbers from the best available source, and makes documents of them.

    `live` and `last_known` return None while a large commit is being applied to live state;
    `settled` waits until none is. `budget` is charged for the rendering of each client's views.
    """

    def __init__(
        self,
        live: Callable[[], Reading | None],
        last_known: Callable[[], Reading | None],
        loader: SnapshotLoader,
        clock: Clock,
        instruments: Instruments,
        baseline: Baseline | None = None,
        *,
        windows: Windows | None = None,
        settled: Callable[[], Awaitable[None]] = _at_once,
        budget: RenderBudget | None = None,
    ) -> None:
        self._live = live
        self._last_known = last_known
        self._settled = settled
        self._budget = budget or RenderBudget()
        self._breakdowns = Breakdowns()
        # Windows from the database do not move with time, and have their own breakdowns.
        self._still: WeakKeyDictionary[Snapshot, Breakdowns] = WeakKeyDictionary()
        self._windows = windows
        self._floor: Position | None = None  # the newest position at which a window was answered
        self._loader = loader
        self._clock = clock
        self._instruments = instruments
        self._baseline = baseline
        self._served = {source: instruments.reads.labels(source.value) for source in Source}
        self._known: Reading | None = None
        self._asked = 0  # when the cache or database was last read
        self._one = asyncio.Lock()
        self._encoded: OrderedDict[View, _CachedDocument] = OrderedDict()

    async def read(self) -> Reading:
        """Return the newest available snapshot. Raises Unavailable if there is none at all."""
        await self._settled()
        reading = self._live_if_newest()
        if reading is None:
            async with self._one:  # all callers share one read
                reading = self._live_if_newest() or await self._fall_back()
        self._known = reading
        self._served[reading.source].inc()
        return reading

    def _live_if_newest(self) -> Reading | None:
        """Return live state; None if there is none, or if a newer reading was returned before."""
        reading = self._live()
        return None if reading is None or _is_older(reading, self._known) else reading

    async def _fall_back(self) -> Reading:
        now, known = self._clock.now(), self._last()
        asked_lately = 0 <= now - self._asked < REUSE
        if not asked_lately:
            self._asked = now
            reading = await self._from_engines(now)
            # Numbers must never go back in time.
            if reading is not None and not _is_older(reading, known):
                return reading
        if known is None:
            raise Unavailable(_NO_SOURCE)
        if asked_lately and known.source in (Source.CACHE, Source.DATABASE):
            return known
        return Reading(known.snapshot, Source.STALE, known.as_of)

    def _last(self) -> Reading | None:
        """Return the newest reading so far."""
        known, held = self._known, self._last_known()
        return held if held is not None and (known is None or _is_older(known, held)) else known

    async def _from_engines(self, now: int) -> Reading | None:
        snapshot = await self._loader.from_cache()
        if snapshot is not None:
            return Reading(snapshot, Source.CACHE, now)
        try:
            return Reading(await self._loader.from_store(), Source.DATABASE, now)
        except Unavailable:
            return None

    def reading_now(self) -> Reading | None:
        """Return live state without waiting; None if it cannot answer."""
        reading = self._live_if_newest()
        if reading is not None:
            self._known = reading
            self._served[reading.source].inc()
        return reading

    # -- windows --------------------------------------------------------------------------------

    def covering(self, reading: Reading, view: View) -> Reading | None:
        """Return a reading that covers a view: this one, or the newest window from the database.

        Returns None if there is none yet: then await `reading_for`, unless `lacks` says that the
        read failed.
        """
        is_rate = "rate" in view.fields
        covered = reading.snapshot.covers(view.window, self._clock.now(), rate=is_rate)
        if self._windows is None or (view.window == "all" and not is_rate):
            return reading if covered else None
        asked, position = query_of(view), reading.snapshot.position
        if not covered:
            return self._windows.held(asked, self._floor)
        # Numbers must never go back in time.
        newer = self._windows.newer(asked, position)
        if newer is None:
            self._floor = position
        return newer or reading

    def lacks(self, view: View) -> bool:
        """Whether the last read of a view's window from the database failed."""
        return self._windows is None or self._windows.failed(query_of(view))

    async def reading_for(self, view: View) -> Reading:
        """Wait for a reading that covers a view, and return it. Raises Unavailable."""
        reading = self.covering(await self.read(), view)
        if reading is not None:
            return reading
        if self._windows is None:
            raise Unavailable(_NO_SOURCE)
        return await self._windows.read(query_of(view), self._floor)

    # -- documents ------------------------------------------------------------------------------

    def is_ready(self, reading: Reading, view: View, now: int | None = None) -> bool:
        """Do a slice of the work for a view's document; return whether it was the last slice.

        If it was, `document` with the same `now` returns the document at once. If not, call again
        after other tasks had a turn. `now` defaults to the clock's time.
        """
        if now is None:
            now = self._clock.now()
        try:
            return self._made(reading, view, now) is not None
        except NotHeld:
            return True  # no work can be done

    def _made(self, reading: Reading, view: View, now: int) -> list[Breakdown] | None:
        made, snapshot = [], reading.snapshot
        breakdowns = self._breakdowns
        if snapshot.still:
            breakdowns = self._still.setdefault(snapshot, Breakdowns())
        for selection in view.selections:
            one = breakdowns.ready(snapshot, selection, snapshot.document_time(now))
            if one is None:
                return None
            made.append(one)
        return made

    def stamps(self, reading: Reading, view: View, now: int) -> Stamps:
        """Return the stamps of the sums in a view's document, once `is_ready`.

        While they and `View.time_key` stay the same, so does the document. () if they are unknown.
        """
        try:
            made = self._made(reading, view, now)
        except NotHeld:
            return ()
        return () if made is None else tuple(each.stamp for each in made)

    def document(self, reading: Reading, view: View, now: int) -> Document | None:
        """Return a view's document, None if this reading cannot give it.

        Call `is_ready` first: this does none of its work.
        """
        try:
            made = self._made(reading, view, now)
            if made is None:
                return None
            found = document(view, made, reading.snapshot.document_time(now), self._baseline)
        except NotHeld:
            return None
        except Exception:  # must not fail the documents of other views
            log.exception("A view could not be rendered: %s", view)
            return None
        self._instruments.renders.inc()
        return found

    async def encoded_documents(self, views: Mapping[View, str]) -> dict[View, EncodedDocument]:
        """Return the newest documents of the views that are ready, all of one reading.

        Each view comes with the client that pays for its rendering, "" for none. `is_ready` makes
        the other views ready.
        """
        try:
            reading = await self.read()
        except Unavailable:
            failed = error_document(self._clock.now())
            return dict.fromkeys(views, failed)
        found: dict[View, EncodedDocument] = {}
        for view, payer in views.items():
            if found:  # other tasks get a turn between two views
                await asyncio.sleep(0)
                await self._settled()
            started = time.thread_time()
            document = self._encoded_document(reading, view)
            if document is not None:
                found[view] = document
            if payer:
                self._budget.charge(payer, time.thread_time() - started, time.monotonic())
        return found

    def _encoded_document(self, reading: Reading, view: View) -> EncodedDocument | None:
        covering, now = self.covering(reading, view), self._clock.now()
        if covering is not None:
            return self._encode(covering, view, now)
        return error_document(now) if self.lacks(view) else None

    def _encode(self, reading: Reading, view: View, now: int) -> EncodedDocument | None:
        """Return a view's document; None if it is not ready."""
        snapshot = reading.snapshot
        time_key = view.time_key(snapshot.document_time(now))
        held = self._encoded.get(view)
        if held is None or held.position != snapshot.position or held.time_key != time_key:
            if not self.is_ready(reading, view, now):
                return None
            found = self.document(reading, view, now)
            if found is None:
                return error_document(now)
            held = _CachedDocument(snapshot.position, time_key, encode_document(found))
            self._encoded[view] = held
            if len(self._encoded) > MAX_VIEWS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(view)
        return finish(held.unterminated, now, reading.source, held.position)


def _is_older(reading: Reading, than: Reading | None) -> bool:
    if than is None:
        return False
    ours, theirs = reading.snapshot.position, than.snapshot.position
    return ours.epoch == theirs.epoch and ours.seq < theirs.seq
