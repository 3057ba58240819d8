"""Histograms: bins with integer edges, percentiles within 2 %."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routecast.core.histogram import (
    EDGES,
    PackedHistogramSum,
    add_bins,
    bin_of,
    middle,
    pack,
    pack_counts,
    percentiles,
    unpack,
    unpack_counts,
)
from routecast.protocol import MAX_LATENCY_MS

WEEK = 7 * 24 * 3600 * 10**6
latencies = st.integers(0, WEEK) | st.integers(0, 200)


def count(values: Sequence[int]) -> dict[int, int]:
    bins: dict[int, int] = {}
    for value in values:
        bins[bin_of(value)] = bins.get(bin_of(value), 0) + 1
    return bins


def test_edges_are_rising_integers_over_the_whole_range() -> None:
    """They go from 0 to the largest latency of the contract, 7 days."""
    assert all(type(edge) is int for edge in EDGES)
    assert all(low < high for low, high in pairwise(EDGES))
    assert EDGES[0] == 0
    assert int(MAX_LATENCY_MS * 1000) == WEEK < EDGES[-1]
    assert len(EDGES) < 1000


def test_edges_never_change() -> None:
    """Stored histograms have bin numbers, whose meaning would change with an edge."""
    assert EDGES[:8] == (0, 1, 2, 3, 4, 5, 6, 7)
    assert [EDGES[100], EDGES[300], EDGES[-1]] == [718, 1_865_346, 615_976_314_708]
    assert len(EDGES) == 625


@given(latencies)
@example(0)
@example(WEEK)
def test_value_is_in_its_bin(latency: int) -> None:
    """A bin holds the values from its edge up to the next one."""
    number = bin_of(latency)
    assert EDGES[number] <= latency < EDGES[number + 1]


@given(latencies)
def test_middle_is_within_two_percent_of_each_value_of_its_bin(latency: int) -> None:
    """0 has a bin of its own."""
    found = Fraction(middle(bin_of(latency)))
    assert abs(found - latency) * 100 <= 2 * latency


@given(st.lists(latencies, min_size=1), st.integers(1, 100))
def test_percentiles_are_within_two_percent_of_nearest_rank(values: list[int], p: int) -> None:
    """The exact one is the value at rank ceil(p / 100 * n) of the sorted values."""
    exact = sorted(values)[-(-p * len(values) // 100) - 1]
    (found,) = percentiles(count(values), [p])
    assert found is not None
    assert abs(Fraction(found) - exact) * 100 <= 2 * exact


def test_percentiles_of_nothing_are_none() -> None:
    """An unknown percentile is None, and not 0."""
    assert percentiles({}, [50, 95, 99]) == [None, None, None]


@given(st.lists(latencies), st.lists(latencies))
def test_adding_bins_equals_counting_all_values(left: list[int], right: list[int]) -> None:
    """Histograms merge without loss, also into an empty one; the added one is not changed."""
    merged, added = count(left), count(right)
    add_bins(merged, added)
    assert merged == count(left + right)
    add_bins(merged, added)
    assert added == count(right)


close = st.integers(100_000, 9_000_000)  # over a hundred bins


@given(st.lists(latencies) | st.lists(close, min_size=40))
def test_unpack_returns_what_pack_got(values: list[int]) -> None:
    """An empty histogram has no bytes."""
    bins = count(values)
    assert unpack(pack(bins)) == bins
    assert bool(pack(bins)) == bool(values)


def test_busy_histograms_are_packed_densely() -> None:
    """Many latencies take one or two bytes for each bin."""
    bins = dict.fromkeys(range(250, 400), 7)
    assert len(pack(bins)) < 160
    sparse = dict.fromkeys(range(0, 600, 4), 7)
    assert len(pack(sparse)) < 600


@pytest.mark.parametrize("garbage", [b"\xc1", b"\x90", b"\x81\x01", b"\x81\xa1a\x01", b"hello"])
def test_unpack_refuses_what_pack_did_not_write(garbage: bytes) -> None:
    """A damaged histogram raises an error."""
    with pytest.raises(ValueError):
        unpack(garbage)


# About the widths that lanes may have.
few = st.integers(1, 50)
counts = few | st.integers(2**16 - 50, 2**16 + 50) | st.integers(2**32 - 50, 2**32 + 50)
histograms = st.dictionaries(st.integers(0, len(EDGES) - 2), few | counts, max_size=30)


@given(histograms)
def test_packed_counts_come_back(bins: dict[int, int]) -> None:
    """Any counts come back; a bin takes two bytes if the sum of all counts fits into them."""
    packed = pack_counts(bins)
    assert unpack_counts(packed) == bins
    if bins and sum(bins.values()) < 2**16:
        assert len(packed) == 2 + 2 * (max(bins) - min(bins) + 1)


@pytest.mark.parametrize("garbage", [b"", b"\1", b"\1\4\0", b"\1\0\0\0\0", b"\1\xff\0\0"])
def test_unpack_counts_refuses_what_pack_counts_did_not_write(garbage: bytes) -> None:
    """A damaged histogram raises an error, as in `unpack`."""
    with pytest.raises(ValueError):
        unpack_counts(garbage)


@given(st.lists(histograms, max_size=5), st.booleans())
def test_packed_sums_equal_sums_of_bins(added: list[dict[int, int]], at_once: bool) -> None:
    """Percentiles are equal, too, whether the final total is known from the start or not."""
    bins: dict[int, int] = {}
    lanes, total, whole = PackedHistogramSum(), 0, sum(sum(one.values()) for one in added)
    for one in added:
        add_bins(bins, one)
        total += sum(one.values())
        lanes.add(pack_counts(one), whole if at_once else total)
    assert lanes.bins() == unpack_counts(lanes.pack()) == bins
    percents = (1, 50, 95, 99, 100)
    assert lanes.percentiles(percents) == tuple(percentiles(bins, percents))


def test_wide_counts_are_added_to_narrow_ones() -> None:
    """Older versions wrote four bytes for every count; they are still read."""
    wide = struct.pack("<H3I", 200, 1, 0, 65_000)
    lanes = PackedHistogramSum()
    lanes.add(pack_counts({199: 7, 202: 5}), 12)
    lanes.add(wide, 65_013)
    assert lanes.bins() == {199: 7, 200: 1, 202: 65_005}
    assert unpack_counts(wide) == {200: 1, 202: 65_000}
