"""The contract of every store for retention, and for `verify` after it."""

from contextlib import aclosing
from typing import Any

from routecast.core.clock_check import KeptSpan
from routecast.core.decision import DecisionRecord
from routecast.ports import Checked, Difference, Store
from tests.support.decisions import DAY, HOUR, MINUTE, NOW, assert_sums, kept

# The stages that tell how many decisions are done.
STAGES = ("counting decisions", "comparing hours")


async def total(store: Store) -> dict[Any, Any]:
    return (await store.load(NOW)).total


async def differences(store: Store) -> list[Difference]:
    return [found async for found in store.verify() if isinstance(found, Difference)]


# -- retention ----------------------------------------------------------------------------------


async def prune(store: Store, *, decisions: int = 0, minutes: int = 0, limit: int = 1000) -> int:
    return await store.prune(decisions_before=decisions, minutes_before=minutes, limit=limit)


async def fill(store: Store) -> list[DecisionRecord]:
    """Commit ten decisions, received and decided a day apart."""
    decisions = [kept(n, decided=NOW + n * DAY) for n in range(10)]
    for decision in decisions:
        await store.commit([[decision]], decision.decided)
    return decisions


async def test_prune_drops_by_receipt_and_in_steps(store: Store) -> None:
    """The oldest are dropped first, at most `limit` in a call."""
    await fill(store)
    dropped = [await prune(store, decisions=NOW + 5 * DAY, limit=2) for _ in range(4)]
    assert dropped == [2, 2, 1, 0]


async def test_span_is_that_of_what_is_kept(store: Store) -> None:
    """Its start moves as decisions and minutes are dropped; without any it is None."""
    assert await store.span() == KeptSpan(None, None, None)
    decisions = await fill(store)
    while await prune(store, decisions=NOW + 5 * DAY, minutes=decisions[3].decided):
        pass
    minutes = [decision.decided // MINUTE * MINUTE for decision in decisions]
    assert await store.span() == KeptSpan(NOW + 5 * DAY, NOW + 9 * DAY, minutes[3])
    while await prune(store, decisions=NOW + 99 * DAY):
        pass
    assert await store.span() == KeptSpan(None, None, minutes[3])


async def test_prune_changes_no_total(store: Store) -> None:
    """Hours and the position stay, too, and the remaining decisions add up."""
    decisions = await fill(store)
    now = NOW + 9 * DAY
    before = await store.load(now)
    while await prune(store, decisions=NOW + 7 * DAY, minutes=NOW + 7 * DAY, limit=3):
        assert await differences(store) == []
    after = await store.load(now)
    assert_sums(after.total, decisions)
    assert after.position == before.position
    assert after.hours == before.hours
    assert await differences(store) == []


async def test_id_is_known_as_long_as_its_decision_is_kept(store: Store) -> None:
    """Afterwards it counts again."""
    decisions = await fill(store)
    await prune(store, decisions=NOW + 3 * DAY)
    assert (await store.commit([decisions], NOW + 10 * DAY)).inserted == [3]
    assert_sums(await total(store), [*decisions, *decisions[:3]])
    assert await differences(store) == []


async def test_prune_goes_by_receipt_not_by_what_a_decision_says(store: Store) -> None:
    """A decision with an old time is kept as long as any other."""
    await store.commit([[kept(1, decided=NOW - 400 * DAY)]], NOW)
    assert await prune(store, decisions=NOW) == 0
    assert (await store.commit([[kept(1)]], NOW)).inserted == [0]
    assert await prune(store, decisions=NOW + 1) == 1


async def test_prune_drops_minutes_of_hours_that_are_over(store: Store) -> None:
    """It drops minutes before the hour of the given moment."""
    hour = NOW // HOUR * HOUR
    decisions = [kept(n, decided=hour - HOUR + n * 20 * MINUTE) for n in range(6)]
    await store.commit([decisions], NOW)
    assert await prune(store, minutes=hour + 59 * MINUTE) == 3
    assert await prune(store, minutes=hour + 59 * MINUTE) == 0
    left = await store.load(hour + HOUR)
    assert set(left.minutes) == {d.decided // MINUTE for d in decisions[3:]}
    assert_sums(left.total, decisions)
    assert set(left.hours) == {hour // HOUR - 1, hour // HOUR}
    assert await differences(store) == []


async def test_prune_keeps_to_its_limit_with_minutes_too(store: Store) -> None:
    """An hour with many rollups is dropped in steps, and is right after each."""
    hour = NOW // HOUR * HOUR
    decisions = [kept(n, strategy=f"s{n}", decided=hour - HOUR) for n in range(7)]
    await store.commit([decisions], NOW)
    dropped: list[int] = []
    while not dropped or dropped[-1]:
        dropped.append(await prune(store, decisions=NOW - DAY, minutes=hour, limit=3))
        assert await differences(store) == []
    assert dropped == [3, 3, 1, 0]
    assert_sums(await total(store), decisions)


async def test_late_decision_counts_where_minutes_are_gone(store: Store) -> None:
    """Its hour and the total have it, and dropped minutes do not return."""
    hour = NOW // HOUR * HOUR
    late = kept(2, decided=hour - HOUR + 1)
    await store.commit([[kept(1, decided=hour - HOUR)]], NOW)
    assert await prune(store, decisions=NOW + 1, minutes=hour) == 2
    await store.commit([[late]], NOW)
    found = await store.load(NOW)
    assert_sums(found.total, [kept(1), kept(2)])
    assert_sums(found.hours[late.decided // HOUR], [kept(1), kept(2)])
    assert_sums(found.minutes[late.decided // MINUTE], [kept(2)])
    assert await differences(store) == []


# -- verifying ----------------------------------------------------------------------------------


async def test_verify_reports_how_far_it_has_come(store: Store) -> None:
    """Progress goes from none to all decisions."""
    await fill(store)
    found = [step async for step in store.verify()]
    assert all(isinstance(step, Checked) for step in found)
    # Before that come the engine's own files, if it has a check of them.
    steps = [s for s in found if isinstance(s, Checked) and s.stage in STAGES]
    assert [step.of for step in steps] == [10] * len(steps)
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert (steps[0].done, steps[-1].done) == (0, 10)


async def test_verify_is_as_of_one_position(store: Store) -> None:
    """Commits and pruning during a check cause no difference."""
    await fill(store)
    found = []
    async for step in store.verify():
        found.append(step)
        await store.commit([[kept(100 + len(found), decided=NOW)]], NOW)
        await prune(store, decisions=NOW + DAY, minutes=NOW + 2 * DAY, limit=1)
    assert len(found) > 2
    assert [step for step in found if isinstance(step, Difference)] == []
    assert await differences(store) == []


async def test_verify_may_be_left_in_the_middle(store: Store) -> None:
    """The store can be used and closed afterwards."""
    await fill(store)
    async with aclosing(store.verify()) as steps:  # type: ignore[type-var]
        async for _ in steps:
            break
    assert (await store.commit([[kept(77)]], NOW)).inserted == [1]
    assert await differences(store) == []
