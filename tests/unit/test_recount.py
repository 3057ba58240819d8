"""Recounting: whatever was changed by hand is found, and said in words."""

from pathlib import Path

import apsw
import pytest

from routecast.ports import Difference
from routecast.store.sqlite import SqliteStore
from tests.support.decisions import DAY, HOUR, NOW, kept
from tests.support.summaries import sum_up


@pytest.fixture
async def filled(store: SqliteStore) -> SqliteStore:
    """A store with decisions, of which the older are pruned, and some of an hour also pruned."""
    await store.commit([[kept(1, decided=NOW - DAY), kept(2)]], NOW - HOUR)
    await store.commit([[kept(3), kept(4, decided=NOW - 2 * HOUR, model="")]], NOW)
    assert await store.prune(decisions_before=NOW, minutes_before=NOW - DAY + HOUR, limit=10) == 3
    assert await found(store) == []
    return store


async def found(store: SqliteStore) -> list[Difference]:
    return [one async for one in store.verify() if isinstance(one, Difference)]


async def fold(store: SqliteStore) -> None:
    """Have everything in the rollups, as retention does before it drops anything."""
    await store.prune(decisions_before=0, minutes_before=0, limit=1)


def change(store: SqliteStore, statement: str) -> None:
    other = apsw.Connection(str(store.path))
    other.execute(statement)
    assert other.total_changes() >= 1
    other.close()


@pytest.mark.parametrize("column", ["count", "cost_sum", "confidence_count", "metered_output"])
@pytest.mark.parametrize("period", ["minute", "hour", "total", "pruned"])
async def test_changed_sum_is_found(filled: SqliteStore, period: str, column: str) -> None:
    """In each period; the difference names the sum, and only that one."""
    change(filled, f"UPDATE rollups SET {column} = {column} + 1 WHERE period = '{period}'")
    differences = await found(filled)
    assert differences
    for one in differences:
        assert one.expected.startswith(f"{column} ")
        assert one.found.startswith(f"{column} ")
        assert one.expected != one.found
        assert "," not in one.found


@pytest.mark.parametrize("bins", ["x'8103cc02'", "x''", "x'c1'", "x'ff00'"])
@pytest.mark.parametrize("period", ["minute", "hour", "total", "pruned"])
async def test_changed_histogram_is_found(filled: SqliteStore, period: str, bins: str) -> None:
    """Be it another one, none, or bytes that are no histogram at all."""
    change(filled, f"UPDATE rollups SET latency_bins = {bins} WHERE period = '{period}'")
    differences = await found(filled)
    assert differences
    assert all("latency_bins" in one.found for one in differences)


@pytest.mark.parametrize("period", ["minute", "hour", "total", "pruned"])
async def test_missing_rollup_is_found(filled: SqliteStore, period: str) -> None:
    """Sums that should be there are expected, and nothing is found; or the other way round."""
    change(filled, f"DELETE FROM rollups WHERE period = '{period}'")
    differences = await found(filled)
    assert differences
    assert {"nothing"} & {text for one in differences for text in (one.expected, one.found)}


@pytest.mark.parametrize("period", ["minute", "hour", "total"])
async def test_rollup_of_nothing_is_found(filled: SqliteStore, period: str) -> None:
    """Sums where there are no decisions, as of an hour nobody knows of."""
    start = 0 if period == "total" else NOW // 10**6 // 3600 * 3600 + 3 * 3600
    change(
        filled,
        "INSERT INTO rollups SELECT period, "
        f"{start}, (SELECT max(id) + 1 FROM series), count, fallbacks, confidence_count, "
        "confidence_sum, cost_count, cost_sum, latency_count, latency_sum, input_tokens, "
        "output_tokens, metered_cost, metered_input, metered_output, latency_bins "
        f"FROM rollups WHERE period = '{period}' LIMIT 1",
    )
    assert any(one.expected == "nothing" and "count" in one.found for one in await found(filled))


@pytest.mark.parametrize(
    ("statement", "column"),
    [
        ("UPDATE decisions SET cost = cost + 1 WHERE id = 'd3'", "cost_sum"),
        ("UPDATE decisions SET cost = NULL WHERE id = 'd3'", "cost_count"),
        ("UPDATE decisions SET latency = 5 WHERE id = 'd3'", "latency_bins"),
        ("UPDATE decisions SET fallback = 1 WHERE id = 'd3'", "fallbacks"),
        ("UPDATE decisions SET output_tokens = 21 WHERE id = 'd3'", "metered_output"),
        ("DELETE FROM decisions WHERE id = 'd3'", "count"),
        ("UPDATE decisions SET decided = decided + 3600000000 WHERE id = 'd3'", "count"),
    ],
)
async def test_changed_decision_is_found(filled: SqliteStore, statement: str, column: str) -> None:
    """The rollups are right, and the decision is not: they differ all the same."""
    change(filled, statement)
    differences = await found(filled)
    assert any(column in one.expected + one.found for one in differences)


