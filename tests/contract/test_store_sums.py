"""The contract of every store for sums that do not fit into 64 bits."""

from collections.abc import Callable
from typing import Any

import pytest

from routecast.adapters.store.postgres import commit
from routecast.adapters.store.sqlite.totals import SqliteTotals
from routecast.core.history import GROUPS, history_query, plan
from routecast.core.overflow import LARGEST_SUM
from routecast.core.time_series import render
from routecast.ports import MAX_GROUP, Commit, Difference, Store
from tests.contract.conftest import Connect
from tests.support.decisions import DAY, HOUR, NOW, assert_sums, kept
from tests.support.summaries import sum_up

HALF = 2**62


async def differences(store: Store) -> list[Difference]:
    return [found async for found in store.verify() if isinstance(found, Difference)]


async def fold(store: Store) -> None:
    await store.prune(decisions_before=0, minutes_before=0, limit=1)


# -- sums over series ---------------------------------------------------------------------------

# Each series of it has room; all of them together need 66 bits, in an hour that is over.
WIDE = [kept(n, strategy=f"s{n}", cost=LARGEST_SUM - n, decided=NOW - 3 * HOUR) for n in range(5)]


@pytest.mark.parametrize("step", [60, 3600], ids=["minutes", "hours"])
@pytest.mark.parametrize("state", ["unfolded", "folded", "summed"])
@pytest.mark.parametrize("group_by", [None, GROUPS[0], GROUPS[1]])
async def test_sums_over_series_are_exact_beyond_64_bits(
    store: Store, state: str, group_by: str | None, step: int
) -> None:
    """History from rollups and from summaries agrees with totals and `verify`."""
    await store.commit([WIDE], NOW)
    if state != "unfolded":
        await fold(store)
    if state == "summed":
        assert await sum_up(store, NOW) == 1
    query = history_query(
        start=NOW - DAY, end=NOW, fields=("cost", "avg_latency_ms"), group_by=group_by
    )
    wanted = plan(query, NOW, least_step=step)
    past = await store.history(wanted)
    points = [point for series in past.points.values() for point in series.values()]
    assert sum(point.cost_sum for point in points) == sum(one.cost or 0 for one in WIDE)
    assert sum(point.latency_sum for point in points) == sum(one.latency or 0 for one in WIDE)
    assert len(points) == (5 if group_by == "strategy" else 1)
    assert render(past, wanted).document()["series"]
    assert_sums((await store.load(NOW)).total, WIDE)
    assert await differences(store) == []


# -- a series at its limit ----------------------------------------------------------------------


def tell(commit: Commit) -> tuple[list[int], int, dict[tuple[str, str], str], bool]:
    return commit.inserted, commit.position.seq, commit.full, commit.delta is not None


@pytest.mark.parametrize("folded", [False, True], ids=["unfolded", "folded"])
async def test_full_series_refuses_only_what_does_not_fit(store: Store, folded: bool) -> None:
    """Decisions are rejected in the order they were sent, and again when sent again."""
    await store.commit([[kept(0, cost=HALF)]], NOW)
    if folded:
        await fold(store)
    sent = [
        [kept(9), kept(8, cost=HALF), kept(7, strategy="other", cost=HALF)],
        [kept(6, cost=LARGEST_SUM - HALF - kept(9).cost), kept(5, cost=1), kept(4, cost=None)],
    ]
    full = {("d8", "default"): "cost", ("d5", "default"): "cost"}
    assert tell(await store.commit(sent, NOW)) == ([2, 2], 2, full, True)
    counted = [
        kept(0, cost=HALF),
        *(one for batch in sent for one in batch if one.id not in "d8d5"),
    ]
    for _ in range(2):
        assert_sums((await store.load(NOW)).total, counted)
        assert tell(await store.commit(sent, NOW)) == ([0, 0], 2, full, False)
        assert await differences(store) == []
        await fold(store)
    assert (await store.commit([[kept(8, cost=None)]], NOW)).inserted == [1]


