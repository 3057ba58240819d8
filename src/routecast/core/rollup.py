"""Rollups: exact sums over decisions, by key and period.

The decisions of a commit are counted once, into cells of minutes. Minutes add up to hours, and
hours to the total, so the cells of every period are sums of the same cells. All numbers are
integers.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from routecast.core.decision import MINUTE, DecisionRecord, fields_between
from routecast.core.histogram import add_bins, bin_of, pack, unpack

MINUTES_PER_HOUR: Final = 60


class Key(NamedTuple):
    """The key of sums. `model` is "" and `band` is "none" if they are unknown."""

    project: str
    strategy: str
    provider: str
    model: str
    band: str
    status: str


def shared_key(names: Iterable[str]) -> Key:
    """Return a key that shares equal names with all other keys: 40,000 keys have few names."""
    return Key(*map(sys.intern, names))


# The key that a decision counts under, as a plain tuple: equal to its Key, and quick to make.
key_of: Final[Callable[[DecisionRecord], tuple[str, ...]]] = itemgetter(
    fields_between("project", "status")
)
# The values of a decision that are summed up, in the order in which `Sums.add` reads them.
_summed_of: Final[Callable[[DecisionRecord], tuple[Any, ...]]] = itemgetter(
    fields_between("confidence", "fallback")
)


class Sums:
    """Sums over some decisions. Every `_count` counts the decisions whose value is known.

    Units: confidence in millionths, cost in nano-dollars, latency in microseconds; `latency_bins`
    is a histogram (`core/histogram.py`). `metered_*` cover the decisions whose cost and both token
    counts are known, so that the price of another model can be compared with the cost.
    """

    # A sum that is added here must also be added to the methods below, which name each sum for
    # speed, and to the tables, by a migration. All other SQL has its columns from here.
    SCALARS: Final = (
        "count",
        "fallbacks",
        "confidence_count",
        "confidence_sum",
        "cost_count",
        "cost_sum",
        "latency_count",
        "latency_sum",
        "input_tokens",
        "output_tokens",
        "metered_cost",
        "metered_input",
        "metered_output",
    )
    COLUMNS: Final = (*SCALARS, "latency_bins")
    __slots__ = (*SCALARS, "_bins", "_packed")

    count: int
    fallbacks: int
    confidence_count: int
    confidence_sum: int
    cost_count: int
    cost_sum: int
    latency_count: int
    latency_sum: int
    input_tokens: int
    output_tokens: int
    metered_cost: int
    metered_input: int
    metered_output: int

    def __init__(self) -> None:
        self.count = self.fallbacks = 0
        self.confidence_count = self.confidence_sum = 0
        self.cost_count = self.cost_sum = 0
        self.latency_count = self.latency_sum = 0
        self.input_tokens = self.output_tokens = 0
        self.metered_cost = self.metered_input = self.metered_output = 0
        # Most histograms are stored and loaded but never read: they stay packed until they are
        # read.
        self._bins: dict[int, int] | None = None
        self._packed = b""

    @property
    def latency_bins(self) -> dict[int, int]:
        """The latency histogram; the caller may add to it."""
        if self._bins is None:
            self._bins = unpack(self._packed)
        return self._bins

    def add(self, decision: DecisionRecord) -> None:
        """Count one more decision."""
        # One read is faster than six, and this runs for every decision.
        confidence, cost, latency, tokens_in, tokens_out, fallback = _summed_of(decision)
        self.count += 1
        if fallback:
            self.fallbacks += 1
        if confidence is not None:
            self.confidence_count += 1
            self.confidence_sum += confidence
        if tokens_in is not None:
            self.input_tokens += tokens_in
        if tokens_out is not None:
            self.output_tokens += tokens_out
        if cost is not None:
            self.cost_count += 1
            self.cost_sum += cost
            if tokens_in is not None and tokens_out is not None:
                self.metered_cost += cost
                self.metered_input += tokens_in
                self.metered_output += tokens_out
        if latency is not None:
            self.latency_count += 1
            self.latency_sum += latency
            bins, number = self.latency_bins, bin_of(latency)
            bins[number] = bins.get(number, 0) + 1

    def copy(self) -> "Sums":
        """Return a copy, which can be added to without changing these sums."""
        twin = Sums()
        twin.merge_scalars(self)
        twin._bins, twin._packed = None if self._bins is None else self._bins.copy(), self._packed
        return twin

    def merge(self, other: "Sums") -> None:
        """Add another's sums to these."""
        self.merge_scalars(other)
        if other.latency_count:
            add_bins(self.latency_bins, other.latency_bins)

    def subtract(self, other: "Sums") -> None:
        """Subtract another's sums, which were merged before."""
        self.subtract_scalars(other)
        bins = self.latency_bins
        for number, count in other.latency_bins.items():
            bins[number] -= count
            if not bins[number]:
                del bins[number]

    def merge_scalars(self, other: "Sums") -> None:
        """Add another's sums, except the histogram."""
        self.count += other.count
        self.fallbacks += other.fallbacks
        self.confidence_count += other.confidence_count
        self.confidence_sum += other.confidence_sum
        self.cost_count += other.cost_count
        self.cost_sum += other.cost_sum
        self.latency_count += other.latency_count
        self.latency_sum += other.latency_sum
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.metered_cost += other.metered_cost
        self.metered_input += other.metered_input
        self.metered_output += other.metered_output

    def subtract_scalars(self, other: "Sums") -> None:
        """Subtract another's sums, except the histogram."""
        self.count -= other.count
        self.fallbacks -= other.fallbacks
        self.confidence_count -= other.confidence_count
        self.confidence_sum -= other.confidence_sum
        self.cost_count -= other.cost_count
        self.cost_sum -= other.cost_sum
        self.latency_count -= other.latency_count
        self.latency_sum -= other.latency_sum
        self.input_tokens -= other.input_tokens
        self.output_tokens -= other.output_tokens
        self.metered_cost -= other.metered_cost
        self.metered_input -= other.metered_input
        self.metered_output -= other.metered_output

    @property
    def largest(self) -> int:
        """The largest of the sums: a database has 64 bits for each."""
        return max(
            self.count,
            self.confidence_sum,
            self.cost_sum,
            self.latency_sum,
            self.input_tokens,
            self.output_tokens,
        )

    def row(self) -> tuple[Any, ...]:
        """Return the values in the order of COLUMNS, the histogram packed."""
        return (
            self.count,
            self.fallbacks,
            self.confidence_count,
            self.confidence_sum,
            self.cost_count,
            self.cost_sum,
            self.latency_count,
            self.latency_sum,
            self.input_tokens,
            self.output_tokens,
            self.metered_cost,
            self.metered_input,
            self.metered_output,
            self._packed if self._bins is None else pack(self._bins),
        )

    @classmethod
    def from_row(cls, row: Iterable[Any]) -> Self:
        """Return the sums that `row` gave."""
        sums = cls.__new__(cls)  # the row has all that `__init__` would set
        (
            sums.count,
            sums.fallbacks,
            sums.confidence_count,
            sums.confidence_sum,
            sums.cost_count,
            sums.cost_sum,
            sums.latency_count,
            sums.latency_sum,
            sums.input_tokens,
            sums.output_tokens,
            sums.metered_cost,
            sums.metered_input,
            sums.metered_output,
            sums._packed,
        ) = row
        sums._bins = None
        return sums

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sums)
            and self.row()[:-1] == other.row()[:-1]
            and self.latency_bins == other.latency_bins
        )

    __hash__ = None  # type: ignore[assignment]  # -- sums change

    def __repr__(self) -> str:
        pairs = zip(self.SCALARS, self.row(), strict=False)
        return f"Sums({', '.join(f'{name}={value}' for name, value in pairs if value)})"


