"""`MetricsReader`: it uses the best source, and encodes a view only if it can have changed."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from routecast.adapters.bus.memory import MemoryBus
from routecast.adapters.cache.memory import MemoryCache
from routecast.adapters.clock import SystemTimers
from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.delta import Delta
from routecast.core.snapshot import BOUNDED, COVERAGE, Snapshot
from routecast.core.topology import Topology
from routecast.core.view import View
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.ports import Reading
from routecast.protocol import Position, Source
from routecast.services import metrics_reader as module
from routecast.services.metrics_reader import MetricsReader
from routecast.services.snapshot_loader import SnapshotLoader
from routecast.services.windows import Windows
from tests.support.clock import HeldClock
from tests.support.decisions import MINUTE, NOW, SECOND, cells_of, kept
from tests.support.encoded_documents import document_of
from tests.support.oracle import stamped
from tests.support.running_services import broken

WHOLE = View()
COUNT = View(fields=("total_decisions",))


class CountingStore(SqliteStore):
    """A SQLite store that counts its reads."""

    loads = 0

    async def load(self, now: int, room: int | None = None) -> Snapshot:
        self.loads += 1
        return await super().load(now, room)


class LostCache(MemoryCache):
    """A cache whose engine cannot be reached."""

    async def get(self) -> Snapshot | None:
        raise Unavailable("connection refused")

    async def put(self, snapshot: Snapshot) -> None:
        raise Unavailable("connection refused")


class AllSources:
    """All sources, which a test fills or breaks, and a reader over them."""

    def __init__(self, store: CountingStore, clock: HeldClock, cache: MemoryCache) -> None:
        self.store = store
        self.clock = clock
        self.cache = cache
        self.bus = MemoryBus()
        self.instruments = Instruments()
        self.live: Snapshot | None = None
        self.loader = SnapshotLoader(
            store,
            cache,
            self.bus,
            MemoryCluster(),
            clock,
            SystemTimers(),
            self.instruments,
            Topology(),
        )
        self.last: Snapshot | None = None
        self.reader = MetricsReader(
            self.reading, self.last_known, self.loader, clock, self.instruments
        )

    def reading(self) -> Reading | None:
        return Reading(self.live, Source.LIVE, self.clock.now()) if self.live else None

    def last_known(self) -> Reading | None:
        return Reading(self.last, Source.STALE, self.clock.now()) if self.last else None

    def count(self, name: str, **labels: str) -> float:
        return self.instruments.registry.get_sample_value(f"routecast_{name}_total", labels) or 0

    async def ask(self) -> tuple[Source | None, int | None]:
        """Return the source of the count of decisions, and the count."""
        document = await document_of(self.reader, COUNT)
        return document.source, json.loads(document.body).get("total_decisions")


def snapshot(count: int) -> Snapshot:
    made = Snapshot(Position("e", 0), NOW)
    for seq in range(1, count + 1):
        made.apply(Delta(Position("e", seq), cells_of([kept(seq)]), NOW))
    return made


@pytest.fixture
async def sources(path: Path, clock: HeldClock, cache: MemoryCache) -> AsyncIterator[AllSources]:
    """Nothing live, nothing cached, and an empty database."""
    store = CountingStore(path)
    await store.open()
    yield AllSources(store, clock, cache)
    await store.close()


# -- which source -------------------------------------------------------------------------------


async def test_sources_are_asked_best_first(sources: AllSources) -> None:
    """The order is live, cache, database; each has another count here."""
    await sources.store.commit([[kept(1), kept(2), kept(3)]], NOW)
    sources.live = snapshot(1)
    await sources.cache.put(snapshot(2))
    assert await sources.ask() == (Source.LIVE, 1)
    assert sources.store.loads == sources.count("cache", result="hit") == 0
    sources.live = None
    sources.clock.moment += SECOND
    assert await sources.ask() == (Source.CACHE, 2)
    assert sources.store.loads == 0
    sources.clock.moment += 30 * SECOND
    assert await sources.ask() == (Source.DATABASE, 3)
    for source in ("live", "cache", "database"):
        assert sources.count("snapshots_served", source=source) == 1


async def test_cached_snapshot_is_brought_up_to_date(sources: AllSources) -> None:
    """It gets the deltas since then; if the bus no longer has them, it is not used."""
    await sources.cache.put(snapshot(2))
    sources.bus.publish(Delta(Position("e", 3), cells_of([kept(3)]), NOW))
    assert await sources.ask() == (Source.CACHE, 3)
    sources.bus.publish(Delta(Position("e", 5), cells_of([kept(5)]), NOW))
    sources.clock.moment += SECOND
    assert await sources.ask() == (Source.DATABASE, 0)


async def test_no_number_goes_back(sources: AllSources) -> None:
    """An older position of the same epoch is not used, from any source."""
    sources.live = snapshot(3)
    await sources.ask()
    sources.live = None
    await sources.cache.put(snapshot(2))
    assert await sources.ask() == (Source.STALE, 3)
    sources.last = snapshot(4)
    sources.clock.moment += SECOND
    assert await sources.ask() == (Source.STALE, 4)
    # Live state that has yet to catch up with what was cached.
    await sources.cache.put(snapshot(6))
    sources.clock.moment += SECOND
    assert await sources.ask() == (Source.CACHE, 6)
    sources.live = snapshot(5)
    assert sources.reader.reading_now() is None
    assert await sources.ask() == (Source.CACHE, 6)
    sources.live = snapshot(6)
    assert await sources.ask() == (Source.LIVE, 6)


async def test_last_known_answers_when_no_source_can(sources: AllSources) -> None:
    """It is marked stale with its age, until a source answers again."""
    sources.live = snapshot(3)
    await sources.ask()
    sources.live = None
    with broken(sources.store.path):
        sources.clock.moment += 10 * SECOND
        assert await sources.ask() == (Source.STALE, 3)
        assert (await sources.reader.read()).as_of == NOW
        sources.clock.moment += 10 * SECOND
        assert await sources.ask() == (Source.STALE, 3)
        assert (await sources.reader.read()).as_of == NOW
    sources.clock.moment += SECOND
    assert await sources.ask() == (Source.DATABASE, 0)


async def test_error_document_when_nothing_is_known(sources: AllSources) -> None:
    """There is an error without any source, and the next try may succeed."""
    with broken(sources.store.path):
        document = await document_of(sources.reader, WHOLE)
        assert json.loads(document.body) == stamped({"error": "Failed to fetch metrics"}, NOW)
        assert document.source is None
        with pytest.raises(Unavailable):
            await sources.reader.read()
    sources.clock.moment += SECOND
    assert await sources.ask() == (Source.DATABASE, 0)


async def test_snapshot_of_the_database_is_cached(
    sources: AllSources, caplog: pytest.LogCaptureFixture
) -> None:
    """The first read is a miss and the next a hit; both are logged and counted."""
    caplog.set_level(logging.INFO, "routecast.services.snapshot_loader")
    await sources.store.commit([[kept(1)]], NOW)
    assert await sources.ask() == (Source.DATABASE, 1)
    sources.clock.moment += SECOND
    assert await sources.ask() == (Source.CACHE, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "Metrics cache MISS",
        "Metrics cache HIT",
    ]
    assert (sources.count("cache", result="miss"), sources.count("cache", result="hit")) == (1, 1)
    assert sources.store.loads == 1
    assert not sources.loader.cache_failing


async def test_lost_cache_costs_nothing_but_time(
    path: Path, clock: HeldClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The database answers, and the failure of the cache is reported."""
    store = CountingStore(path)
    await store.open()
    sources = AllSources(store, clock, LostCache(clock))
    assert await sources.ask() == (Source.DATABASE, 0)
    assert sources.loader.cache_failing
    assert sources.count("cache", result="error") == 1
    assert "Metrics cache cannot be used: connection refused" in caplog.text
    await store.close()


