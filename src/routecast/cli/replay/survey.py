"""`Survey`: finds out which column of a file is which field, and how its cells are read.

Names decide which column is a field: usual names, or those in --map. All rows decide how it is
read. A person must settle every doubt. A score is never taken as a confidence, and the text of
prompts is never sent.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import msgspec

from routecast.cli.replay import parsers
from routecast.cli.replay.column_mapping import Columns, FieldSource
from routecast.cli.replay.column_reading import ColumnReading, Doubt, form_of, reader
from routecast.cli.replay.fields import (
    FIELD_OF,
    HINTS,
    NAMES,
    NOTES,
    QUANTITIES,
    Wish,
    bare,
    nothing_for,
    reading_for,
    wish_for,
)
from routecast.cli.replay.parsers import Cell
from routecast.cli.replay.time_formats import ORDERS, START, moments, names_offset, readable
from routecast.core.decode_fields import REQUIRED
from routecast.core.numbers import product
from routecast.core.times import unix_time
from routecast.errors import BadParameter, RoutecastError

# The quality of an answer is not the confidence of the router: such a column needs --map.
_SCORES: Final = frozenset({"score", "probability"})
_PRIVATE: Final = frozenset({"prompt", "prompts", "messages", "systemprompt", "userprompt"})
# The maximum number of ids that are checked for repetition; each takes about 150 bytes.
_MOST_IDS: Final = 1_000_000
# The maximum number of columns that are surveyed; further ones are left out. Keys of objects in
# JSON lines are columns too.
MAX_COLUMNS: Final = 1_000
# The maximum number of names in a list.
_LISTED: Final = 20
# The number of cells that decide whether a column without a known name has times.
_PEEK_CELLS: Final = 20
_YEAR_2000: Final = 946_684_800_000_000
_DEEPEST: Final = 8
# The first time of a column of seconds from the start is within a day.
_LATEST_START: Final = 86_400

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Uncertain(RoutecastError):
    """Some columns are uncertain; the text names them, and the options that settle it."""


@dataclass(slots=True)
class _Candidate:
    """A column that may be a field: by its name, or because --map says so (`mapped`).

    `same` and `other` count the rows with an id that an earlier row has, by whether they are equal.
    """

    field_name: str
    column: str
    wish: Wish
    mapped: bool
    reading: ColumnReading
    nothing: Callable[[Cell], bool]
    empty: int = 0
    largest: Decimal | int = 0
    rows: dict[str, int] = field(default_factory=dict)
    same: int = 0
    other: int = 0

    def add(self, cell: Cell, row: Mapping[str, Cell]) -> None:
        if self.nothing(cell):
            self.empty += 1
            return
        self.reading.add(cell)
        if self.field_name == "timestamp" and (number := parsers.number(cell)) is not None:
            self.largest = max(self.largest, number)
        if self.field_name == "id" and len(self.rows) < _MOST_IDS:
            identity, content = str(cell).strip(), hash(_encode(row))
            if identity in self.rows:
                self.same += self.rows[identity] == content
                self.other += self.rows[identity] != content
            self.rows.setdefault(identity, content)


class Survey:
    """The possible meanings of a file's columns: `add` every row, then `choose`.

    `mapped` has `COLUMN:FORM*FACTOR` by field (empty: leave the field out), `fixed` a value by
    field. Raises BadParameter naming the flag.
    """

    def __init__(self, mapped: Mapping[str, str], fixed: Mapping[str, str]) -> None:
        _check_fields(mapped, fixed)
        self._mapped = {name: written for name, written in mapped.items() if written}
        self._asked = {*mapped, *fixed}
        self._fixed = {name: _fixed(name, value) for name, value in fixed.items()}
        self._columns: dict[str, list[_Candidate]] = {}
        self._peeks: dict[str, list[Cell]] = {}

    def add(self, row: Mapping[str, Cell]) -> None:
        """Add one row."""
        for column, cell in _flat(row):
            candidates = self._columns.get(column)
            if candidates is None:
                if len(self._columns) >= MAX_COLUMNS:
                    continue
                candidates = self._columns[column] = list(self._candidates(column))
            for candidate in candidates:
                candidate.add(cell, row)
            if not candidates and not parsers.no_value(cell):
                peek = self._peeks.setdefault(column, [])
                if len(peek) < _PEEK_CELLS:
                    peek.append(cell)

    def check_names(self) -> None:
        """Raise BadParameter if a required column is missing."""
        there = f"The columns are: {listed(self._columns)}"
        for name, written in self._mapped.items():
            if not self._of(name):
                raise BadParameter("--map", f"there is no column {written!r} for {name}. {there}")
        missing = [name for name in REQUIRED if not self._of(name) and name not in self._fixed]
        if missing:
            flags = " ".join(f"--set {name}=VALUE" for name in missing)
            noun = "it" if len(missing) == 1 else "them"
            raise BadParameter(
                "FILE",
                f"no column is clearly the {' or the '.join(missing)}. Name {noun} with "
                f"--map {missing[0]}=COLUMN, or give every row one value: {flags}.\n{there}",
            )

    def choose(self) -> Columns:
        """Decide where every field comes from, and how its cells are read.

        Raises BadParameter if a column is missing, Uncertain if its meaning is uncertain.
        """
        self.check_names()
        chosen = {name: best for name in NAMES if (best := self._best(name))}
        proven = {way for name in QUANTITIES for c in self._of(name) for way in c.reading.proven}
        sources = dict(self._fixed)
        doubts = []
        for name, candidate in chosen.items():
            try:
                sources[name] = _source(candidate, proven)
            except Doubt as doubt:
                doubts.append(_advice(candidate, doubt))
        taken = {candidate.column for candidate in chosen.values()}
        if "timestamp" not in chosen and "timestamp" not in self._asked:
            doubts += self._unclaimed_times()
        if doubts:
            raise Uncertain("\n".join(doubts))
        times, start = chosen.get("timestamp"), NOTES[START]
        relative = times is not None and start in sources["timestamp"].how
        confident = "confidence" in sources
        return Columns(
            tuple(sources[name] for name in NAMES if name in sources),
            tuple((n, self._why_left_out(n, confident)) for n in self._columns if n not in taken),
            unix_time(times.largest) if times and relative else None,
            tuple(_id_warnings(chosen["id"])) if "id" in chosen else (),
        )

    def _candidates(self, column: str) -> Iterator[_Candidate]:
        """Yield the fields that a column may be."""
        for name, written in self._mapped.items():
            if wish := wish_for(name, column, written):
                if bare(column) in _PRIVATE:
                    words = f"{name}: {column} holds prompts, which are never sent"
                    raise BadParameter("--map", words)
                yield self._candidate(name, column, wish, mapped=True)
        name = FIELD_OF.get(bare(column), "")
        if name and name not in self._asked:
            yield self._candidate(name, column, Wish(), mapped=False)

    def _candidate(self, name: str, column: str, wish: Wish, *, mapped: bool) -> _Candidate:
        reading, nothing = reading_for(name, column, wish), nothing_for(name, wish)
        return _Candidate(name, column, wish, mapped, reading, nothing)

    def _of(self, name: str) -> list[_Candidate]:
        return [c for found in self._columns.values() for c in found if c.field_name == name]

    def _best(self, name: str) -> _Candidate | None:
        """Return the column of a field: the one that --map names, or the best name with values."""
        found = self._of(name)
        if name in self._mapped:
            return max(found, key=lambda c: len(c.column))
        taken = {other.column for mapped in self._mapped for other in self._of(mapped)}
        usable = [c for c in found if c.column not in taken and c.reading.sample]
        if not usable and name in REQUIRED:
            usable = found  # each row then says that it has none
        return min(usable, key=lambda c: NAMES[name].index(bare(c.column)), default=None)

    def _why_left_out(self, column: str, confident: bool) -> str:
        if bare(column) in _PRIVATE:
            return "never sent"
        if bare(column) in _SCORES and not confident:
            return f"if it is the router's own confidence: --map confidence={column}"
        return "empty" if any(not c.reading.sample for c in self._columns[column]) else ""

    def _unclaimed_times(self) -> Iterator[str]:
        """Yield warnings about columns of times with unknown names."""
        for column, peek in self._peeks.items():
            if all(_is_time(column, cell) for cell in peek):
                yield (
                    f"{column} holds times, and no column is known to be the timestamp. Settle it "
                    f"with {_option('timestamp', column)}, or --map timestamp= (all count as made "
                    "when they are received)."
                )


def _is_time(column: str, cell: Cell) -> bool:
    """Whether a cell is a date of this century, or a Unix time in a column named like a time."""
    number = parsers.number(cell) if re.search("time|date|stamp|epoch", column.lower()) else None
    found = moments(str(cell).strip(), number)
    return any(found.get(order, 0) >= _YEAR_2000 for order in ORDERS)


def listed(names: Iterable[str]) -> str:
    """Return names as a list with commas: the first of them, and how many more there are."""
    first = list(names)
    more = f" and {len(first) - _LISTED:,} more" if len(first) > _LISTED else ""
    return ", ".join(first[:_LISTED]) + more


def _flat(row: Mapping[str, Cell], prefix: str = "") -> Iterator[tuple[str, Cell]]:
    """Yield the columns of a row, nested ones with dots."""
    for name, cell in row.items():
        if isinstance(cell, Mapping) and prefix.count(".") < _DEEPEST:
            yield from _flat(cell, f"{prefix}{name}.")
        else:
            yield prefix + name, cell


def _check_fields(mapped: Mapping[str, str], fixed: Mapping[str, str]) -> None:
    for flag, fields in (("--map", mapped), ("--set", fixed)):
        for name in fields:
            if name not in NAMES:
                known = ", ".join(NAMES)
                raise BadParameter(flag, f"there is no field {name!r}; the fields are: {known}")
    if both := sorted(mapped.keys() & fixed.keys()):
        raise BadParameter("--set", f"{both[0]} has a --map as well; use one of the two")
    if "id" in fixed:
        raise BadParameter("--set", "with one id for every row they would count as one decision")


# -- one column ---------------------------------------------------------------------------------


def _fixed(name: str, value: str) -> FieldSource:
    reading = reading_for(name, name, Wish())
    reading.add(value)
    try:
        way = reading.decide((), asked=None, lenient=False)
        convert, _ = _converter(name, name, reading, way, Wish())
        return FieldSource(name, None, convert(value), "--set", convert)
    except ValueError as error:
        words = str(error) or f"{value!r} can be read in several ways"
        raise BadParameter("--set", f"{name}: {words}") from None


def _source(candidate: _Candidate, proven: set[str]) -> FieldSource:
    """Decide how a column is read. Raises Doubt."""
    name, column, wish = candidate.field_name, candidate.column, candidate.wish
    reading, mapped = candidate.reading, candidate.mapped
    way = reading.decide(proven, asked=wish.form, lenient=mapped)
    if candidate.other and not mapped:
        raise Doubt(
            f"{candidate.other:,} rows have the id of another row and differ from it, "
            "so they would not be counted"
        )
    convert, note = _converter(name, column, reading, way, wish)
    how = "--map" if mapped else "same name" if column == name else "by its name"
    return FieldSource(
        name, column, None, f"{how}; {note}" if note else how, convert, candidate.nothing
    )


def _converter(
    name: str, column: str, reading: ColumnReading, way: str, wish: Wish
) -> tuple[Callable[[Cell], Any], str]:
    """Return the reader of a field's cells, and a note about it for the user."""
    read = reader(reading.kind, way)
    note = NOTES.get(form_of(way), "") if reading.matters(way) else ""
    if name == "timestamp":
        return read, _time_note(reading.sample, way, note, asked=wish.form is not None)
    if name not in QUANTITIES:
        return read, note
    factor = Decimal(1)
    if wish.factor is not None:
        note = f"times {wish.factor}"
    elif way.endswith("unit"):
        note = f"{note}, with unit" if note else "with unit"
    elif name == "latency_ms":
        values = [value for cell in reading.sample if (value := _tried(read, cell)) is not None]
        factor, unit = _latency_unit(column, values)
        note = ", ".join(filter(None, (note, unit)))
    checked = QUANTITIES[name].checked

    def convert(cell: Cell) -> Any:
        value = read(cell)
        if isinstance(value, str):
            return value
        return checked(value if factor == 1 else product(value, factor))

    return convert, note