PeriodCells = dict[Key, Sums]

# The number of a key among those packed with it, and its sums as `Sums.row` returns them.
if TYPE_CHECKING:
    PackedSums = tuple[int, tuple[Any, ...]]
    PackedKey = tuple[str, ...]
else:  # what msgspec checks
    PackedSums = tuple[int, tuple[(*[int] * len(Sums.SCALARS), bytes)]]
    PackedKey = tuple[(*[str] * len(Key._fields),)]


def merge_cells(into: PeriodCells, cells: Mapping[Key, Sums]) -> None:
    """Add each key's sums to the cells of a period."""
    for key, sums in cells.items():
        mine = into.get(key)
        if mine is None:
            into[key] = sums.copy()
        else:
            mine.merge(sums)


@dataclass(slots=True)
class Cells:
    """Sums of some decisions by the minute in which they were decided (minutes since 1970)."""

    minutes: dict[int, PeriodCells] = field(default_factory=dict)

    def add(self, decisions: Iterable[DecisionRecord]) -> None:
        """Count decisions into the cells they belong to."""
        minutes = self.minutes
        keys: dict[tuple[str, ...], Key] = {}
        for decision in decisions:
            key, minute = key_of(decision), decision.decided // MINUTE
            cells = minutes.get(minute)
            if cells is None:
                cells = minutes[minute] = {}
            sums = cells.get(key)  # type: ignore[call-overload]  # -- a tuple equal to its Key
            if sums is None:
                shared = keys.get(key)
                if shared is None:
                    shared = keys[key] = Key(*key)
                sums = cells[shared] = Sums()
            sums.add(decision)

    def hours(self) -> dict[int, PeriodCells]:
        """Return the same sums by hour (hours since 1970)."""
        hours: dict[int, PeriodCells] = {}
        for minute, cells in self.minutes.items():
            merge_cells(hours.setdefault(minute // MINUTES_PER_HOUR, {}), cells)
        return hours

    def total(self) -> PeriodCells:
        """Return the same sums over all time."""
        total: PeriodCells = {}
        for cells in self.minutes.values():
            merge_cells(total, cells)
        return total

    def __len__(self) -> int:
        return sum(map(len, self.minutes.values()))

    def __iter__(self) -> Iterator[Sums]:
        return chain.from_iterable(cells.values() for cells in self.minutes.values())

    @classmethod
    def sum(cls, parts: Sequence["Cells"]) -> "Cells":
        """Return the sum of several; of a single one, itself."""
        if len(parts) == 1:
            return parts[0]
        whole = cls()
        for part in parts:
            for minute, cells in part.minutes.items():
                merge_cells(whole.minutes.setdefault(minute, {}), cells)
        return whole

    def split(self, most: int) -> Iterator["Cells"]:
        """Yield the same cells in parts of at most `most` each; at least one part."""
        part, room = Cells(), most
        for minute, cells in self.minutes.items():
            items = iter(cells.items())
            while chosen := dict(islice(items, room)):
                part.minutes[minute] = chosen
                room -= len(chosen)
                if not room:
                    yield part
                    part, room = Cells(), most
        if part.minutes or not self.minutes:
            yield part

    def keys(self) -> Iterator[Key]:
        """Yield the key of every cell."""
        return chain.from_iterable(self.minutes.values())
