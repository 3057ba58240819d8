"""Rollups: exact sums that can be merged in any order, and subtracted again."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.decision import VALUE_FIELDS, DecisionRecord, identity_of, values_of
from routecast.core.rollup import Cells, Key, PeriodCells, Sums, key_of, merge_cells
from tests.support.decisions import HOUR, MINUTE, NOW, assert_sums, cells_of, kept, kept_decisions

moments = st.integers(NOW - 3 * HOUR, NOW) | st.integers(0, 4_000_000_000 * 10**6)
decisions = st.lists(kept_decisions(st.just("id"), moments), max_size=12)


def bucket_of(some: Sequence[DecisionRecord]) -> PeriodCells:
    return cells_of(some).total()


def loaded_of(some: Sequence[DecisionRecord]) -> PeriodCells:
    """Return cells as a store gives them, with histograms that were not unpacked yet."""
    return {key: Sums.from_row(sums.row()) for key, sums in bucket_of(some).items()}


Made = Callable[[Sequence[DecisionRecord]], PeriodCells]


def merged(*periods: PeriodCells) -> PeriodCells:
    whole: PeriodCells = {}
    for cells in periods:
        merge_cells(whole, cells)
    return whole


def test_fields_are_read_by_their_names() -> None:
    """Slices of fields must not shift when a field is added between them."""
    decision = kept(1, model="opus", reason="cheap", project="counted", owner="sender")
    assert key_of(decision) == Key(*(getattr(decision, name) for name in Key._fields))
    assert values_of(decision) == tuple(getattr(decision, name) for name in VALUE_FIELDS)
    assert identity_of(decision) == (decision.id, decision.owner)
    assert set(DecisionRecord._fields) == {"id", "owner", "cost_sent", *Key._fields, *VALUE_FIELDS}


def test_methods_of_sums_leave_out_no_column() -> None:
    """Methods name all columns, for speed, so a new one must be added to each."""
    values = range(1, len(Sums.SCALARS) + 1)
    sums, zero = Sums(), Sums()
    for name, value in zip(Sums.SCALARS, values, strict=True):
        setattr(sums, name, value)
    assert sums.row() == (*values, b"")
    assert Sums.from_row(sums.row()) == sums.copy() == sums
    zero.merge_scalars(sums)
    assert zero == sums
    zero.subtract_scalars(sums)
    assert zero.row() == Sums().row() == (*[0] * len(values), b"")


@given(decisions)
def test_cells_are_the_sums_of_their_decisions(some: list[DecisionRecord]) -> None:
    """This holds for each minute, each hour and the total."""
    cells = cells_of(some)
    for periods, length in ((cells.minutes, MINUTE), (cells.hours(), HOUR)):
        assert set(periods) == {d.decided // length for d in some}
        for number, bucket in periods.items():
            assert_sums(bucket, [d for d in some if d.decided // length == number])
    assert_sums(cells.total(), some)


@given(decisions, decisions)
def test_counting_in_two_steps_equals_one(
    first: list[DecisionRecord], rest: list[DecisionRecord]
) -> None:
    """The batches of one commit are added to the same cells."""
    cells = Cells()
    cells.add(first)
    cells.add(iter(rest))
    assert cells == cells_of(first + rest)


@given(decisions, decisions, decisions)
def test_merge_is_commutative_and_associative(
    a: list[DecisionRecord], b: list[DecisionRecord], c: list[DecisionRecord]
) -> None:
    """Nodes and periods may add deltas in any order."""
    x, y, z = bucket_of(a), bucket_of(b), bucket_of(c)
    assert merged(x, y) == merged(y, x)
    assert merged(merged(x, y), z) == merged(x, merged(y, z))
    assert merged(x, y, z) == bucket_of(a + b + c)


def subtract(bucket: PeriodCells, cells: PeriodCells) -> None:
    """Subtract each key's sums from those of a period; keys without decisions are removed."""
    for key, sums in cells.items():
        bucket[key].subtract(sums)
        if not bucket[key].count:
            del bucket[key]