def _tried(read: Callable[[Cell], Any], cell: Cell) -> Any:
    try:
        return read(cell)
    except ValueError:
        return None


def _time_note(sample: Sequence[Cell], way: str, note: str, *, asked: bool) -> str:
    """Return the note about a column of times. Raises Doubt if its numbers cannot be times."""
    texts = [str(cell).strip() for cell in sample]
    numbers = [number for cell in sample if (number := parsers.number(cell)) is not None]
    if way == START and not asked:
        rising = numbers == sorted(numbers) and (len(numbers) == 1 or numbers[0] < numbers[-1])
        if not rising or numbers[0] >= _LATEST_START:
            words = f"numbers from {min(numbers)} to {max(numbers)} are not times"
            raise Doubt(words, forms=(f":{START}",))
    if numbers and not any(moments(text, None) for text in texts):
        return note or "Unix time"
    naive = not all(map(names_offset, texts))
    return "; ".join(filter(None, (note, "no offset given, read as UTC" if naive else "")))


def _latency_unit(column: str, values: Sequence[Decimal | int]) -> tuple[Decimal, str]:
    """Return the factor from bare numbers to milliseconds, and a note. Raises Doubt.

    If the name has no unit, the values decide, if only one unit makes sense for the answers of
    models: fractions below ten are seconds, 100 to 60,000 are milliseconds.
    """
    if re.search(r"(ms|millis|milliseconds)$", bare(column)):
        return Decimal(1), ""
    if re.search(r"(latency|duration|time|elapsed)(s|sec|secs|seconds)$", bare(column)):
        return Decimal(1000), "seconds, times 1,000"
    middle = sorted(values)[len(values) // 2] if any(values) else 100
    if middle < 10 and any(value % 1 for value in values):
        return Decimal(1000), "taken as seconds, times 1,000"
    if 100 <= middle <= 60_000:
        return Decimal(1), "taken as milliseconds"
    words = f"numbers about {middle:,.0f} may be milliseconds (*1) or seconds (*1000)"
    raise Doubt(words, forms=("*1", "*1000"))


# -- messages -----------------------------------------------------------------------------------


def _advice(candidate: _Candidate, doubt: Doubt) -> str:
    """Return the message about an uncertain column, with the options that settle it."""
    name, column, words = candidate.field_name, candidate.column, str(doubt)
    taken, without = "as far as it can be read", "without it"
    if name == "id":
        taken, without = "each id counts once", "each row counts"
    ways = []
    if doubt.ways:
        words = f"{parsers.shown(doubt.example)} can be read in {len(doubt.ways)} ways"
        values = candidate.reading.kind(doubt.example)
        shown = readable if name == "timestamp" else str
        ways += [
            f"{_option(name, column, f':{form_of(way)}')} ({shown(values[way])})"
            for way in doubt.ways
        ]
    else:
        ways += [_option(name, column, form) for form in doubt.forms or HINTS.get(name, ())]
        if candidate.reading.usable and not candidate.mapped:
            ways.append(f"{_option(name, column)} ({taken})")
        ways.append(f"--map {name}=COLUMN (another one)")
    ways.append(f"--map {name}= ({without})")
    return f"{column} ({name}): {words}. Settle it with {', or '.join(ways)}."


def _option(name: str, column: str, more: str = "") -> str:
    return f"--map {shlex.quote(f'{name}={column}{more}')}"


def _id_warnings(candidate: _Candidate) -> Iterator[str]:
    if candidate.empty:
        yield f"Rows without an id in column {candidate.column}: {candidate.empty:,}; one is made."
    if candidate.other:
        yield f"Rows with the id of another row: {candidate.other:,}; each id counts once."
    if candidate.same:
        yield f"Rows that repeat another row, id and all: {candidate.same:,}; they count once."
