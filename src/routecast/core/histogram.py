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
from typing import Final, Literal

import msgspec

from routecast.protocol import MAX_LATENCY_MS

_LIMIT: Final = int(MAX_LATENCY_MS * 1000)


def _edges() -> tuple[int, ...]:
    edges = [0, 1]
    while edges[-1] <= _LIMIT:
        # The largest value of a bin is at most 1.04 times its smallest.
        edges.append(edges[-1] * 26 // 25 + 1)
    return tuple(edges)


# Bin i holds the microseconds from EDGES[i] to EDGES[i + 1] - 1.
EDGES: Final = _edges()

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(dict[int, int] | list[int]).decode

# From this number of bins on, the form of an array is tried. It is shorter if its zeros, one byte
# each, take less than the bin numbers of a map, two or three bytes each.
_MANY: Final = 16
_CLOSE: Final = 3


def bin_of(latency: int) -> int:
    """Return the bin of a latency in microseconds, 0 to 7 days."""
    return bisect_right(EDGES, latency) - 1


@cache
def middle(number: int) -> float:
    """Return a value, in microseconds, from which no value of the bin differs by more than 2 %.

    It is the harmonic mean of the bin's smallest and largest value.
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
    """Return nearest-rank percentiles (1 to 100) in microseconds; None for an empty histogram.

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

    If many bins are close to each other, it is an array: the first bin's number, and the counts
    from there on. That takes a third of the space.
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

# Each count has as many bytes as the sum of all counts needs. The header, of two bytes, is the
# first bin's number plus _HEADER times the index of the width in _WIDTHS.
_COUNT_FORMATS: Final[dict[int, Literal["H", "I", "Q"]]] = {4: "I", 2: "H", 8: "Q"}
_WIDTHS: Final = tuple(_COUNT_FORMATS)
_HEADER: Final = 1024
# Reads lanes as numbers from the last to the first, in the byte order of any machine.
_DOWN: Final = slice(None, None, -1 if sys.byteorder == "little" else 1)
# Histograms whose percentiles are remembered, about 1 KB each: those of finished buckets are
# requested again and again, and do not change.
REMEMBERED_HISTOGRAMS: Final = 8_192


def _width(total: int) -> int:
    return next(width for width in sorted(_WIDTHS) if total < 1 << 8 * width)


def pack_counts(bins: Mapping[int, int]) -> bytes:
    """Return a histogram as a header and the counts of all bins from the first to the last."""
    first, last = min(bins, default=0), max(bins, default=-1)
    counts = [bins.get(number, 0) for number in range(first, last + 1)]
    width = _width(sum(counts))
    header = first + _HEADER * _WIDTHS.index(width)
    return struct.pack(f"<H{len(counts)}{_COUNT_FORMATS[width]}", header, *counts)


def unpack_counts(packed: bytes) -> dict[int, int]:
    """Return the bins that `pack_counts` wrote. Raises ValueError on anything else."""
    try:
        (header,) = struct.unpack_from("<H", packed)
        width = _WIDTHS[header // _HEADER]
        counts = struct.unpack(f"<{(len(packed) - 2) // width}{_COUNT_FORMATS[width]}", packed[2:])
    except (struct.error, IndexError):
        raise ValueError("not a packed histogram") from None
    return {number: count for number, count in enumerate(counts, header % _HEADER) if count}


class PackedHistogramSum:
    """A sum of histograms as one large integer, which has a lane of bits for each bin.

    So one addition adds a histogram. No lane overflows into the next, because each is wide enough
    for the sum of all counts.
    """

    __slots__ = ("_counts", "_first", "_limit", "_width")

    def __init__(self) -> None:
        self._first = 0  # the bin of the lowest lane
        self._counts = 0
        self._width = min(_WIDTHS)
        self._limit = 1 << 8 * self._width

    def add(self, packed: bytes, total: int) -> None:
        """Add what `pack_counts` wrote.

        `total` is the number of counts in the whole sum, with these; it may be too large.
        """
        if total >= self._limit:
            self._widen(_width(total))
        header, counts = packed[0] | packed[1] << 8, packed[2:]
        width, first = _WIDTHS[header // _HEADER], header % _HEADER
        if width != self._width:
            counts = _recast(counts, width, self._width)
        if not counts:
            return
        if not self._counts:
            self._first = first
        elif first < self._first:
            self._counts <<= 8 * self._width * (self._first - first)
            self._first = first
        self._counts += int.from_bytes(counts, "little") << 8 * self._width * (first - self._first)

    def pack(self) -> bytes:
        """Return the sum in the form of `pack_counts`."""
        header = self._first + _HEADER * _WIDTHS.index(self._width)
        return struct.pack("<H", header) + self._bytes()

    def bins(self) -> dict[int, int]:
        """Return the sum as a plain histogram."""
        return unpack_counts(self.pack())

    def percentiles(self, percents: tuple[int, ...]) -> tuple[float | None, ...]:
        """Return `percentiles` of the sum, faster than for a plain histogram."""
        return _percentiles(self._first, self._counts, self._width, percents)

    def _bytes(self) -> bytes:
        size = -(-self._counts.bit_length() // (8 * self._width))
        return self._counts.to_bytes(self._width * size, "little")

    def _widen(self, width: int) -> None:
        if self._counts:
            counts = _recast(self._bytes(), self._width, width)
            self._counts = int.from_bytes(counts, "little")
        self._width, self._limit = width, 1 << 8 * width


def _recast(counts: bytes, width: int, to: int) -> bytes:
    """Return counts of one width in bytes as counts of another, which has room for them."""
    cast = bytearray(len(counts) // width * to)
    for first in range(min(width, to)):
        cast[first::to] = counts[first::width]
    return bytes(cast)


@lru_cache(REMEMBERED_HISTOGRAMS)
def _percentiles(
    first: int, counts: int, width: int, percents: tuple[int, ...]
) -> tuple[float | None, ...]:
    if not counts:
        return (None,) * len(percents)
    # The counts of each bin and all bins above it: additions double the range, so few are needed.
    at_least, lane = counts, 8 * width
    size = -(-counts.bit_length() // lane)
    shift = lane
    while shift < lane * size:
        at_least += at_least >> shift
        shift *= 2
    ranks = memoryview(at_least.to_bytes(width * size, sys.byteorder)).cast(_COUNT_FORMATS[width])[
        _DOWN
    ]
    last, count = first + size - 1, ranks[-1]
    # The value at rank r from below is at rank count + 1 - r from above.
    return tuple(
        middle(last - bisect_left(ranks, count + 1 + -percent * count // 100))
        for percent in percents
    )
