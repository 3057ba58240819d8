"""Latest: the newest numbers that can be had, and the frames made of them.

Sources are asked in order: live, cache, database, the last that was known. Where what they give
does not cover a view's window, the database is asked for the window (`windows.py`). A view's
document is rendered and encoded once for all who share it, and again only when it can have changed.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from routecast.core.decision import SECOND
from routecast.core.frame import Frame, encode_document, error_frame, stamp
from routecast.core.metrics import Baseline, Document, render
from routecast.core.view import View
from routecast.core.window import WindowQuery, query_of
from routecast.errors import Unavailable, Uncovered
from routecast.instruments import Instruments
from routecast.ports import Clock, Reading
from routecast.protocol import Position, Source
from routecast.sources import Sources
from routecast.windows import WAIT_SECONDS, Windows

log = logging.getLogger(__name__)

# Without live state, the engines are asked at most this often, whoever many ask us.
REUSE: Final = SECOND
# For so long a frame of live state can be given to one more who comes, if nothing changed.
FRESH: Final = SECOND // 20
_NOTHING: Final = "neither live state, cache nor database can answer"
# Ticks wait for so long for the first answer to a window from the database, in seconds.
WINDOW_SECONDS: Final = 2.0
# Views whose encoded document is kept; the least lately used goes first.
MAX_VIEWS: Final = 512


class _Encoded(NamedTuple):
    """A document's bytes, and what they were made from: equal makings give equal bytes."""

    position: Position
    moment: int
    opened: bytes


class Latest:
    """Answers with frames from the best source there is."""

    def __init__(
        self,
        live: Callable[[], Reading | None],
        held: Callable[[], Reading | None],
        sources: Sources,
        clock: Clock,
        instruments: Instruments,
        baseline: Baseline | None = None,
        windows: Windows | None = None,
    ) -> None:
        self._live = live
        self._held = held
        self._sources = sources
        self._clock = clock
        self._instruments = instruments
        self._baseline = baseline
        self._windows = windows
        self._floor: Position | None = None  # the newest one that a window was answered at
        self._served = {source: instruments.reads.labels(source.value) for source in Source}
        self._known: Reading | None = None
        self._asked = 0  # when the engines were last asked
        self._one = asyncio.Lock()
        self._encoded: OrderedDict[View, _Encoded] = OrderedDict()
        self._fresh: dict[View, tuple[Position, int, Frame]] = {}

    async def read(self) -> Reading:
        """Return the newest snapshot to be had. Raises Unavailable when there is none at all."""
        reading = self._in_front()
        if reading is None:
            async with self._one:  # however many ask, the engines are asked once
                reading = self._in_front() or await self._ask()
        self._known = reading
        self._served[reading.source].inc()
        return reading

    def _in_front(self) -> Reading | None:
        """Return live state; None while something newer was seen: it will catch up."""
        reading = self._live()
        return None if reading is None or _is_older(reading, self._known) else reading

    async def _ask(self) -> Reading:
        now, known = self._clock.now(), self._last()
        asked_lately = 0 <= now - self._asked < REUSE
        if not asked_lately:
            self._asked = now
            reading = await self._from_engines(now)
            # Whoever saw a number must not see an older one.
            if reading is not None and not _is_older(reading, known):
                return reading
        if known is None:
            raise Unavailable(_NOTHING)
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
        reading = self._in_front()
        if reading is not None:
            self._known = reading
            self._served[reading.source].inc()
        return reading

    def document(self, reading: Reading, view: View, now: int) -> Document | None:
        """Return a view's document, None when it cannot be made of this reading."""
        try:
            snapshot = reading.snapshot
            document = render(snapshot, view, snapshot.moment(now), self._baseline)
        except Uncovered:
            return None
        except Exception:
            log.exception("A view could not be rendered: %s", view)
            return None
        self._instruments.renders.inc()
        return document

    def frame_now(self, view: View) -> Frame | None:
        """Return a view's newest frame from live state, None when that cannot answer.

        Those who ask within FRESH of each other get the same: a crowd costs one.
        """
        reading = self._in_front()
        if reading is None:
            return None
        self._known = reading
        now, reading = self._clock.now(), self.covering(reading, view)
        if reading is None:
            return None
        held = self._fresh.get(view)
        if held is None or held[0] != reading.snapshot.position or not 0 <= now - held[1] < FRESH:
            if len(self._fresh) >= MAX_VIEWS:
                self._fresh.clear()
            self._served[reading.source].inc()
            frame = self._encode(reading, view, now)
            held = self._fresh[view] = (reading.snapshot.position, now, frame)
        return held[2]

    async def frame(self, view: View) -> Frame:
        """Return a view's newest frame, or the error document's; a window is waited for."""
        return (await self.frames([view], patience=WAIT_SECONDS))[view]

    async def frames(
        self, views: Iterable[View], *, patience: float = WINDOW_SECONDS
    ) -> dict[View, Frame]:
        """Return the newest frame of each view, from one source but for uncovered windows."""
        views = list(views)
        readings = await self.readings(views, patience=patience)
        frames: dict[View, Frame] = {}
        for view in views:
            if frames:  # others get their turn between two views
                await asyncio.sleep(0)
            reading, now = readings[view], self._clock.now()
            frames[view] = error_frame(now) if reading is None else self._encode(reading, view, now)
        return frames

    # -- windows --------------------------------------------------------------------------------

    def covering(self, reading: Reading, view: View) -> Reading | None:
        """Return what a view can be made of now: a reading, else what the database answered last.

        None: `readings` waits for it.
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

    async def readings(
        self, views: Iterable[View], *, patience: float = WINDOW_SECONDS
    ) -> dict[View, Reading | None]:
        """Return what each view can be made of, None where there is nothing.

        `patience` is how many seconds to wait for a window that memory does not hold.
        """
        views = list(views)
        try:
            reading = await self.read()
        except Unavailable:
            return dict.fromkeys(views)
        found = {view: self.covering(reading, view) for view in views}
        asked = {query_of(view) for view, covering in found.items() if covering is None}
        if asked:
            answers = await asyncio.gather(*(self._window(each, patience) for each in asked))
            answered = dict(zip(asked, answers, strict=True))
            found = {view: held or answered[query_of(view)] for view, held in found.items()}
        return found

    async def _window(self, asked: WindowQuery, patience: float) -> Reading | None:
        if self._windows is None:
            return None
        with suppress(Unavailable):
            return await self._windows.read(asked, self._floor, patience=patience)
        return None

    def _encode(self, reading: Reading, view: View, now: int) -> Frame:
        snapshot = reading.snapshot
        moment = view.moment(snapshot.moment(now))
        held = self._encoded.get(view)
        if held is None or held.position != snapshot.position or held.moment != moment:
            document = self.document(reading, view, now)
            if document is None:
                return error_frame(now)
            held = _Encoded(snapshot.position, moment, encode_document(document))
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
