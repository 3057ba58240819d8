"""Time series: the series of an answer, their order, and those summed up in `other`."""

from typing import Any

import pytest

from routecast.core.histogram import add_bins, bin_of, pack_counts, percentiles
from routecast.core.history import Plan, history_query, plan
from routecast.core.periods import Periods
from routecast.core.snapshot import Snapshot
from routecast.core.time_series import (
    MAX_SERIES,
    Point,
    TimeSeries,
    render,
    series_from_snapshot,
    summaries,
)
from routecast.errors import NotHeld
from routecast.protocol import Position
from tests.support.buckets import FIELDS, assert_history
from tests.support.decisions import DAY, HOUR, MINUTE, NOW, cells_of, kept

POSITION = Position("e", 7)


def asked(length: int = HOUR, **more: Any) -> Plan:
    query = history_query(start=NOW - length, end=NOW, **{"fields": FIELDS, **more})
    return plan(query, NOW)


def past(wanted: Plan, decisions: list[Any]) -> TimeSeries:
    found = TimeSeries(POSITION)
    for minute, cells in cells_of(decisions).minutes.items():
        found.add(wanted, 60 * minute, cells)
    return found


def test_the_document_is_that_of_the_contract() -> None:
    """Keys have a fixed order, an average of nothing is null, and no bucket is missing."""
    wanted = asked(4 * MINUTE, points=3, fields=["count", "cost"])
    decisions = [kept(1, decided=NOW - 4 * MINUTE), kept(2, cost=None)]
    assert render(past(wanted, decisions), wanted).document() == {
        "position": POSITION,
        "step": 120,
        "from": "2026-01-31T12:30:00.000000+00:00",
        "points": 3,
        "series": [{"key": "all", "count": [1, 0, 1], "cost": [0.0023, None, None]}],
    }


def test_largest_series_come_first() -> None:
    """Equal ones come by name; series that were sent before keep their place."""
    decisions = [kept(n, strategy=name) for n, name in enumerate("bcaac")]
    wanted = asked(group_by="strategy")
    found = past(wanted, decisions)
    assert render(found, wanted).names == ("a", "c", "b")
    assert render(found, wanted, ["z", "b"]).names == ("z", "b", "a", "c")
    assert [one["key"] for one in render(found, wanted, ["z"]).series] == ["z", "a", "c", "b"]


@pytest.mark.parametrize("fields", [FIELDS, ("count",), ("p50_latency_ms",)])
def test_the_smallest_series_are_merged_into_other(fields: tuple[str, ...]) -> None:
    """`MAX_SERIES` have their own series, and the sums of all others are in `other`."""
    decisions = [
        kept(100 * n + m, strategy=f"s{n:02}", latency=1000 * m, decided=NOW - m * MINUTE)
        for n in range(MAX_SERIES + 5)
        for m in range(n)
    ]
    wanted = asked(group_by="strategy", fields=fields)
    answer = render(past(wanted, decisions), wanted)
    named = [f"s{n:02}" for n in reversed(range(5, MAX_SERIES + 5))]
    assert [one["key"] for one in answer.series] == [*named, "other"]
    folded = [one if one.strategy in named else one._replace(strategy="other") for one in decisions]
    assert_history(answer.document(), folded, group_by="strategy", fields=fields)


def test_a_strategy_may_be_called_other() -> None:
    """The smallest series are then counted with it."""
    decisions = [kept(n, strategy=f"s{n:02}") for n in range(MAX_SERIES + 2)]
    decisions += [kept(100 + n, strategy="other") for n in range(3)]
    wanted = asked(group_by="strategy", fields=["count"])
    answer = render(past(wanted, decisions), wanted)
    keys = [one["key"] for one in answer.series]
    assert keys.count("other") == 1
    counts = {one["key"]: sum(one["count"]) for one in answer.series}
    assert counts["other"] == 2 + 3
    assert sum(counts.values()) == len(decisions)


def test_names_counted_as_other_come_last() -> None:
    """`other` is last although it is large and there is room; updates keep that order."""
    decisions = [kept(n, strategy="other") for n in range(5)]
    decisions += [kept(10, strategy="small"), kept(11, strategy="less"), kept(12, strategy="small")]
    wanted = asked(group_by="strategy", fields=["count"])
    answer = render(past(wanted, decisions), wanted)
    assert [one["key"] for one in answer.series] == ["small", "less", "other"]
    assert answer.names == ("small", "less")
    more = [*decisions, kept(13, strategy="new")]
    again = render(past(wanted, more), wanted, answer.names)
    assert [one["key"] for one in again.series] == ["small", "less", "new", "other"]