@given(decisions, decisions)
def test_subtract_undoes_merge(a: list[DecisionRecord], b: list[DecisionRecord]) -> None:
    """No key and no empty bin stay."""
    cells = merged(bucket_of(a), bucket_of(b))
    subtract(cells, bucket_of(b))
    assert cells == bucket_of(a)
    subtract(cells, bucket_of(a))
    assert cells == {}


@given(decisions, decisions)
def test_merging_does_not_change_what_is_merged(
    a: list[DecisionRecord], b: list[DecisionRecord]
) -> None:
    """A period never shares its sums with another one."""
    source = bucket_of(a)
    cells: PeriodCells = {}
    merge_cells(cells, source)
    merge_cells(cells, bucket_of(b))
    subtract(cells, source)
    assert source == bucket_of(a)


@given(decisions)
def test_sums_from_a_row_equal_those_before(some: list[DecisionRecord]) -> None:
    """This holds also if the histogram is never unpacked."""
    for sums in bucket_of(some).values():
        row = sums.row()
        assert len(row) == len(Sums.COLUMNS)
        assert [type(value) for value in row] == [int] * 13 + [bytes]
        assert Sums.from_row(row).row() == row
        assert Sums.from_row(row) == sums


@pytest.mark.parametrize("into", [bucket_of, loaded_of])
@pytest.mark.parametrize("added", [bucket_of, loaded_of])
@given(a=decisions, b=decisions)
def test_sums_from_rows_behave_like_counted_ones(
    into: Made, added: Made, a: list[DecisionRecord], b: list[DecisionRecord]
) -> None:
    """They merge, subtract and compare equally, and an added one is not changed."""
    cells, other = into(a), added(b)
    merge_cells(cells, other)
    assert_sums(cells, a + b)
    subtract(cells, added(b))
    assert cells == bucket_of(a)
    assert_sums(other, b)


@given(decisions, decisions)
def test_a_copy_of_loaded_sums_is_its_own(a: list[DecisionRecord], b: list[DecisionRecord]) -> None:
    """Its histogram may be unpacked before the copy, after it, or never."""
    for look in (False, True):
        loaded = loaded_of(a)
        if look:
            for sums in loaded.values():
                assert sum(sums.latency_bins.values()) == sums.latency_count
        copies = {key: sums.copy() for key, sums in loaded.items()}
        merge_cells(copies, bucket_of(b))
        assert_sums(copies, a + b)
        assert [sums.row() for sums in loaded.values()] == [s.row() for s in bucket_of(a).values()]


def test_row_has_the_order_of_its_columns() -> None:
    """The order is that of the database, with each value under its name."""
    sums = bucket_of([kept(0, fallback=True, cost=7)])[Key(*kept()[1:7])]
    named = dict(zip(Sums.COLUMNS, sums.row(), strict=True))
    assert named.pop("latency_bins") == b"\x81\xcc\xe6\x01"
    assert named == {
        "count": 1,
        "fallbacks": 1,
        "confidence_count": 1,
        "confidence_sum": 850_000,
        "cost_count": 1,
        "cost_sum": 7,
        "latency_count": 1,
        "latency_sum": 120_000,
        "input_tokens": 100,
        "output_tokens": 20,
        "metered_cost": 7,
        "metered_input": 100,
        "metered_output": 20,
    }


def test_key_has_the_first_fields_of_a_decision() -> None:
    """Cells read the key as a slice, so both must have the same order."""
    assert DecisionRecord._fields[1:7] == Key._fields


def test_sums_differ_by_their_histogram_alone() -> None:
    """Equal totals of different latencies are different sums."""
    same = [kept(n, latency=latency) for n, latency in enumerate((100, 300))]
    other = [kept(n, latency=200) for n in range(2)]
    assert bucket_of(same) != bucket_of(other)
    assert bucket_of(same) == bucket_of(same[::-1])
