"""Latest: the newest numbers that can be had, and the frames made of them.

Sources are asked in order: live, cache, database, the last that was known. Where what they give
does not cover a view's window, the database is asked for the window (`windows.py`). A view's
document is rendered and encoded once for all who share it, and again only when it can have changed.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from routecast.core.breakdown import Breakdown, Breakdowns
from routecast.core.budget import RenderBudget
from routecast.core.decision import SECOND
from routecast.core.document import EncodedDocument, encode_document, error_frame, stamp
from routecast.core.metrics import Baseline, document
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

# Without live state, the engines are asked at most this often, whoever many ask us.
REUSE: Final = SECOND
_NO_SOURCE: Final = "neither live state, cache nor database can answer"
# Views whose encoded document is kept; the least lately used goes first.
MAX_VIEWS: Final = 512


class _Encoded(NamedTuple):
    """A document's bytes, and what they were made from: equal makings give equal bytes."""

    position: Position
    moment: int
    opened: bytes


async def _at_once() -> None:
    """Return at once: there is no live state that could be in between two positions."""


class MetricsReader:
    """Answers with frames from the best source there is.

    `live` and `held` are None while live state is being changed; `settled` returns when it is not.
    `budget` is charged for what each client has rendered.
    """

    def __init__(
        self,
        live: Callable[[], Reading | None],
        held: Callable[[], Reading | None],
        sources: SnapshotLoader,
        clock: Clock,
        instruments: Instruments,
        baseline: Baseline | None = None,
        *,
        windows: Windows | None = None,
        settled: Callable[[], Awaitable[None]] = _at_once,
        budget: RenderBudget | None = None,
    ) -> None:
        self._live = live
        self._held = held
        self._settled = settled
        self._budget = budget or RenderBudget()
        self._breakdowns = Breakdowns()
        # Of answers to windows: each is of one moment, and has breakdowns of its own.
        self._still: WeakKeyDictionary[Snapshot, Breakdowns] = WeakKeyDictionary()
        self._windows = windows
        self._floor: Position | None = None  # the newest one that a window was answered at
        self._sources = sources
        self._clock = clock
        self._instruments = instruments
        self._baseline = baseline
        self._served = {source: instruments.reads.labels(source.value) for source in Source}
        self._known: Reading | None = None
        self._asked = 0  # when the engines were last asked
        self._one = asyncio.Lock()
        self._encoded: OrderedDict[View, _Encoded] = OrderedDict()

    async def read(self) -> Reading:
        """Return the newest snapshot to be had. Raises Unavailable when there is none at all."""
        await self._settled()
        reading = self._live_if_newest()
        if reading is None:
            async with self._one:  # however many ask, the engines are asked once
                reading = self._live_if_newest() or await self._fall_back()
        self._known = reading
        self._served[reading.source].inc()
        return reading

    def _live_if_newest(self) -> Reading | None:
        """Return live state; None while something newer was seen: it will catch up."""
        reading = self._live()
        return None if reading is None or _is_older(reading, self._known) else reading

    async def _fall_back(self) -> Reading:
        now, known = self._clock.now(), self._last()
        asked_lately = 0 <= now - self._asked < REUSE
        if not asked_lately:
            self._asked = now
            reading = await self._from_engines(now)
            # Whoever saw a number must not see an older one.
            if reading is not None and not _is_older(reading, known):
                return reading
        if known is None:
            raise Unavailable(_NO_SOURCE)
        if asked_lately and known.source in (Source.CACHE, Source.DATABASE):
            return known
        return Reading(known.snapshot, Source.STALE, known.as_of)

    def _last(self) -> Reading | None:
        """Return the newest reading there ever was."""
        known, held = self._known, self._held()
        return held if held is not None and (known is None or _is_older(known, held)) else known

    async def _from_engines(self, now: int) -> Reading | None:
        snapshot = await self._sources.cached()
        if snapshot is not None:
            return Reading(snapshot, Source.CACHE, now)
        try:
            return Reading(await self._sources.stored(), Source.DATABASE, now)
        except Unavailable:
            return None

    def reading_now(self) -> Reading | None:
        """Return live state, None when that cannot answer."""
        reading = self._live_if_newest()
        if reading is not None:
            self._known = reading
            self._served[reading.source].inc()
        return reading

    # -- windows --------------------------------------------------------------------------------

    def covering(self, reading: Reading, view: View) -> Reading | None:
        """Return what a view can be made of now: a reading, else what the database answered last.

        None: `reading_for` waits for it, unless there is nothing to wait for (`lacks`).
        """
        is_rate = "rate" in view.fields
        covered = reading.snapshot.covers(view.window, self._clock.now(), rate=is_rate)
        if self._windows is None or (view.window == "all" and not is_rate):
            return reading if covered else None
        asked, position = query_of(view), reading.snapshot.position
        if not covered:
            return self._windows.held(asked, self._floor)
        # Whoever saw a number must not see an older one.
        newer = self._windows.newer(asked, position)
        if newer is None:
            self._floor = position
        return newer or reading

    def lacks(self, view: View) -> bool:
        """Whether the window of a view is not covered, and the database was asked in vain."""
        return self._windows is None or self._windows.failed(query_of(view))

    async def reading_for(self, view: View) -> Reading:
        """Return what a view can be made of, once there is something. Raises Unavailable."""
        reading = self.covering(await self.read(), view)
        if reading is not None:
            return reading
        if self._windows is None:
            raise Unavailable(_NO_SOURCE)
        return await self._windows.read(query_of(view), self._floor)

    # -- documents ------------------------------------------------------------------------------

    def is_ready(self, reading: Reading, view: View, now: int | None = None) -> bool:
        """Do a piece of the work that a view's document takes; return whether that was the last.

        Then `document` makes it at once, of the same moment. If not, call again after others had a
        turn. `now` is the clock's time where it is left out.
        """
        if now is None:
            now = self._clock.now()
        try:
            return self._made(reading, view, now) is not None
        except NotHeld:
            return True  # there is nothing that could be done

    def _made(self, reading: Reading, view: View, now: int) -> list[Breakdown] | None:
        made, snapshot = [], reading.snapshot
        breakdowns = self._breakdowns
        if snapshot.still:
            breakdowns = self._still.setdefault(snapshot, Breakdowns())
        for selection in view.selections:
            one = breakdowns.ready(snapshot, selection, snapshot.moment(now))
            if one is None:
                return None
            made.append(one)
        return made

    def stamps(self, reading: Reading, view: View, now: int) -> Stamps:
        """Return the stamps of the sums that a view's document is made of, once `is_ready`.

        As long as they and `View.moment` are the same, so is the document. () where they cannot
        be told.
        """
        try:
            made = self._made(reading, view, now)
        except NotHeld:
            return ()
        return () if made is None else tuple(each.stamp for each in made)

    def document(self, reading: Reading, view: View, now: int) -> Document | None:
        """Return a view's document, None when it cannot be made of this reading.

        Ask `is_ready` first; it is not made of work that was not done.
        """
        try:
            made = self._made(reading, view, now)
            if made is None:
                return None
            found = document(view, made, reading.snapshot.moment(now), self._baseline)
        except NotHeld:
            return None
        except Exception:
            log.exception("A view could not be rendered: %s", view)
            return None
        self._instruments.renders.inc()
        return found

    async def frames(self, views: Mapping[View, str]) -> dict[View, EncodedDocument]:
        """Return the newest frame of those views that can be made at once, from one source.

        By each view is the client that pays for it; "" is nobody. `is_ready` makes the others so.
        """
        try:
            reading = await self.read()
        except Unavailable:
            failed = error_frame(self._clock.now())
            return dict.fromkeys(views, failed)
        frames: dict[View, EncodedDocument] = {}
        for view, payer in views.items():
            if frames:  # others get their turn between two views
                await asyncio.sleep(0)
                await self._settled()
            started = time.thread_time()
            frame = self._frame(reading, view)
            if frame is not None:
                frames[view] = frame
            if payer:
                self._budget.charge(payer, time.thread_time() - started, time.monotonic())
        return frames

    def _frame(self, reading: Reading, view: View) -> EncodedDocument | None:
        covering, now = self.covering(reading, view), self._clock.now()
        if covering is not None:
            return self._encode(covering, view, now)
        return error_frame(now) if self.lacks(view) else None

    def _encode(self, reading: Reading, view: View, now: int) -> EncodedDocument | None:
        """Return a view's frame; None when that cannot be made at once."""
        snapshot = reading.snapshot
        moment = view.moment(snapshot.moment(now))
        held = self._encoded.get(view)
        if held is None or held.position != snapshot.position or held.moment != moment:
            if not self.is_ready(reading, view, now):
                return None
            found = self.document(reading, view, now)
            if found is None:
                return error_frame(now)
            held = _Encoded(snapshot.position, moment, encode_document(found))
            self._encoded[view] = held
            if len(self._encoded) > MAX_VIEWS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(view)
        return stamp(held.opened, now, reading.source, held.position)


def _is_older(reading: Reading, than: Reading | None) -> bool:
    if than is None:
        return False
    ours, theirs = reading.snapshot.position, than.snapshot.position
    return ours.epoch == theirs.epoch and ours.seq < theirs.seq
