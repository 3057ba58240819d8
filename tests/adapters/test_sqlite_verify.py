"""`verify` on SQLite: it finds each change made by hand, and describes it."""

import time
from pathlib import Path

import apsw
import pytest

from routecast.adapters.store.sqlite import SqliteStore
from routecast.ports import Difference
from tests.support.decisions import DAY, HOUR, NOW, kept
from tests.support.sqlite_pages import exchange_leaves
from tests.support.summaries import sum_up


@pytest.fixture
async def filled(store: SqliteStore) -> SqliteStore:
    """A store of which some minutes and decisions are pruned, also a part of an hour."""
    await store.commit([[kept(1, decided=NOW - DAY), kept(2)]], NOW - HOUR)
    await store.commit([[kept(3), kept(4, decided=NOW - 2 * HOUR, model="")]], NOW)
    assert await store.prune(decisions_before=NOW, minutes_before=NOW - DAY + HOUR, limit=10) == 3
    assert await found(store) == []
    return store


async def found(store: SqliteStore) -> list[Difference]:
    return [one async for one in store.verify() if isinstance(one, Difference)]


async def fold(store: SqliteStore) -> None:
    """Move all deltas into the rollups, as retention does first."""
    await store.prune(decisions_before=0, minutes_before=0, limit=1)


def change(store: SqliteStore, statement: str) -> None:
    other = apsw.Connection(str(store.path))
    other.execute(statement)
    assert other.total_changes() >= 1
    other.close()


@pytest.mark.parametrize("column", ["count", "cost_sum", "confidence_count", "metered_output"])
@pytest.mark.parametrize("period", ["minute", "hour", "total", "pruned"])
async def test_changed_sum_is_found(filled: SqliteStore, period: str, column: str) -> None:
    """In each period, the difference has the name of this sum only."""
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
    """The bytes are another histogram, an empty one, or none at all."""
    change(filled, f"UPDATE rollups SET latency_bins = {bins} WHERE period = '{period}'")
    differences = await found(filled)
    assert differences
    assert all("latency_bins" in one.found for one in differences)


@pytest.mark.parametrize("period", ["minute", "hour", "total", "pruned"])
async def test_missing_rollup_is_found(filled: SqliteStore, period: str) -> None:
    """The sums of this period or of another one are missing."""
    change(filled, f"DELETE FROM rollups WHERE period = '{period}'")
    differences = await found(filled)
    assert differences
    assert {"nothing"} & {text for one in differences for text in (one.expected, one.found)}


@pytest.mark.parametrize("period", ["minute", "hour", "total"])
async def test_rollup_of_nothing_is_found(filled: SqliteStore, period: str) -> None:
    """It has sums of an hour without decisions."""
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
    """The rollups are right and the decision is wrong, so they differ."""
    change(filled, statement)
    differences = await found(filled)
    assert any(column in one.expected + one.found for one in differences)


async def test_change_of_an_hour_and_its_minutes_together_is_found(store: SqliteStore) -> None:
    """The rollups agree with each other, and not with the decisions."""
    await store.commit([[kept(1)]], NOW)
    await fold(store)
    change(store, "UPDATE rollups SET fallbacks = fallbacks + 1")
    assert {one.what.split()[0] for one in await found(store)} == {"minute", "hour"}


async def test_changed_delta_is_found(store: SqliteStore) -> None:
    """Deltas that are not folded count, too; here one counts twice, under another seq."""
    await store.commit([[kept(1)]], NOW)
    assert await found(store) == []
    change(store, "INSERT INTO deltas SELECT seq + 1, part, cells, largest, packed FROM deltas")
    first, *differences = await found(store)
    assert first == Difference("position", "seq 2 or more", "seq 1")
    assert {one.what.split()[0] for one in differences} == {"minute", "hour"}
    assert all(one.expected.startswith("count 1, ") for one in differences)
    assert all(one.found.startswith("count 2, ") for one in differences)


async def test_missing_delta_is_found(store: SqliteStore) -> None:
    """The rollups do not include it yet."""
    await store.commit([[kept(1)]], NOW)
    change(store, "DELETE FROM deltas")
    first, *differences = await found(store)
    assert first == Difference("deltas", "up to seq 1", "up to seq 0")
    assert {one.what.split()[0] for one in differences} == {"minute", "hour"}


async def test_changed_minute_of_a_partly_pruned_hour_is_found(filled: SqliteStore) -> None:
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
    """Nodes would ignore new deltas as known ones."""
    change(filled, "UPDATE history SET seq = seq - 1")
    assert await found(filled) == [
        Difference("position", "seq 2 or more", "seq 1"),
        Difference("rollups", "of seq 1 at most", "of seq 2"),
    ]


async def test_difference_has_period_time_and_names(store: SqliteStore, path: Path) -> None:
    """An unknown name is a dash."""
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
    """It differs from the rollups of its hour; an hour to be summed again does not count."""
    assert await sum_up(filled, NOW + HOUR) > 0
    assert await found(filled) == []
    change(filled, statement)
    differences = await found(filled)
    assert differences
    assert all(one.what.startswith("summary ") for one in differences)
    if "start =" not in statement:
        change(filled, "INSERT INTO unsummed_hours SELECT DISTINCT start, 1 FROM summaries")
        assert await found(filled) == []


