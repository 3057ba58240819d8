"""Periods: the cells of hours or minutes, packed as bytes until one of them is read.

A packed cell takes about a tenth of the memory of a cell held as objects. Commits do not change
packed bytes: the cells that they add are held beside them, and merged when the period is read.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from routecast.core.rollup import Key, PackedSums, PeriodCells, Sums, merge_cells

# The memory of a cell as objects: its sums, its histogram and its place in a dict. Measured with
# 40,000 keys: 530 to 740 bytes.
CELL_BYTES: Final = 700
# The memory of a packed period besides its bytes.
PERIOD_BYTES: Final = 300

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[PackedSums]).decode


class Keys:
    """The keys that cells refer to by number. Equal keys share one object."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.all: list[Key] = list(keys)
        self._numbers = {key: number for number, key in enumerate(self.all)}

    def number(self, key: Key) -> int:
        """Return the number of a key, a new one if it has none."""
        number = self._numbers.setdefault(key, len(self.all))
        if number == len(self.all):
            self.all.append(key)
        return number

    def shared(self, cells: Mapping[Key, Sums]) -> Mapping[Key, Sums]:
        """Return cells with the key objects that are held already."""
        return {self.all[self.number(key)]: sums for key, sums in cells.items()}


class _Opened(dict[Key, Sums]):
    """A packed period as objects, for as long as a reader refers to it."""

    __slots__ = ("__weakref__",)


class Periods(Mapping[int, PeriodCells]):
    """The cells of periods, by the number of their hour or minute since 1970.

    Cells that were read stay up to date for as long as the reader keeps them: commits are added to
    them as well. The reader must not change them.
    """

    def __init__(self, keys: Keys, periods: Mapping[int, PeriodCells] | None = None) -> None:
        self._keys = keys
        self._added: dict[int, PeriodCells] = dict(periods or {})
        self._cells = sum(map(len, self._added.values()))
        self._packed: dict[int, list[bytes]] = {}
        self._packed_cells: dict[int, int] = {}
        self._packed_bytes = 0
        self._opened: WeakValueDictionary[int, _Opened] = WeakValueDictionary()
        # The added cells as MessagePack, of periods that did not change since they were packed.
        self._written: dict[int, bytes] = {}

    def __getitem__(self, number: int) -> PeriodCells:
        if number not in self._packed:
            return self._added[number]
        opened = self._opened.get(number)
        if opened is None:
            opened = self._opened[number] = self._open(number)
        return opened

    def __iter__(self) -> Iterator[int]:
        yield from self._packed
        yield from (number for number in self._added if number not in self._packed)

    def __len__(self) -> int:
        return len(self._packed.keys() | self._added.keys())

    @property
    def size(self) -> int:
        """The approximate memory of all periods, in bytes."""
        return (
            self._cells * CELL_BYTES
            + self._packed_bytes
            + (len(self._packed) + len(self._added)) * PERIOD_BYTES
        )

    @property
    def cells(self) -> int:
        """The number of cells, packed or not."""
        return self._cells + sum(self._packed_cells.values())

    def packed_cells(self, number: int) -> int:
        """Return how many cells must be unpacked to read a period."""
        return self._packed_cells.get(number, 0)

    def add(self, number: int, cells: Mapping[Key, Sums]) -> None:
        """Add cells to a period."""
        added = self._added.setdefault(number, {})
        self._cells -= len(added)
        merge_cells(added, cells)
        self._cells += len(added)
        self._written.pop(number, None)
        opened = self._opened.get(number)
        if opened is not None:
            merge_cells(opened, cells)

    def add_rows(self, number: int, rows: list[PackedSums]) -> None:
        """Add cells as a database returns them: each as the number of its key, and a row."""
        self._add_packed(number, _encode(rows), len(rows))

    def keep(self, spans: Iterable[tuple[int, int]]) -> None:
        """Drop all periods outside of these spans."""
        wanted = tuple(spans)
        for number in list(self):
            if not any(first <= number < end for first, end in wanted):
                self._drop(number)

    def _drop(self, number: int) -> None:
        self._cells -= len(self._added.pop(number, ()))
        self._written.pop(number, None)
        self._packed_bytes -= sum(map(len, self._packed.pop(number, ())))
        self._packed_cells.pop(number, None)
        self._opened.pop(number, None)

    def _open(self, number: int) -> _Opened:
        opened, keys = _Opened(), self._keys.all
        for packed in self._packed[number]:
            cells = {keys[key]: Sums.from_row(row) for key, row in _decode(packed)}
            if opened.keys().isdisjoint(cells):
                opened.update(cells)
            else:
                merge_cells(opened, cells)
        merge_cells(opened, self._added.get(number, {}))
        return opened

    # -- as bytes, for a cache ------------------------------------------------------------------

    def packed_parts(self) -> dict[int, list[bytes]]:
        """Return the parts of each period that are held as MessagePack, without `not_written`."""
        parts = {number: list(packed) for number, packed in self._packed.items()}
        for number, written in self._written.items():
            parts.setdefault(number, []).append(written)
        return parts

    def not_written(self) -> dict[int, PeriodCells]:
        """Return the added cells of the periods that changed since `keep_written`."""
        return {
            number: cells for number, cells in self._added.items() if number not in self._written
        }

    def keep_written(self, number: int, cells: PeriodCells, written: bytes) -> None:
        """Keep the MessagePack of a period's added cells until they change."""
        if self._added.get(number) is cells:  # else the period was dropped
            self._written[number] = written

    def take(self, packed: Mapping[int, Iterable[msgspec.Raw]]) -> None:
        """Take over packed periods (`core/packing.py`). Raises ValueError on anything else."""
        count = len(self._keys.all)
        for number, parts in packed.items():
            for part in parts:
                rows = _decode(part)
                if any(not 0 <= key < count for key, _ in rows):
                    raise ValueError("a row names a key that is not there")
                self._add_packed(number, bytes(part), len(rows))

    def _add_packed(self, number: int, packed: bytes, cells: int) -> None:
        self._packed.setdefault(number, []).append(packed)
        self._packed_cells[number] = self._packed_cells.get(number, 0) + cells
        self._packed_bytes += len(packed)
