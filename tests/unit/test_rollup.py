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
    """The same, as a store gives it: with histograms that nobody looked into yet."""
    return {key: Sums.from_row(sums.row()) for key, sums in bucket_of(some).items()}


Made = Callable[[Sequence[DecisionRecord]], PeriodCells]


def merged(*periods: PeriodCells) -> PeriodCells:
    whole: PeriodCells = {}
    for cells in periods:
        merge_cells(whole, cells)
    return whole


def test_fields_are_read_by_their_names() -> None:
    """Several at once, as a slice: a field that is added between them must not shift the others."""
    decision = kept(1, model="opus", reason="cheap", project="counted", owner="sender")
    assert key_of(decision) == Key(*(getattr(decision, name) for name in Key._fields))
    assert values_of(decision) == tuple(getattr(decision, name) for name in VALUE_FIELDS)
    assert identity_of(decision) == (decision.id, decision.owner)
    assert set(DecisionRecord._fields) == {"id", "owner", "cost_sent", *Key._fields, *VALUE_FIELDS}


def test_methods_of_sums_leave_out_no_column() -> None:
    """Each names all of them, for speed: one that is added must be added to each."""
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
    """By minute, by hour and in all."""
    cells = cells_of(some)
    for periods, length in ((cells.minutes, MINUTE), (cells.hours(), HOUR)):
        assert set(periods) == {d.decided // length for d in some}
        for number, bucket in periods.items():
            assert_sums(bucket, [d for d in some if d.decided // length == number])
    assert_sums(cells.total(), some)


@given(decisions, decisions)
def test_counting_in_two_steps_is_counting_in_one(
    first: list[DecisionRecord], rest: list[DecisionRecord]
) -> None:
    """Cells may be added to, as by the batches of one commit."""
    cells = Cells()
    cells.add(first)
    cells.add(iter(rest))
    assert cells == cells_of(first + rest)


@given(decisions, decisions, decisions)
def test_merge_is_commutative_and_associative(
    a: list[DecisionRecord], b: list[DecisionRecord], c: list[DecisionRecord]
) -> None:
    """So it does not matter which node or period adds what first."""
    x, y, z = bucket_of(a), bucket_of(b), bucket_of(c)
    assert merged(x, y) == merged(y, x)
    assert merged(merged(x, y), z) == merged(x, merged(y, z))
    assert merged(x, y, z) == bucket_of(a + b + c)


def subtract(bucket: PeriodCells, cells: PeriodCells) -> None:
    """Take each key's sums out of a bucket's; keys without a decision leave it."""
    for key, sums in cells.items():
        bucket[key].subtract(sums)
        if not bucket[key].count:
            del bucket[key]


@given(decisions, decisions)
def test_subtract_undoes_merge(a: list[DecisionRecord], b: list[DecisionRecord]) -> None:
    """No key, no empty bin is left behind."""
    cells = merged(bucket_of(a), bucket_of(b))
    subtract(cells, bucket_of(b))
    assert cells == bucket_of(a)
    subtract(cells, bucket_of(a))
    assert cells == {}


@given(decisions, decisions)
def test_merging_leaves_what_was_merged_alone(
    a: list[DecisionRecord], b: list[DecisionRecord]
) -> None:
    """A bucket never shares its sums with another one."""
    source = bucket_of(a)
    cells: PeriodCells = {}
    merge_cells(cells, source)
    merge_cells(cells, bucket_of(b))
    subtract(cells, source)
    assert source == bucket_of(a)


@given(decisions)
def test_row_comes_back(some: list[DecisionRecord]) -> None:
    """As the store writes and reads them; also when the histogram is never looked into."""
    for sums in bucket_of(some).values():
        row = sums.row()
        assert len(row) == len(Sums.COLUMNS)
        assert [type(value) for value in row] == [int] * 13 + [bytes]
        assert Sums.from_row(row).row() == row
        assert Sums.from_row(row) == sums


@pytest.mark.parametrize("into", [bucket_of, loaded_of])
@pytest.mark.parametrize("added", [bucket_of, loaded_of])
@given(a=decisions, b=decisions)
def test_sums_from_rows_are_as_those_counted(
    into: Made, added: Made, a: list[DecisionRecord], b: list[DecisionRecord]
) -> None:
    """Loaded or counted, they merge, come out again and are equal; and what is added stays."""
    cells, other = into(a), added(b)
    merge_cells(cells, other)
    assert_sums(cells, a + b)
    subtract(cells, added(b))
    assert cells == bucket_of(a)
    assert_sums(other, b)


@given(decisions, decisions)
def test_a_copy_of_loaded_sums_is_its_own(a: list[DecisionRecord], b: list[DecisionRecord]) -> None:
    """Whether its histogram was looked into before it was copied, after, or never."""
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
    """The order is the database's: each value under its name."""
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


def test_key_is_the_part_of_a_decision_that_is_not_summed() -> None:
    """Cells take the key by place: the names must stand in the same order in both."""
    assert DecisionRecord._fields[1:7] == Key._fields


def test_sums_differ_by_their_histogram_alone() -> None:
    """Equal totals of different latencies are not equal."""
    same = [kept(n, latency=latency) for n, latency in enumerate((100, 300))]
    other = [kept(n, latency=200) for n in range(2)]
    assert bucket_of(same) != bucket_of(other)
    assert bucket_of(same) == bucket_of(same[::-1])