# -- rows without a sum ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        (
            "INSERT INTO summaries SELECT 'provider', start + 36000, name, errors, 777, fallbacks, "
            "confidence_count, confidence_sum, cost_count, cost_sum, latency_count, latency_sum, "
            "input_tokens, output_tokens, 0, 0, 0, 0, 0 FROM summaries WHERE part = 'provider'",
            "summary 2026-",
        ),
        (
            "UPDATE summaries SET part = 'colour' WHERE part = 'band'",
            "summary rows of an unknown part",
        ),
        (
            "INSERT INTO latency_summaries SELECT part, start + 36000, name, counts "
            "FROM latency_summaries",
            "summary histograms of no summary",
        ),
        ("UPDATE deltas SET packed = substr(packed, 1, 20)", "delta of seq 1"),
        ("UPDATE deltas SET packed = x''", "delta of seq 2"),
        (
            "UPDATE decisions SET project = 'mine' WHERE id = 'd3'",
            "decisions of a project other than that of their series",
        ),
        ("UPDATE history SET seq = seq - 1", "position"),
        ("UPDATE history SET folded = folded + 1", "rollups"),
        (
            "UPDATE decisions SET seq = 0 WHERE n = (SELECT max(n) FROM decisions)",
            "decisions received in another order",
        ),
        (
            "PRAGMA foreign_keys = 0; DELETE FROM series; SELECT 1",
            "decisions of a series that is not there",
        ),
    ],
)
async def test_damage_outside_sums_is_found(filled: SqliteStore, statement: str, what: str) -> None:
    """The damage is in rows that are compared with no others, or in unreadable bytes."""
    assert await sum_up(filled, NOW + HOUR) > 0
    change(filled, statement)
    assert any(one.what.startswith(what) for one in await found(filled))


async def test_minutes_that_were_dropped_too_early_are_found(store: SqliteStore) -> None:
    """Retention keeps them for at least eight days with any setting."""
    now = time.time_ns() // 1000
    await store.commit([[kept(n, decided=now - n * HOUR) for n in range(20)]], now)
    await fold(store)
    assert await found(store) == []
    start = (now - 10 * HOUR) // HOUR * 3600
    change(store, f"UPDATE history SET minutes_from = {start}")
    change(store, f"DELETE FROM rollups WHERE period = 'minute' AND start < {start}")
    (one,) = await found(store)
    assert (one.what, one.expected) == ("minutes", "those of the last 8 days")


async def test_decision_moved_within_a_partly_pruned_hour_is_found(
    store: SqliteStore,
) -> None:
    """The hour's sums are equal, but the rollup of the new minute lacks it."""
    await store.commit([[kept(1), kept(2), kept(3)]], NOW)
    assert await store.prune(decisions_before=NOW + 1, minutes_before=0, limit=1) == 1
    assert await found(store) == []
    change(store, "UPDATE decisions SET decided = decided + 60000000 WHERE id = 'd3'")
    (one,) = await found(store)
    assert one.what.startswith("minute 2026-01-31T12:35Z ")
    assert one.found == "nothing"


# -- the file itself ------------------------------------------------------------------------------


async def test_index_that_lacks_an_entry_is_found(store: SqliteStore) -> None:
    """All sums are right; only SQLite's own check, and a count by the index, show it."""
    await store.commit([[kept(n) for n in range(200)]], NOW)
    await fold(store)
    db = apsw.Connection(str(store.path))
    root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'decisions_id'").get
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    await store.close()
    with store.path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        page = bytearray(file.read(4096))
        assert page[0] in (2, 10)  # an inner page or a leaf of an index
        page[3:5] = (int.from_bytes(page[3:5]) - 1).to_bytes(2)
        file.seek((root - 1) * 4096)
        file.write(page)
    again = SqliteStore(store.path, create=False)
    await again.open()
    differences = await found(again)
    await again.close()
    assert any(one.what == "the database file" for one in differences)
    assert any(one.what == "the index of ids" for one in differences)


@pytest.mark.parametrize("name", ["decisions", "decisions_id", "rollups"])
async def test_leaf_pages_that_were_exchanged_are_found(store: SqliteStore, name: str) -> None:
    """No row is lost and each page is valid, but two pages have each other's place."""
    numbers = range(500)
    await store.commit([[kept(n, reason="r" * 200, strategy=f"s{n}") for n in numbers]], NOW)
    await fold(store)
    await store.close()
    exchange_leaves(store.path, name)
    again = SqliteStore(store.path, create=False)
    await again.open()
    differences = await found(again)
    await again.close()
    assert any(one.what == "the database file" for one in differences)


async def test_invalid_page_is_a_difference(store: SqliteStore) -> None:
    """`verify` reports it, and does not fail."""
    await store.commit([[kept(n, reason="r" * 200) for n in range(500)]], NOW)
    db = apsw.Connection(str(store.path))
    root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'decisions'").get
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    await store.close()
    with store.path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(bytes(4096))
    again = SqliteStore(store.path, create=False)
    await again.open()
    assert any(one.what == "the database file" for one in await found(again))
    await again.close()


async def test_it_says_what_it_cannot_find(store: SqliteStore) -> None:
    """Users must not expect more of it."""
    assert any("together with every sum" in what for what in store.unverifiable)
