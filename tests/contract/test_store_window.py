"""Windows that the database adds up: they equal the oracle, within bounded memory."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routecast.adapters.store import loading
from routecast.core.metrics import Baseline, render
from routecast.core.periods import CELL_BYTES
from routecast.core.snapshot import BOUNDED, Snapshot
from routecast.core.view import View
from routecast.core.window import query_of
from routecast.errors import NotHeld
from routecast.ports import Store
from routecast.protocol import FIELDS, WINDOWS, rfc3339
from tests.contract.conftest import Databases
from tests.support.decisions import DAY, HOUR, MINUTE, NOW, keep, kept, sent_decisions
from tests.support.oracle import ALL_FIELDS, Prices, assert_agree, expect, fact
from tests.support.windows import cells_in

# Mostly where windows begin and end; some in the future, some before all windows.
offsets = st.one_of(
    st.sampled_from([1, 0, -1, -4, -5, -6, -59, -60, -61]).map(lambda minutes: minutes * MINUTE),
    st.sampled_from([-1, -2, -23, -24, -25, -167, -168, -169]).map(lambda hours: hours * HOUR),
    st.integers(-8 * DAY, DAY),
    st.just(-40 * DAY),
)
groups = st.lists(st.lists(sent_decisions(offsets), min_size=1, max_size=6), max_size=5)
filters = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.just(frozenset({"hybrid", "cost"})),
        "provider": st.just(frozenset({"gemini", "claude"})),
    },
)


@settings(max_examples=25)
@given(sent=groups, now=st.integers(NOW - HOUR, NOW + HOUR), filters=filters)
def test_every_window_equals_a_count(
    databases: Databases, sent: list[list[dict[str, Any]]], now: int, filters: Any
) -> None:
    """Each field, the rate and percentiles are right, also for unfolded commits."""

    async def check() -> None:
        store = databases.create()()
        await store.open()
        facts = []
        for number, group in enumerate(sent):
            timed = [
                {**one, "timestamp": rfc3339(max(0, NOW + one["timestamp"])), "id": f"{number}-{n}"}
                for n, one in enumerate(group)
            ]
            await store.commit([keep(timed, NOW)], NOW)
            facts += [fact(one, NOW) for one in timed]
        position = await store.position()
        for window in WINDOWS:
            view = View(fields=FIELDS, window=window, **filters)
            found = await store.window(query_of(view), now)
            assert found.position == position
            assert found.still
            moment = found.document_time(now + DAY)
            document = render(found, view, moment, Baseline("big", 3 * 10**9, 15 * 10**9))
            expected = expect(
                facts,
                now=now,
                fields=ALL_FIELDS,
                filters=filters,
                window=window,
                baseline=Prices("big", 3, 15),
            )
            assert_agree(document, expected)
        await store.close()

    asyncio.run(check())


async def test_nothing_that_was_not_asked_for_is_read(store: Store) -> None:
    """Histograms and minutes are only read for views that need them."""
    await store.commit([[kept(1)]], NOW)
    await fold(store)
    found = await store.window(query_of(View(window="5m")), NOW)
    (sums,) = found.total.values()
    assert sums.count == 1
    assert not found.minutes
    assert not found.covers("1h", NOW)
    with pytest.raises(NotHeld):
        found.minute(NOW // MINUTE - 1)


async def test_window_whose_minutes_are_gone_is_uncovered(store: Store) -> None:
    """Its sums would lack dropped minutes."""
    await store.commit([[kept(n, decided=NOW - n * HOUR) for n in range(30)]], NOW)
    while await store.prune(decisions_before=0, minutes_before=NOW - 2 * HOUR, limit=100):
        pass
    assert await store.window(query_of(View(window="1h")), NOW)
    with pytest.raises(NotHeld):
        await store.window(query_of(View(window="24h")), NOW)


async def fold(store: Store) -> None:
    """Fold all commits into the rollups."""
    for number in range(3):
        await store.commit([[kept(0, id=f"last-{number}", decided=NOW - 40 * DAY)]], NOW)
    for _ in range(200):  # a store may fold in steps
        await store.prune(decisions_before=0, minutes_before=0, limit=1)


# -- loading within a room ----------------------------------------------------------------------


def many() -> list[Any]:
    """Return decisions of 40 keys in each of the last days, hours and minutes."""
    ago = [*range(0, 8 * MINUTE, MINUTE), 50 * MINUTE, 5 * HOUR, DAY - MINUTE, 7 * DAY - MINUTE]
    return [
        kept(number, id=f"{number}-{at}", model=f"m{number}", decided=NOW - at)
        for number in range(40)
        for at in ago
    ]


async def test_load_takes_no_more_than_the_room(store: Store) -> None:
    """The shortest windows come first; each covered window and the total are complete."""
    await store.commit([many()], NOW)
    await fold(store)
    whole = await store.load(NOW)
    assert whole.covered == BOUNDED
    seen = set()
    for cells in (0, 40, 60, 80, 90, 100, 120, 160, 200, 1000):
        room = cells * CELL_BYTES
        found = await store.load(NOW, room)
        assert found.position == whole.position
        assert found.size <= max(room, len(found.total) * CELL_BYTES)
        assert found.total == whole.total
        for window in BOUNDED:
            if found.covers(window, NOW):
                assert cells_in(found, window, NOW) == cells_in(whole, window, NOW)
        seen.add(found.covered)
    assert {(), BOUNDED} < seen


async def test_load_reads_no_rows_that_it_has_no_room_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start uses no more memory than its room, with any number of rows."""
    await store.commit([many()], NOW)
    await fold(store)
    largest = 0
    add = loading.Loader.add

    def measured(loader: loading.Loader, period: str, rows: Any) -> bool:
        nonlocal largest
        more = add(loader, period, rows)
        largest = max(largest, loader._snapshot.size)
        return more

    monkeypatch.setattr(loading.Loader, "add", measured)
    monkeypatch.setattr("routecast.adapters.store.sqlite.rollups.LOAD_ROWS", 8)
    monkeypatch.setattr("routecast.adapters.store.postgres.connection.CHUNK_ROWS", 8)
    room = 80 * CELL_BYTES
    await store.load(NOW, room)
    assert 0 < largest <= room


async def test_period_that_takes_long_to_read_is_not_held(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacking it would block all tasks, so the database answers its windows."""
    monkeypatch.setattr(loading, "MAX_PERIOD_CELLS", 39)
    await store.commit([many()], NOW)
    await fold(store)
    found: Snapshot = await store.load(NOW)
    assert found.covered == ()
