"""Which column of a file is which field of a decision: asked for, or guessed and said so.

Guesses go by the names people really use, and only where the first rows of the file agree.
A column named `score` is no confidence, and text of prompts never leaves the machine.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from routecast.cli import cells
from routecast.cli.cells import Cell, Convert
from routecast.errors import BadParameter

REQUIRED: Final = ("strategy", "provider")

# Names by field, best first, without case and punctuation: `Context_Tokens` is `contexttokens`.
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "id": ("id", "decisionid", "requestid", "callid", "eventid", "generationid", "uuid"),
    "timestamp": (
        *("timestamp", "time", "ts", "datetime", "createdat", "arrival", "arrivaltime"),
        *("arrivedat", "starttime", "startedat", "requesttime", "eventtime", "created", "date"),
        *("when", "requestedat", "loggedat", "occurredat"),
    ),
    "strategy": (
        *("strategy", "routingstrategy", "routerstrategy", "routestrategy", "router"),
        *("routername", "routingmode", "routingpolicy", "routingmethod"),
    ),
    "provider": (
        *("provider", "customllmprovider", "llmprovider", "modelprovider", "providername"),
        *("selectedprovider", "apiprovider", "genaiprovidername", "genaisystem", "vendor"),
    ),
    "model": (
        *("model", "selectedmodel", "chosenmodel", "routedmodel", "modelname", "modelused"),
        *("genairesponsemodel", "genairequestmodel", "responsemodel", "modelid", "llm"),
    ),
    "confidence": (
        *("confidence", "routingconfidence", "routerconfidence", "confidencescore"),
        *("confidencelevel", "confidenceband"),
    ),
    "cost": (
        *("cost", "costusd", "totalcost", "totalcostusd", "responsecost", "spend", "usd"),
        *("costindollars", "usagecost", "requestcost", "estimatedcost"),
    ),
    "latency_ms": (
        *("latencyms", "durationms", "requestdurationms", "responsetimems", "elapsedms"),
        *("latencys", "latencysec", "latencyseconds", "durations", "durationsec"),
        *("durationseconds", "responsetimeseconds", "elapsedseconds", "latency", "duration"),
        *("responsetime", "elapsed", "ms", "millis", "milliseconds"),
    ),
    "input_tokens": (
        *("inputtokens", "prompttokens", "contexttokens", "tokensin", "tokensprompt"),
        *("prompttokencount", "inputtokencount", "numinputtokens", "numprompttokens"),
        *("usageprompttokens", "usageinputtokens", "genaiusageinputtokens", "requesttokens"),
    ),
    "output_tokens": (
        *("outputtokens", "completiontokens", "generatedtokens", "tokensout", "tokenscompletion"),
        *("completiontokencount", "outputtokencount", "numoutputtokens", "candidatestokencount"),
        *("usagecompletiontokens", "usageoutputtokens", "genaiusageoutputtokens"),
        "responsetokens",
    ),
    "status": ("status", "success", "succeeded", "ok", "outcome", "statuscode", "error", "failed"),
    "fallback": ("fallback", "isfallback", "usedfallback", "fallbackused", "fellback"),
    "reason": ("reason", "routingreason", "routerreason"),
    "project": ("project", "projectname", "projectid", "teamalias"),
}
# How good an answer was is not how sure the router was; whose column means that must say so.
_SCORES: Final = frozenset({"score", "probability"})
_FAILURES: Final = frozenset({"error", "failed"})
_PRIVATE: Final = frozenset({"prompt", "prompts", "messages", "systemprompt", "userprompt"})
_NUMERIC: Final = frozenset(
    {"timestamp", "confidence", "cost", "latency_ms", "input_tokens", "output_tokens"}
)

Rows = Sequence[Mapping[str, Cell]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where one field's value comes from, how that was decided, and how a cell becomes it.

    `column` is None where `value` is every row's.
    """

    field: str
    column: str | None
    value: Any
    how: str
    convert: Convert


@dataclass(frozen=True, slots=True)
class Row:
    """One decision ready for the wire, but for its time: microseconds, or None where unknown."""

    line: int
    decision: dict[str, Any]
    at: int | None


@dataclass(frozen=True, slots=True)
class Columns:
    """The whole mapping of one file. `relative` times count from the start of the replay."""

    sources: tuple[Source, ...]
    left_out: tuple[tuple[str, str], ...]
    relative: bool

    def row(self, line: int, cells_by_column: Mapping[str, Cell]) -> Row:
        """Turn one row of the file into a decision. Raises ValueError naming field and rule."""
        decision: dict[str, Any] = {}
        for source in self.sources:
            if source.column is None:
                decision[source.field] = source.value
                continue
            cell = lookup(cells_by_column, source.column)
            if cells.nothing_known(cell) if source.field in _NUMERIC else cells.empty(cell):
                continue
            try:
                decision[source.field] = source.convert(cell)
            except ValueError as error:
                raise ValueError(f"{source.field}: {error} (column {source.column})") from None
        return Row(line, decision, decision.pop("timestamp", None))

    def has(self, field: str) -> bool:
        """Whether the field gets a value from this mapping."""
        return any(source.field == field for source in self.sources)