def test_a_snapshot_answers_for_the_periods_it_holds() -> None:
    """It holds recent minutes, and the hours of a week; for others it raises `NotHeld`."""
    decisions = [kept(n, decided=NOW - n * 7 * MINUTE) for n in range(20)]
    cells = cells_of(decisions)
    held = Snapshot(POSITION, NOW, cells.total(), cells.hours(), cells.minutes)
    for length, points in ((HOUR // 2, 100), (50 * HOUR, 100)):
        wanted = asked(length, points=points)
        found = render(series_from_snapshot(held, wanted), wanted)
        assert_history(found.document(), decisions)
        assert found.position == POSITION
    for length, points in ((3 * HOUR, 300), (8 * DAY, 300), (8 * DAY, 5)):
        with pytest.raises(NotHeld):
            series_from_snapshot(held, asked(length, points=points))


def test_periods_dropped_for_memory_are_not_empty() -> None:
    """The database answers for them, as for periods that were never held."""
    decisions = [kept(n, decided=NOW - n * 7 * MINUTE) for n in range(20)]
    cells = cells_of(decisions)
    held = Snapshot(POSITION, NOW, cells.total(), cells.hours(), cells.minutes)
    held.cover(("5m", "1h"))
    recent = asked(HOUR // 2, points=100)
    assert_history(render(series_from_snapshot(held, recent), recent).document(), decisions)
    with pytest.raises(NotHeld):
        series_from_snapshot(held, asked(50 * HOUR, points=100))
    held.cover(())
    with pytest.raises(NotHeld):
        series_from_snapshot(held, recent)


def test_large_period_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking it would block other tasks."""
    cells = cells_of([kept(n, strategy=f"s{n}", decided=NOW) for n in range(5000)])
    loaded = Snapshot(POSITION, NOW, cells.total(), cells.hours(), cells.minutes)
    held = Snapshot.unpack(loaded.pack())
    monkeypatch.setattr(Periods, "_open", None)
    with pytest.raises(NotHeld):
        series_from_snapshot(held, asked(MINUTE))


@pytest.mark.parametrize("fields", [["count"], ["p50_latency_ms"]])
def test_the_work_of_a_snapshot_is_limited(fields: list[str]) -> None:
    """The database does more work, in a thread."""
    decisions = [
        kept(n, strategy=f"s{n % 1000}", decided=NOW - n // 1000 * MINUTE) for n in range(5000)
    ]
    cells = cells_of(decisions)
    held = Snapshot(POSITION, NOW, cells.total(), cells.hours(), cells.minutes)
    few = {"count": 3, "p50_latency_ms": 0}[fields[0]]
    assert series_from_snapshot(
        held, asked(few * MINUTE, fields=fields) if few else asked(1, fields=["count"])
    )
    with pytest.raises(NotHeld):
        series_from_snapshot(held, asked((few + 1) * MINUTE, fields=fields))


def test_summaries_are_the_sums_of_an_hour_along_each_part() -> None:
    """Each decision counts once for each part."""
    decisions = [
        kept(n, strategy="ab"[n % 2], status=("error", "success", "success")[n % 3])
        for n in range(12)
    ]
    (cells,) = cells_of(decisions).hours().values()
    found = summaries(cells)
    assert {place: (point.count, point.errors) for place, point in found.items()} == {
        ("all", "all"): (12, 4),
        ("project", "default"): (12, 4),
        ("strategy", "a"): (6, 2),
        ("strategy", "b"): (6, 2),
        ("provider", "gemini"): (12, 4),
        ("model", "flash"): (12, 4),
        ("band", "high"): (12, 4),
        ("status", "error"): (4, 4),
        ("status", "success"): (8, 0),
    }


@pytest.mark.parametrize("more", [1, 2**16, 2**32], ids=["few", "many", "very many"])
def test_histograms_of_summaries_and_of_rollups_add_up(more: int) -> None:
    """This holds for all packed forms, and for any counts."""
    bins: dict[int, int] = {}
    united, parts = Point(), [Point(), Point()]
    for number in range(100):
        part, counted = parts[number % 2], {bin_of(number**3): more if number % 7 == 0 else 1}
        add_bins(bins, counted)
        part.latency_count += sum(counted.values())
        if number % 3:
            part.add_counts(pack_counts(counted))
        else:
            add_bins(part.latency_bins, counted)
    for part in parts:
        united.unite(part)
    percents = (1, 10, 50, 95, 99, 100)
    assert list(united.percentiles(percents)) == percentiles(bins, percents)
