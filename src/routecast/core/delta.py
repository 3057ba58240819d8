"""Deltas: the cells that one commit added to the rollups, with its position."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from routecast.core.rollup import Cells, Key, PackedKey, PackedSums, Sums, shared_key
from routecast.errors import MissingDeltas
from routecast.protocol import Position


@dataclass(frozen=True, slots=True)
class Delta:
    """The cells that a commit added, its position, and when it began (microseconds)."""

    position: Position
    cells: Cells
    received: int

    def pack(self) -> bytes:
        """Return the delta as bytes, for a database, a bus or a cache."""
        keys: dict[Key, int] = {}
        minutes = {
            minute: [(keys.setdefault(key, len(keys)), sums.row()) for key, sums in cells.items()]
            for minute, cells in self.cells.minutes.items()
        }
        packed = _PackedDelta(self.position, self.received, minutes, list(keys))
        return msgspec.msgpack.encode(packed)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return the delta that `pack` wrote. Raises ValueError on anything else."""
        read = _decode_delta(packed)
        keys = [shared_key(key) for key in map(_decode_key, read.keys)]
        try:
            minutes = {
                minute: {keys[number]: Sums.from_row(row) for number, row in map(_decode_row, rows)}
                for minute, rows in read.minutes.items()
            }
        except IndexError:
            raise ValueError("a row names a key that is not there") from None
        return cls(read.position, Cells(minutes), read.received)


class _PackedDelta(msgspec.Struct, array_like=True):
    position: Position
    received: int
    minutes: dict[int, list[PackedSums]]
    keys: list[PackedKey]


class _RawDelta(msgspec.Struct, array_like=True):
    """A packed delta whose rows and keys are decoded one by one, so that other threads run too."""

    position: Position
    received: int
    minutes: dict[int, list[msgspec.Raw]]
    keys: list[msgspec.Raw]


_decode_delta: Final = msgspec.msgpack.Decoder(_RawDelta).decode
_decode_key: Final = msgspec.msgpack.Decoder(PackedKey).decode
_decode_row: Final = msgspec.msgpack.Decoder(PackedSums).decode


def following(deltas: Iterable[Delta], after: Position) -> list[Delta]:
    """Return the deltas that come after a position, in order, each once.

    Raises MissingDeltas if one of them is missing or of another epoch.
    """
    newer: dict[int, Delta] = {}
    for delta in deltas:
        if delta.position.epoch != after.epoch:
            raise MissingDeltas(f"epoch {delta.position.epoch} after {after.epoch}")
        if delta.position.seq > after.seq:
            newer[delta.position.seq] = delta
    if newer and max(newer) - after.seq != len(newer):
        raise MissingDeltas(f"not all deltas from seq {after.seq} to {max(newer)} are here")
    return [newer[seq] for seq in sorted(newer)]
