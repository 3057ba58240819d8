"""Series in a SQLite file: their numbers, which the writer remembers, and their keys."""

from collections.abc import Iterable
from itertools import islice
from typing import Final

import apsw
import msgspec

from routecast.adapters.store.sqlite.connection import query
from routecast.core.rollup import Key, shared_key

SeriesKey = tuple[str, ...]

# Keys that are looked up in one statement, so that each statement is short.
KEYS_PER_STEP: Final = 1_000

_encode: Final = msgspec.json.Encoder().encode
_numbers: Final = msgspec.json.Decoder(list[tuple[int, int]]).decode


class SeriesNumbers:
    """The numbers of series: looks up each once, and adds new series.

    New series belong to the current transaction: call `undo` if that is undone.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._known: dict[SeriesKey, int] = {}
        self._new: list[SeriesKey] = []  # since `begin`

    def __getitem__(self, key: SeriesKey) -> int:
        return self._known[key]

    def forget(self) -> None:
        """Forget all numbers."""
        self._known.clear()
        self._new.clear()

    def begin(self) -> None:
        """Record that a transaction begins."""
        self._new.clear()

    def undo(self) -> None:
        """Forget the series that were added since `begin`."""
        for key in self._new:
            del self._known[key]
        self._new.clear()

    def learn(self, keys: Iterable[SeriesKey]) -> None:
        """Look up these series, and add new ones. Call it in a transaction that may write."""
        unknown = iter(set(keys).difference(self._known))
        while some := list(islice(unknown, KEYS_PER_STEP)):
            self._known |= self._look_up(some)
            new = [key for key in some if key not in self._known]
            if new:
                query(self._db, "add_series", _encode(new).decode())
                self._known |= self._look_up(new)
                self._new += new

    def _look_up(self, keys: list[SeriesKey]) -> dict[SeriesKey, int]:
        rows = query(self._db, "series_numbers", _encode(keys).decode())
        return {keys[place]: number for place, number in _numbers(rows[0][0])}


def series_names(db: apsw.Connection) -> dict[int, Key]:
    """Return the key of each series by its number."""
    return {row[0]: shared_key(row[1:]) for row in query(db, "series")}


def names_of_series(db: apsw.Connection, numbers: Iterable[int]) -> dict[int, Key]:
    """Return the keys of some series by their numbers."""
    sent = msgspec.json.encode(list(numbers)).decode()
    return {row[0]: shared_key(row[1:]) for row in query(db, "names_of_series", sent)}