async def test_engines_are_asked_once_however_many_ask(sources: AllSources) -> None:
    """Concurrent and later callers share one read for a second."""
    documents = await asyncio.gather(*(document_of(sources.reader, WHOLE) for _ in range(50)))
    assert {document.source for document in documents} == {Source.DATABASE}
    assert sources.store.loads == 1
    assert sources.count("cache", result="miss") == 1
    sources.clock.moment += SECOND - 1
    await sources.ask()
    assert (sources.store.loads, sources.count("cache", result="hit")) == (1, 0)
    sources.clock.moment += 1
    await sources.ask()
    assert (sources.store.loads, sources.count("cache", result="hit")) == (1, 1)


async def test_engines_that_fail_are_asked_once_too(sources: AllSources) -> None:
    """Callers of a lost database do not wait one after the other."""
    with broken(sources.store.path):
        documents = await asyncio.gather(*(document_of(sources.reader, WHOLE) for _ in range(20)))
    assert {document.source for document in documents} == {None}
    assert sources.store.loads == 1


async def test_lost_live_state_is_stale_until_engines_may_be_asked(sources: AllSources) -> None:
    """Within a second of a read, the last live numbers answer as stale."""
    await sources.ask()
    sources.live = snapshot(3)
    assert await sources.ask() == (Source.LIVE, 3)
    sources.live = None
    assert await sources.ask() == (Source.STALE, 3)