def lookup(row: Mapping[str, Cell], column: str) -> Cell:
    """Return the cell of a column; `usage.prompt_tokens` is the inner one of a nested object."""
    if column in row or "." not in column:
        return row.get(column)
    outer, _, inner = column.partition(".")
    nested = row.get(outer)
    return lookup(nested, inner) if isinstance(nested, Mapping) else None


def names_of(rows: Rows) -> list[str]:
    """Return the columns of the rows, in order of first sight, nested ones with dots."""
    seen: dict[str, None] = {}
    for row in rows:
        for name, cell in row.items():
            if isinstance(cell, Mapping):
                seen.update((f"{name}.{inner}", None) for inner in names_of([cell]))
            else:
                seen[name] = None
    return list(seen)


def choose(sample: Rows, mapped: Mapping[str, str], fixed: Mapping[str, str]) -> Columns:
    """Decide every field's source from the first rows and what the person asked for.

    `mapped` is field to column (empty: leave the field out; `COLUMN*FACTOR` multiplies), `fixed`
    field to value. Raises BadParameter naming the flag and the columns there are.
    """
    columns = names_of(sample)
    _check_fields(mapped, fixed)
    asked: dict[str, Source | None] = {
        **{field: _mapped(field, wish, columns, sample) for field, wish in mapped.items()},
        **{field: _fixed(field, value) for field, value in fixed.items()},
    }
    taken = {source.column for source in asked.values() if source}
    refused: dict[str, str] = {}
    sources = []
    for field in NAMES:
        source = asked[field] if field in asked else _guess(field, columns, taken, sample, refused)
        if source:
            sources.append(source)
            taken.add(source.column)
    missing = [field for field in REQUIRED if not any(s.field == field for s in sources)]
    if missing:
        raise BadParameter("FILE", _missing_words(missing, columns))
    confident = any(source.field == "confidence" for source in sources)
    left_out = tuple(
        (name, refused.get(name) or _why_left_out(name, confident))
        for name in columns
        if name not in taken
    )
    times = next((s for s in sources if s.field == "timestamp"), None)
    relative = times is not None and _time_unit(_values(times.column, sample))[1]
    return Columns(tuple(sources), left_out, relative)


def _why_left_out(column: str, confident: bool) -> str:
    if _bare(column) in _PRIVATE:
        return "never sent"
    if _bare(column) in _SCORES and not confident:
        return f"if it is the router's own confidence: --map confidence={column}"
    return ""


def _check_fields(mapped: Mapping[str, str], fixed: Mapping[str, str]) -> None:
    for flag, fields in (("--map", mapped), ("--set", fixed)):
        for field in fields:
            if field not in NAMES:
                raise BadParameter(flag, f"there is no field {field!r}; {_listed(NAMES)}")
    if both := sorted(mapped.keys() & fixed.keys()):
        raise BadParameter("--set", f"{both[0]} has a --map as well; use one of the two")
    if "id" in fixed:
        raise BadParameter("--set", "with one id for every row they would count as one decision")


def _missing_words(missing: Sequence[str], columns: Sequence[str]) -> str:
    flags = " ".join(f"--set {field}=VALUE" for field in missing)
    noun = "it" if len(missing) == 1 else "them"
    return (
        f"no column is clearly the {' or the '.join(missing)}. "
        f"Name {noun} with --map {missing[0]}=COLUMN, or give every row one value: {flags}.\n"
        f"{_listed(columns, 'columns')}"
    )


def _listed(names: Sequence[str] | Mapping[str, object], noun: str = "fields") -> str:
    return f"The {noun} are: {', '.join(names)}"


# -- one field --------------------------------------------------------------------------------


def _fixed(field: str, value: str) -> Source:
    convert = _converter(field, field, [value])[0]
    try:
        return Source(field, None, convert(value), "--set", convert)
    except ValueError as error:
        raise BadParameter("--set", f"{field}: {error}") from None


def _mapped(field: str, wish: str, columns: Sequence[str], sample: Rows) -> Source | None:
    if not wish:
        return None
    column, factor = wish, None
    if wish not in columns:
        column, _, written = wish.rpartition("*")
        if column not in columns:
            raise BadParameter(
                "--map", f"there is no column {wish!r} for {field}. {_listed(columns, 'columns')}"
            )
        try:
            factor = Decimal(cells.number(written))
        except ValueError as error:
            raise BadParameter("--map", f"{field}: the factor {error}") from None
    if _bare(column) in _PRIVATE:
        raise BadParameter("--map", f"{field}: {column} holds prompts, which are never sent")
    if factor is not None and field in ("cost", "latency_ms", "confidence"):
        return Source(field, column, None, f"--map, times {factor}", cells.times(factor))
    if factor is not None:
        raise BadParameter("--map", f"{field}: only cost, latency_ms and confidence take a factor")
    convert, note = _converter(field, column, _values(column, sample))
    return Source(field, column, None, _joined("--map", note), convert)