@pytest.mark.parametrize(("column", "field"), [("cost", "cost"), ("latency", "latency_ms")])
async def test_field_is_named_as_on_the_wire(store: Store, column: str, field: str) -> None:
    """This holds for each sum that may be full."""
    done = await store.commit([[kept(n, **{column: HALF}) for n in range(3)]], NOW)
    assert done.inserted == [1]
    assert done.full == {("d1", "default"): field, ("d2", "default"): field}
    assert await differences(store) == []


async def test_batch_that_is_more_than_64_bits_by_itself(store: Store) -> None:
    """The decisions that fit are kept, also if a delta could not hold the sum."""
    sent = [kept(n, cost=LARGEST_SUM - n, decided=NOW - n * 60 * 10**6) for n in range(9)]
    done = await store.commit([sent, [kept(8, cost=0)]], NOW)
    assert (done.inserted, set(done.full)) == ([1, 0], {(f"d{n}", "default") for n in range(1, 9)})
    assert_sums((await store.load(NOW)).total, sent[:1])
    assert await differences(store) == []


async def test_two_stores_fill_one_series(connect: Connect) -> None:
    """A store reads what the other added before it rejects."""
    stores = [connect(), connect()]
    for store in stores:
        await store.open()
    most = LARGEST_SUM // 10
    kept_of = [
        sum((await stores[n % 2].commit([[kept(n, cost=most)]], NOW)).inserted) for n in range(14)
    ]
    assert kept_of == [1] * 10 + [0] * 4
    assert_sums((await stores[0].load(NOW)).total, [kept(n, cost=most) for n in range(10)])
    assert await differences(stores[1]) == []
    for store in stores:
        await store.close()


@pytest.mark.parametrize("folded", [False, True], ids=["unfolded", "folded"])
async def test_large_batch_leaves_out_what_has_no_room(store: Store, folded: bool) -> None:
    """The decisions that fit are kept, and known ids are duplicates."""
    before = [kept(0, cost=LARGEST_SUM - 10), kept(1, strategy="other")]
    await store.commit([before], NOW)
    if folded:
        await fold(store)
    filling = [kept(n, cost=1) for n in range(20)]
    others = [kept(n, strategy="other") for n in range(20, MAX_GROUP + 20)]
    for _ in range(2):
        done = await store.commit([filling[:15], filling[15:] + others], NOW)
        assert done.full == {(f"d{n}", "default"): "cost" for n in range(12, 20)}
    assert done.inserted == [0, 0]
    assert_sums((await store.load(NOW)).total, [*before, *filling[2:12], *others])
    assert await differences(store) == []


async def test_large_batch_that_fills_a_series_by_itself(store: Store) -> None:
    """Series that it does not fill lose no decision."""
    most = LARGEST_SUM // MAX_GROUP
    sent = [kept(n, cost=most) for n in range(MAX_GROUP + 5)]
    others = [kept(n, strategy="other", cost=most) for n in range(2_000, 2_020)]
    done = await store.commit([sent, others], NOW)
    assert done.inserted == [MAX_GROUP, 20]
    assert set(done.full) == {(f"d{n}", "default") for n in range(MAX_GROUP, MAX_GROUP + 5)}
    assert_sums((await store.load(NOW)).total, [*sent[:MAX_GROUP], *others])
    assert await differences(store) == []


async def test_other_series_do_not_pay_for_a_full_one(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a commit to a series near its limit reads exact sums."""
    store = connect()
    await store.open()
    await store.commit([[kept(0, cost=LARGEST_SUM)]], NOW)
    await fold(store)
    await store.commit([[kept(1, cost=1)]], NOW)  # whoever has to learn of it has
    looked: list[object] = []

    def note(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: looked.append(given) or real(*given)

    monkeypatch.setattr(SqliteTotals, "exact", note(SqliteTotals.exact))
    monkeypatch.setattr(commit, "_leave_out_full", note(commit._leave_out_full))
    for n in range(2, 12):
        await store.commit([[kept(n, strategy="other")]], NOW)
    assert not looked
    assert (await store.commit([[kept(99, cost=None)]], NOW)).inserted == [1]
    assert looked
    await store.close()