# -- encoding -----------------------------------------------------------------------------------


async def test_unchanged_view_is_not_rendered_again(sources: AllSources) -> None:
    """Only its timestamp changes, for any number of callers and any source."""
    sources.live = snapshot(2)
    first = await document_of(sources.reader, WHOLE)
    sources.clock.moment += 10 * MINUTE
    second = await document_of(sources.reader, View())
    assert sources.count("renders") == 1
    before, after = json.loads(first.body), json.loads(second.body)
    assert before.pop("timestamp") < after.pop("timestamp")
    assert before == after


async def test_commit_is_rendered(sources: AllSources) -> None:
    """A new position has a new document."""
    sources.live = snapshot(2)
    assert await sources.ask() == (Source.LIVE, 2)
    sources.live.apply(Delta(Position("e", 3), cells_of([kept(3)]), NOW))
    assert await sources.ask() == (Source.LIVE, 3)
    sources.live = Snapshot(Position("other", 3), NOW)
    assert await sources.ask() == (Source.LIVE, 0)
    assert sources.count("renders") == 3


@pytest.mark.parametrize(
    ("view", "renders"),
    [
        (View(), [1, 1, 1]),
        (View(window="5m"), [1, 1, 2]),
        (View(fields=("rate",)), [1, 2, 3]),
        (View(fields=("total_decisions", "rate"), window="1h"), [1, 2, 3]),
    ],
    ids=["all", "window", "rate", "both"],
)
async def test_time_moves_what_depends_on_it(
    sources: AllSources, view: View, renders: list[int]
) -> None:
    """A window changes by the minute, a rate always, and the total never."""
    sources.live = snapshot(1)
    counted = []
    for moment in (NOW, NOW // MINUTE * MINUTE + MINUTE - 1, NOW // MINUTE * MINUTE + MINUTE):
        sources.clock.moment = moment
        await document_of(sources.reader, view)
        counted.append(sources.count("renders"))
    assert counted == renders


async def test_frames_of_many_views_are_of_one_reading(sources: AllSources) -> None:
    """Each view has its own document, with its filters, at one position."""
    sources.live = snapshot(2)
    views = [WHOLE, COUNT, View(strategy=frozenset({"nobody's"}))]
    documents = await sources.reader.encoded_documents(dict.fromkeys(views, ""))
    counts = [json.loads(documents[view].body)["total_decisions"] for view in views]
    assert counts == [2, 2, 0]
    assert sources.count("snapshots_served", source="live") == 1
    assert sources.count("renders") == 3


async def test_kept_encodings_have_a_limit(
    sources: AllSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least recently used one is dropped first."""
    monkeypatch.setattr(module, "MAX_VIEWS", 2)
    sources.live = snapshot(1)
    a, b, c = (View(strategy=frozenset({name})) for name in "abc")
    for view, renders in ((a, 1), (b, 2), (a, 2), (c, 3), (a, 3), (b, 4), (c, 5), (b, 5)):
        await document_of(sources.reader, view)
        assert sources.count("renders") == renders, view


async def test_view_that_cannot_be_rendered_spoils_no_other(sources: AllSources) -> None:
    """A snapshot that is too old for a window still has its total."""
    sources.live = snapshot(1)
    sources.clock.moment += COVERAGE
    window = View(window="5m")
    documents = await sources.reader.encoded_documents({window: "", COUNT: ""})
    document: dict[str, Any] = json.loads(documents[window].body)
    assert document["error"] == "Failed to fetch metrics"
    assert json.loads(documents[COUNT].body)["total_decisions"] == 1


# -- windows ------------------------------------------------------------------------------------

WINDOW = View(fields=("total_decisions", "rate", "latency_ms"), window="1h")


@pytest.fixture
async def windowed(sources: AllSources) -> AsyncIterator[MetricsReader]:
    """Live state without room for windows, over a database with three decisions."""
    sources.live = snapshot(0)
    for number in (1, 2, 3):
        done = await sources.store.commit([[kept(number, decided=NOW - number * MINUTE)]], NOW)
        assert done.delta is not None
        if number == 1:
            sources.live = Snapshot(Position(done.position.epoch, 0), NOW)
        sources.live.apply(done.delta)
    sources.live.cover(())
    windows = Windows(sources.store, sources.clock, 1_000_000)
    yield MetricsReader(
        sources.reading,
        sources.last_known,
        sources.loader,
        sources.clock,
        sources.instruments,
        windows=windows,
    )
    await windows.close()


async def test_window_that_live_state_lacks_comes_from_the_database(
    windowed: MetricsReader, sources: AllSources
) -> None:
    """It has a rate and percentiles; the total still comes from live state."""
    documents = {view: await document_of(windowed, view) for view in (WINDOW, COUNT)}
    found = json.loads(documents[WINDOW].body)
    assert (found["total_decisions"], documents[WINDOW].source) == (3, Source.DATABASE)
    assert found["rate"] is not None
    assert found["latency_ms"]["p50"] == pytest.approx(120, rel=0.02)
    assert documents[WINDOW].position == documents[COUNT].position
    assert (json.loads(documents[COUNT].body)["total_decisions"], documents[COUNT].source) == (
        3,
        Source.LIVE,
    )
    # From now on it is at hand, for those who come as well.
    at_hand = windowed.covering(await windowed.read(), WINDOW)
    assert at_hand is not None
    assert at_hand.source is Source.DATABASE
    assert sources.store.loads == 0


async def test_rate_over_all_time_needs_minutes(windowed: MetricsReader) -> None:
    """Live state without minutes takes it from the database."""
    rate = View(fields=("total_decisions", "rate"))
    assert windowed.covering(await windowed.read(), rate) is None
    document = await document_of(windowed, rate)
    assert (json.loads(document.body)["total_decisions"], document.source) == (3, Source.DATABASE)


async def test_window_never_goes_back_between_live_state_and_database(
    windowed: MetricsReader, sources: AllSources
) -> None:
    """The newer of the two positions wins, whichever source it came from."""
    assert sources.live is not None
    reading = await windowed.reading_for(WINDOW)
    assert reading.snapshot.position.seq == 3
    live, sources.live = sources.live, Snapshot(Position(sources.live.position.epoch, 2), NOW)
    behind = windowed.covering(Reading(sources.live, Source.LIVE, NOW), WINDOW)
    assert behind is not None
    assert behind.snapshot.position.seq == 3
    done = await sources.store.commit([[kept(4)]], NOW)
    ahead = Snapshot(done.position, NOW)
    assert windowed.covering(Reading(ahead, Source.LIVE, NOW), WINDOW) == Reading(
        ahead, Source.LIVE, NOW
    )
    # What the database answered before is older than that.
    sources.live = live
    assert windowed.covering(Reading(live, Source.LIVE, NOW), WINDOW) is None
    newest = await windowed.reading_for(WINDOW)
    assert newest.snapshot.position.seq == 4


async def test_window_is_an_error_where_the_database_cannot_be_read(
    windowed: MetricsReader, sources: AllSources, path: Path
) -> None:
    """The window has an error, and totals in memory are still answered."""
    with broken(path):
        documents = {view: await document_of(windowed, view) for view in (WINDOW, COUNT)}
    assert documents[WINDOW].source is None
    assert documents[COUNT].source is Source.LIVE


@pytest.mark.parametrize("step", [COVERAGE, -2 * MINUTE])
async def test_windows_are_answered_right_after_a_clock_step(
    windowed: MetricsReader, sources: AllSources, step: int
) -> None:
    """The database answers for the window at the clock's new time."""
    assert sources.live is not None
    sources.live.cover(BOUNDED)
    sources.clock.moment += step
    document = await document_of(windowed, WINDOW)
    expected = {COVERAGE: 0, -2 * MINUTE: 2}[step]  # the others lie in the future then
    assert json.loads(document.body)["total_decisions"] == expected
    assert document.source is Source.DATABASE