def _guess(
    field: str,
    columns: Sequence[str],
    taken: set[str | None],
    sample: Rows,
    refused: dict[str, str],
) -> Source | None:
    candidates = sorted(
        (NAMES[field].index(_bare(name)), name)
        for name in columns
        if name not in taken and _bare(name) in NAMES[field]
    )
    usable = []
    for rank, column in candidates:
        values = _values(column, sample)
        convert, note = _converter(field, column, values)
        if problem := _misfit(field, column, values, convert):
            refused[column] = f"not taken as {field}: {problem}"
        else:
            usable.append((not values, rank, column, convert, note))
    if not usable:
        return None
    # A column with values wins over an empty one of a better name.
    _, _, column, convert, note = min(usable, key=lambda choice: choice[:2])
    how = "same name" if column == field else "guessed from its name"
    return Source(field, column, None, _joined(how, note), convert)


def _misfit(field: str, column: str, values: Sequence[Cell], convert: Convert) -> str:
    """Return why a well-named column is not the field after all; empty where it is."""
    good = sum(_fits(convert, value) for value in values)
    if field == "confidence":
        in_range = sum(_fits(_confidence_in_range, value) for value in values)
        return "" if in_range == len(values) else "not always 0 to 1, or high, medium, low"
    if field == "id" and column != "id" and len(set(map(str, values))) < len(values):
        return "its values repeat"
    # A few bad cells are rejected by row; a column that is mostly bad is another thing.
    return "" if 2 * good >= len(values) else "its values do not fit"


def _confidence_in_range(cell: Cell) -> None:
    value = cells.confidence(cell)
    if not isinstance(value, str) and not 0 <= value <= 1:
        raise ValueError


def _fits(convert: Callable[[Cell], object], cell: Cell) -> bool:
    try:
        convert(cell)
    except ValueError:
        return False
    return True


def _values(column: str | None, sample: Rows) -> list[Cell]:
    if column is None:
        return []
    found = (lookup(row, column) for row in sample)
    return [cell for cell in found if not cells.nothing_known(cell)]


def _converter(field: str, column: str, values: Sequence[Cell]) -> tuple[Convert, str]:
    """Return how the cells become the field, and what of that a person should be told."""
    match field:
        case "timestamp":
            return _times(values)
        case "latency_ms":
            return _latency(column, values)
        case "cost":
            return cells.number, ""
        case "confidence":
            return cells.confidence, ""
        case "input_tokens" | "output_tokens":
            return cells.whole, ""
        case "fallback":
            return cells.flag, ""
        case "status":
            failure = _bare(column) in _FAILURES
            return (cells.failed, "true is error") if failure else (cells.status, "")
    return cells.text, ""


def _times(values: Sequence[Cell]) -> tuple[Convert, str]:
    unit, relative = _time_unit(values)
    if relative:
        return cells.moment(unit), "seconds from the start"
    if not all(map(cells.names_offset, values)):
        return cells.moment(unit), "no offset given, read as UTC"
    return cells.moment(unit), "" if unit == 1 else f"Unix time, {unit:,} to the second"


def _time_unit(values: Sequence[Cell]) -> tuple[int, bool]:
    """Return units per second, and whether numbers count from the start: by their size."""
    numbers = [Decimal(cells.number(v)) for v in values if _fits(cells.number, v)]
    largest = max(map(abs, numbers), default=None)
    if largest is None:
        return 1, False
    # Seconds since 1970 passed 10**8 in 1973 and reach 10**11 in the year 5138.
    unit = next((u for u in (1, 10**3, 10**6) if largest < u * 10**11), 10**9)
    return unit, largest < 10**8


def _latency(column: str, values: Sequence[Cell]) -> tuple[Convert, str]:
    bare = _bare(column)
    if re.search(r"(ms|millis|milliseconds)$", bare):
        return cells.number, ""
    if re.search(r"(latency|duration|time|elapsed)(s|sec|secs|seconds)$", bare):
        return cells.times(Decimal(1000)), "seconds, times 1,000"
    numbers = sorted(Decimal(cells.number(v)) for v in values if _fits(cells.number, v))
    # No unit in the name: fractions whose median is under a minute are seconds.
    if numbers and numbers[len(numbers) // 2] < 60 and any(n % 1 for n in numbers):
        return cells.times(Decimal(1000)), "taken as seconds, times 1,000"
    return cells.number, "taken as milliseconds"


def _joined(how: str, note: str) -> str:
    return f"{how}; {note}" if note else how


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