async def test_change_of_an_hour_and_its_minutes_together_is_found(store: SqliteStore) -> None:
    """Rollups that agree among themselves and not with the decisions."""
    await store.commit([[kept(1)]], NOW)
    await fold(store)
    change(store, "UPDATE rollups SET fallbacks = fallbacks + 1")
    assert {one.what.split()[0] for one in await found(store)} == {"minute", "hour"}


async def test_changed_delta_is_found(store: SqliteStore) -> None:
    """What is not in the rollups yet is counted all the same; here twice, under another seq."""
    await store.commit([[kept(1)]], NOW)
    assert await found(store) == []
    change(store, "INSERT INTO deltas SELECT seq + 1, part, cells, largest, packed FROM deltas")
    differences = await found(store)
    assert {one.what.split()[0] for one in differences} == {"minute", "hour"}
    assert all(one.expected.startswith("count 1, ") for one in differences)
    assert all(one.found.startswith("count 2, ") for one in differences)


async def test_missing_delta_is_found(store: SqliteStore) -> None:
    """One that the rollups do not hold yet."""
    await store.commit([[kept(1)]], NOW)
    change(store, "DELETE FROM deltas")
    assert {one.what.split()[0] for one in await found(store)} == {"minute", "hour"}


async def test_changed_minute_of_an_hour_partly_pruned_is_found(filled: SqliteStore) -> None:
    """Its decisions cannot be counted any more, but minutes must add up to their hour."""
    hour = NOW // HOUR * 3600
    change(
        filled,
        f"UPDATE rollups SET count = 9 WHERE period = 'minute' AND start / 3600 * 3600 = {hour}",
    )
    (difference,) = await found(filled)
    assert difference.what.startswith("hour, from its minutes 2026-01-31T12:00Z ")
    assert (difference.expected, difference.found) == ("count 9", "count 2")


async def test_position_behind_its_decisions_is_found(filled: SqliteStore) -> None:
    """Deltas would be taken for known ones."""
    change(filled, "UPDATE history SET seq = seq - 1")
    assert await found(filled) == [Difference("position", "seq 2 or more", "seq 1")]


async def test_difference_says_when_and_what(store: SqliteStore, path: Path) -> None:
    """The period, its start, and the names; unknown ones as a dash."""
    assert store.path == path
    await store.commit([[kept(1, model="")]], NOW)
    await fold(store)
    change(store, "UPDATE rollups SET count = 7 WHERE period = 'total'")
    names = "default / hybrid / gemini / - / high / success"
    assert await found(store) == [Difference(f"total {names}", "count 1", "count 7")]
    change(store, "UPDATE rollups SET count = 7 WHERE period = 'minute'")
    assert (await found(store))[0] == Difference(
        f"minute 2026-01-31T12:34Z {names}", "count 1", "count 7"
    )


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE summaries SET count = count + 1 WHERE part = 'all'",
        "UPDATE summaries SET errors = errors + 1 WHERE part = 'status'",
        "UPDATE summaries SET cost_sum = 0 WHERE part = 'project'",
        "UPDATE latency_summaries SET counts = x'030001000000' WHERE part = 'model'",
        "UPDATE latency_summaries SET counts = x'01' WHERE part = 'provider'",
        "DELETE FROM latency_summaries WHERE part = 'all'",
        "UPDATE summaries SET name = 'other' WHERE part = 'strategy'",
        "UPDATE summaries SET start = start + 360000",
        "DELETE FROM summaries WHERE part = 'band'",
        "INSERT INTO summaries SELECT part, start, 'x', 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, "
        "0, 0, 0 FROM summaries WHERE part = 'provider'",
    ],
)
async def test_changed_summary_is_found(filled: SqliteStore, statement: str) -> None:
    """It is not what the rollups of its hour add up to; an hour to be summed again is not."""
    assert await sum_up(filled, NOW + HOUR) > 0
    assert await found(filled) == []
    change(filled, statement)
    differences = await found(filled)
    assert differences
    assert all(one.what.startswith("summary ") for one in differences)
    if "start =" not in statement:
        change(filled, "INSERT INTO unsummed_hours SELECT DISTINCT start, 1 FROM summaries")
        assert await found(filled) == []
