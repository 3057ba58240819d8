"""Latest: the newest numbers that can be had, and the frames made of them.

Sources are asked in order: live, cache, database, the last that was known. A view's document is
rendered and encoded once for all who share it, and again only when it can have changed.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from routecast.core.decision import MINUTE, SECOND
from routecast.core.frame import Frame, encode_document, error_frame, stamp
from routecast.core.metrics import Baseline, render
from routecast.core.view import View
from routecast.errors import Unavailable, Uncovered
from routecast.instruments import Instruments
from routecast.ports import Cache, Clock, Reading, Store
from routecast.protocol import Position, Source

log = logging.getLogger(__name__)

# Without live state, the engines are asked at most this often, whoever many ask us.
REUSE: Final = SECOND
# For so long a frame of live state can be given to one more who comes, if nothing changed.
FRESH: Final = SECOND // 20
_NOTHING: Final = "neither live state, cache nor database can answer"
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
        cache: Cache,
        store: Store,
        clock: Clock,
        instruments: Instruments,
        baseline: Baseline | None = None,
    ) -> None:
        self._live = live
        self._cache = cache
        self._store = store
        self._clock = clock
        self._instruments = instruments
        self._baseline = baseline
        self._known: Reading | None = None
        self._asked = 0  # when the engines were last asked
        self._one = asyncio.Lock()
        self._encoded: OrderedDict[View, _Encoded] = OrderedDict()
        self._fresh: dict[View, tuple[Position, int, Frame]] = {}
        self.cache_failing = False

    async def read(self) -> Reading:
        """Return the newest snapshot to be had. Raises Unavailable when there is none at all."""
        reading = self._live()
        if reading is None:
            async with self._one:  # however many ask, the engines are asked once
                reading = self._live() or await self._ask()
        self._known = reading
        self._instruments.reads.labels(reading.source.value).inc()
        return reading

    async def _ask(self) -> Reading:
        now = self._clock.now()
        known = self._known
        if 0 <= now - self._asked < REUSE:
            if known is None:
                raise Unavailable(_NOTHING)
            return known if known.source is not Source.LIVE else self._stale(known)
        self._asked = now
        reading = await self._from_cache() or await self._from_store()
        if reading is not None:
            return reading
        if known is None:
            raise Unavailable(_NOTHING)
        return self._stale(known)

    @staticmethod
    def _stale(known: Reading) -> Reading:
        return Reading(known.snapshot, Source.STALE, known.as_of)

    async def _from_cache(self) -> Reading | None:
        result = "error"
        try:
            snapshot = await self._cache.get()
            result = "miss" if snapshot is None else "hit"
        except (Unavailable, ValueError) as error:
            log.warning("Metrics cache cannot be used: %s", error)
            snapshot = None
        self.cache_failing = result == "error"
        self._instruments.cache.labels(result).inc()
        log.info("Metrics cache %s", "MISS" if snapshot is None else "HIT")
        if snapshot is None:
            return None
        return Reading(snapshot, Source.CACHE, self._clock.now())

    async def _from_store(self) -> Reading | None:
        now = self._clock.now()
        try:
            snapshot = await self._store.load(now)
        except Unavailable:
            return None
        with suppress(Unavailable):
            await self._cache.put(snapshot)
        return Reading(snapshot, Source.DATABASE, now)

    def frame_now(self, view: View) -> Frame | None:
        """Return a view's newest frame from live state, None when that cannot answer.

        Those who ask within FRESH of each other get the same: a crowd costs one.
        """
        reading = self._live()
        if reading is None:
            return None
        now = self._clock.now()
        held = self._fresh.get(view)
        if held is None or held[0] != reading.snapshot.position or not 0 <= now - held[1] < FRESH:
            if len(self._fresh) >= MAX_VIEWS:
                self._fresh.clear()
            self._known = reading
            self._instruments.reads.labels(reading.source.value).inc()
            frame = self._encode(reading, view, now)
            held = self._fresh[view] = (reading.snapshot.position, now, frame)
        return held[2]

    async def frame(self, view: View) -> Frame:
        """Return a view's newest frame, or the error document's."""
        return (await self.frames([view]))[view]

    async def frames(self, views: Iterable[View]) -> dict[View, Frame]:
        """Return the newest frame of each view, from one source."""
        try:
            reading = await self.read()
        except Unavailable:
            failed = error_frame(self._clock.now())
            return dict.fromkeys(views, failed)
        frames: dict[View, Frame] = {}
        for view in views:
            if frames:  # others get their turn between two views
                await asyncio.sleep(0)
            frames[view] = self._encode(reading, view, self._clock.now())
        return frames

    def _encode(self, reading: Reading, view: View, now: int) -> Frame:
        snapshot = reading.snapshot
        # What else than the position moves a document: seconds a rate, minutes a window.
        moment = now if "rate" in view.fields else 0 if view.window == "all" else now // MINUTE
        held = self._encoded.get(view)
        if held is None or held.position != snapshot.position or held.moment != moment:
            try:
                document = render(snapshot, view, now, self._baseline)
            except Uncovered:
                return error_frame(now)
            except Exception:
                log.exception("A view could not be rendered: %s", view)
                return error_frame(now)
            self._instruments.renders.inc()
            held = _Encoded(snapshot.position, moment, encode_document(document))
            self._encoded[view] = held
            if len(self._encoded) > MAX_VIEWS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(view)
        return stamp(held.opened, now, reading.source, held.position)
