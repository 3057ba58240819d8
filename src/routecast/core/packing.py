"""Packing: a snapshot as bytes, made in short steps while commits change the snapshot.

The bytes are those of one position: that at which packing began. Before a commit changes cells, it
packs those of them that are not packed yet (`Packing.save`); the other cells are packed step by
step. So each cell is packed once, as it was at the beginning. Commits during packing only change
the order of the work: nothing is packed twice or started again.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from routecast.core.periods import Keys, Periods
from routecast.core.rollup import MINUTES_PER_HOUR, Key, PeriodCells, Sums
from routecast.protocol import Position

# Changes with the packed form, so that no version misreads the bytes of another.
FORM: Final = 2

# Cells after which a step ends: about 0.4 ms. It has fewer than twice as many.
CELLS_PER_PACK_STEP: Final = 512
# Keys are packed together in this number: about 0.5 ms.
KEYS_PER_PACK_STEP: Final = 2_048

_encode: Final = msgspec.msgpack.Encoder().encode


class Packing:
    """Packs a snapshot as it is now. Use it by `Snapshot.packing`.

    Run `steps` to its end; other tasks may change the snapshot between two steps. Then `pieces` are
    the bytes.
    """

    def __init__(
        self,
        position: Position,
        taken: int,
        covered: Sequence[str],
        total: PeriodCells,
        hours: Periods,
        minutes: Periods,
        keys: Keys,
    ) -> None:
        self._head = (FORM, position, taken, covered)
        self._total = CellsPacking(total, keys)
        self._hours = PeriodsPacking(hours, keys)
        self._minutes = PeriodsPacking(minutes, keys)
        self._keys = keys
        self._packed_keys: list[bytes] = []

    def save(self, minute: int, keys: Collection[Key]) -> None:
        """Pack the cells of these keys that a commit is about to change in a minute.

        They are the cells of the minute, of its hour and of the total.
        """
        self._total.save(keys)
        self._hours.save(minute // MINUTES_PER_HOUR, keys)
        self._minutes.save(minute, keys)

    def steps(self, cells: int = CELLS_PER_PACK_STEP) -> Iterator[None]:
        """Pack everything; yield after each step, of `cells` cells at least."""
        packed = 0
        parts = (self._total, self._hours, self._minutes)
        for count in chain.from_iterable(part.steps(cells) for part in parts):
            packed += count
            if packed >= cells:
                yield
                packed = 0
        # Last, because cells may give new keys their numbers.
        keys = self._keys.all
        end = len(keys)
        self._packed_keys.append(_array_of(end))
        for first in range(0, end, KEYS_PER_PACK_STEP):
            self._packed_keys.append(_packed(keys[first : min(first + KEYS_PER_PACK_STEP, end)]))
            yield

    def pieces(self) -> Iterator[bytes]:
        """Yield the packed snapshot in pieces. The order is that of `snapshot._Packed`."""
        yield _array_of(len(self._head) + 4) + _packed(self._head)
        yield from self._total.pieces()
        yield from self._hours.pieces()
        yield from self._minutes.pieces()
        yield from self._packed_keys


class CellsPacking:
    """Packs the cells of one period as they are now: a list of key numbers and sums."""

    def __init__(self, cells: PeriodCells, keys: Keys) -> None:
        self.cells = cells
        self.is_changed = False  # a commit changed the cells since
        self._keys = keys
        self._count = len(cells)
        # The cells that are not packed yet; None before the first is packed. The copy is shallow:
        # 10 ns for each cell.
        self._left: PeriodCells | None = None
        self._packed: list[bytes] = []

    def save(self, keys: Iterable[Key]) -> None:
        """Pack the cells of these keys, which are about to change, unless they are packed."""
        self.is_changed = True
        left = self._not_packed()
        self._pack([(key, sums) for key in keys if (sums := left.pop(key, None)) is not None])

    def steps(self, most: int) -> Iterator[int]:
        """Pack all cells, at most `most` at a time; yield after each time how many."""
        left = self._not_packed()
        while left:
            count = min(len(left), most)
            self._pack([left.popitem() for _ in range(count)])
            yield count

    def pieces(self) -> Iterator[bytes]:
        """Yield the packed cells in pieces, once all are packed."""
        yield _array_of(self._count)
        yield from self._packed

    def _not_packed(self) -> PeriodCells:
        if self._left is None:
            self._left = self.cells.copy()
        return self._left

    def _pack(self, cells: Iterable[tuple[Key, Sums]]) -> None:
        number = self._keys.number
        self._packed.append(_packed((number(key), sums.row()) for key, sums in cells))


class PeriodsPacking:
    """Packs periods as they are now. Only periods that have changed are packed again."""

    def __init__(self, periods: Periods, keys: Keys) -> None:
        self._periods = periods
        self._parts = periods.packed_parts()
        self._changed = {
            number: CellsPacking(cells, keys) for number, cells in periods.not_written().items()
        }

    def save(self, number: int, keys: Iterable[Key]) -> None:
        """Pack the cells of these keys that are about to change in a period."""
        packing = self._changed.get(number)
        if packing is not None:
            packing.save(keys)

    def steps(self, most: int) -> Iterator[int]:
        """Pack all periods, at most `most` cells at a time; yield after each time how many."""
        for number, packing in self._changed.items():
            yield from packing.steps(most)
            if not packing.is_changed:
                self._periods.keep_written(number, packing.cells, b"".join(packing.pieces()))

    def pieces(self) -> Iterator[bytes]:
        """Yield the packed periods in pieces: by its number, each as a list of packed parts."""
        numbers = self._parts.keys() | self._changed.keys()
        yield b"\xdf" + len(numbers).to_bytes(4)  # MessagePack's map 32
        for number in sorted(numbers):
            parts, changed = self._parts.get(number, []), self._changed.get(number)
            yield _encode(number) + _array_of(len(parts) + (changed is not None))
            yield from parts
            if changed is not None:
                yield from changed.pieces()


def _array_of(length: int) -> bytes:
    """Return the beginning of an array, before its items: MessagePack's array 32."""
    return b"\xdd" + length.to_bytes(4)


def _packed(items: Iterable[Any]) -> bytes:
    """Return the items of an array as MessagePack."""
    return b"".join(map(_encode, items))
