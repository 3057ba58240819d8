"""Mergeable latency histograms with a bounded relative error, in integers only.

A histogram is a plain `dict` from bin number to count, so that merging is adding. Bins grow by
4 % (the idea of DDSketch: Masson, Rim, Lee, VLDB 2019), but their edges are integers made by
integer arithmetic, so every machine and every database puts a value into the same bin.
"""

import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from itertools import accumulate, repeat
from typing import Final

import msgspec

from routecast.protocol import MAX_LATENCY_MS

_LIMIT: Final = int(MAX_LATENCY_MS * 1000)


def _edges() -> tuple[int, ...]:
    edges = [0, 1]
    while edges[-1] <= _LIMIT:
        # The greatest value of a bin is at most 1.04 times its least one.
        edges.append(edges[-1] * 26 // 25 + 1)
    return tuple(edges)


# Bin i holds the microseconds from EDGES[i] to EDGES[i + 1] - 1.
EDGES: Final = _edges()

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(dict[int, int] | list[int]).decode

# So many bins are worth a look whether an array is shorter. It is when its zeros, of one byte each,
# are fewer than the bytes of the bin numbers that it does without, two or three each.
_MANY: Final = 16
_CLOSE: Final = 3


def bin_of(latency: int) -> int:
    """Return the bin of a latency in microseconds, 0 to 7 days."""
    return bisect_right(EDGES, latency) - 1


@cache
def middle(number: int) -> float:
    """Return the value, in microseconds, that is at most 2 % off any other one of the bin.

    It is the harmonic mean of the bin's least and greatest value.
    """
    least, greatest = EDGES[number], EDGES[number + 1] - 1
    return 2 * least * greatest / (least + greatest) if greatest else 0.0


def add_bins(into: dict[int, int], bins: Mapping[int, int]) -> None:
    """Add a histogram to another."""
    if not into:
        into.update(bins)
        return
    for number, count in bins.items():
        into[number] = into.get(number, 0) + count


def percentiles(bins: Mapping[int, int], percents: Iterable[int]) -> list[float | None]:
    """Return nearest-rank percentiles (1 to 100) in microseconds; None where nothing is counted.

    Each is within 2 % of the exact one.
    """
    numbers = sorted(bins)
    ranks = list(accumulate(map(bins.__getitem__, numbers)))  # of the last value in each bin
    if not ranks or not ranks[-1]:
        return [None for _ in percents]
    return [
        middle(numbers[bisect_left(ranks, -(-percent * ranks[-1] // 100))]) for percent in percents
    ]


def pack(bins: Mapping[int, int]) -> bytes:
    """Return the bins as bytes: a MessagePack map of bin numbers to counts.

    Where there are many close to each other it is an array instead, of the first one's number and
    the counts from there on: that takes a third of the room.
    """
    if not bins:
        return b""
    if len(bins) >= _MANY:
        first, end = min(bins), max(bins) + 1
        if end - first < _CLOSE * len(bins):
            return _encode([first, *map(bins.get, range(first, end), repeat(0))])
    return _encode(bins)


def unpack(packed: bytes) -> dict[int, int]:
    """Return the bins that `pack` wrote."""
    if not packed:
        return {}
    read = _decode(packed)
    if isinstance(read, dict):
        return read
    first, *counts = read
    return {number: count for number, count in enumerate(counts, first) if count}


# -- many at once -------------------------------------------------------------------------------

# Bits for each bin, and what all of them together must count less than.
LANE: Final = 32
LANE_LIMIT: Final = 2**LANE
# What reads lanes as numbers, from the last one to the first, whatever the machine's byte order.
_DOWN: Final = slice(None, None, -1 if sys.byteorder == "little" else 1)


def pack_counts(bins: Mapping[int, int]) -> bytes:
    """Return a histogram as its first bin's number and the counts of all bins up to the last."""
    first, last = min(bins, default=0), max(bins, default=-1)
    counts = [bins.get(number, 0) for number in range(first, last + 1)]
    return struct.pack(f"<H{len(counts)}I", first, *counts)


class Lanes:
    """Histograms added up as one great integer: to add another is one addition.

    Each bin has LANE bits of it. For as long as all count less than LANE_LIMIT together, no bin
    runs into the next.
    """

    __slots__ = ("_counts", "_first")

    def __init__(self) -> None:
        self._first = 0  # the bin that the lowest bits count
        self._counts = 0

    def add(self, packed: bytes) -> None:
        """Add what `pack_counts` wrote."""
        self._add(packed[0] | packed[1] << 8, int.from_bytes(packed[2:], "little"))

    def unite(self, other: "Lanes") -> None:
        """Add all that was added to another."""
        self._add(other._first, other._counts)

    def _add(self, first: int, counts: int) -> None:
        if not counts:
            return
        if not self._counts:
            self._first = first
        elif first < self._first:
            self._counts <<= LANE * (self._first - first)
            self._first = first
        self._counts += counts << LANE * (first - self._first)

    def bins(self) -> dict[int, int]:
        """Return the sum as a plain histogram."""
        size = -(-self._counts.bit_length() // LANE)
        counts = struct.unpack(f"<{size}I", self._counts.to_bytes(4 * size, "little"))
        return {number: count for number, count in enumerate(counts, self._first) if count}

    def percentiles(self, percents: tuple[int, ...]) -> tuple[float | None, ...]:
        """Return `percentiles` of the sum, which is faster than of a plain histogram."""
        return _percentiles(self._first, self._counts, percents)


# Histograms whose percentiles are remembered: what is over does not change, and is asked for again
# and again. One takes some 1 KB.
REMEMBERED: Final = 8_192


@lru_cache(REMEMBERED)
def _percentiles(first: int, counts: int, percents: tuple[int, ...]) -> tuple[float | None, ...]:
    if not counts:
        return (None,) * len(percents)
    # Each bin with all above it: as many additions as twos that the number of bins is made of.
    at_least, shift, size = counts, LANE, -(-counts.bit_length() // LANE)
    while shift < LANE * size:
        at_least += at_least >> shift
        shift *= 2
    ranks = memoryview(at_least.to_bytes(4 * size, sys.byteorder)).cast("I")[_DOWN]
    last, count = first + size - 1, ranks[-1]
    # The value at rank r from below is at rank count + 1 - r from above.
    return tuple(
        middle(last - bisect_left(ranks, count + 1 + -percent * count // 100))
        for percent in percents
    )
