"""Fields of a decision in files: the names of their columns, and how their cells are read."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from routecast.cli.replay import parsers
from routecast.cli.replay.column_reading import ColumnReading
from routecast.cli.replay.parsers import Cell, Kind, Quantity
from routecast.cli.replay.time_formats import EXCEL, ORDERS, START, UNITS
from routecast.core.decode_fields import REQUIRED
from routecast.errors import BadParameter

# Names by field, best first, without case and punctuation: `Context_Tokens` is `contexttokens`.
NAMES: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(known.split())
    for name, known in {
        "id": "id decisionid requestid callid eventid generationid uuid",
        "timestamp": "timestamp time ts datetime createdat arrival arrivaltime arrivedat starttime "
        "startedat requesttime eventtime created date when requestedat loggedat occurredat",
        "strategy": "strategy routingstrategy routerstrategy routestrategy router routername "
        "routingmode routingpolicy routingmethod",
        "provider": "provider customllmprovider llmprovider modelprovider providername "
        "selectedprovider apiprovider genaiprovidername genaisystem vendor",
        "model": "model selectedmodel chosenmodel routedmodel modelname modelused "
        "genairesponsemodel genairequestmodel responsemodel modelid llm",
        "confidence": "confidence routingconfidence routerconfidence confidencescore "
        "confidencelevel confidenceband",
        "cost": "cost costusd totalcost totalcostusd responsecost spend usd costindollars "
        "usagecost requestcost estimatedcost",
        "latency_ms": "latencyms durationms requestdurationms responsetimems elapsedms latencys "
        "latencysec latencyseconds durations durationsec durationseconds responsetimeseconds "
        "elapsedseconds latency duration responsetime elapsed ms millis milliseconds",
        "input_tokens": "inputtokens prompttokens contexttokens tokensin tokensprompt "
        "prompttokencount inputtokencount numinputtokens numprompttokens usageprompttokens "
        "usageinputtokens genaiusageinputtokens requesttokens",
        "output_tokens": "outputtokens completiontokens generatedtokens tokensout "
        "tokenscompletion completiontokencount outputtokencount numoutputtokens "
        "candidatestokencount usagecompletiontokens usageoutputtokens genaiusageoutputtokens "
        "responsetokens",
        "cached_tokens": "cachedtokens cachedinputtokens cachereadinputtokens cachereadtokens "
        "prompttokensdetailscachedtokens usagecachereadinputtokens promptcachehittokens",
        "status": "status success succeeded ok outcome statuscode error failed",
        "fallback": "fallback isfallback usedfallback fallbackused fellback",
        "reason": "reason routingreason routerreason",
        "project": "project projectname projectid teamalias",
    }.items()
}
FIELD_OF: Final = {name: field for field, names in NAMES.items() for name in names}
QUANTITIES: Final[dict[str, Quantity]] = {
    "cost": parsers.COST,
    "latency_ms": parsers.LATENCY,
    "confidence": parsers.SHARE,
    "input_tokens": parsers.TOKENS,
    "output_tokens": parsers.TOKENS,
    "cached_tokens": parsers.TOKENS,
}
_STATUS_COLUMNS: Final[dict[str, Kind]] = {
    **dict.fromkeys(("success", "succeeded", "ok"), parsers.succeeded),
    **dict.fromkeys(("error", "failed"), parsers.failure),
}
# The forms that --map accepts after the name of a column, by field; a strptime pattern has a %.
_FORMS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(NAMES, ("text",)),
    "timestamp": (*ORDERS, EXCEL, START, *UNITS),
    **dict.fromkeys(QUANTITIES, (parsers.POINT, parsers.COMMA)),
    "status": (parsers.SUCCESS, parsers.FAILED),
    "fallback": (),
}
# Hints for a column of the field that cannot be read.
HINTS: Final[dict[str, tuple[str, ...]]] = {
    "timestamp": (":%d.%m.%Y %H:%M:%S",),
    "cost": ("*FACTOR",),
    "latency_ms": ("*FACTOR",),
    "confidence": ("*0.01",),
    "status": (f":{parsers.FAILED}",),
}
_FACTORS: Final = ("cost", "latency_ms", "confidence")
NOTES: Final = {
    "dmy": "day first",
    "mdy": "month first",
    "ymd": "year first",
    EXCEL: "Excel's days",
    START: "seconds from the start, of which the last is now",
    parsers.COMMA: "decimal comma",
    parsers.FAILED: "a yes is an error",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """The part of --map after a column's name: how to read it, and a factor."""

    form: str | None = None
    factor: Decimal | None = None


def wish_for(field: str, column: str, written: str) -> Wish | None:
    """Return the form and factor of `COLUMN:FORM*FACTOR`; None if it is about another column.

    Times have no factor, and their form may be a pattern of `strptime`. Raises BadParameter if the
    field does not take such a form or factor.
    """
    rest = written.removeprefix(column)
    if not written.startswith(column) or (rest and rest[0] not in ":*"):
        return None
    form, star, factor = (rest, "", "") if field == "timestamp" else rest.partition("*")
    form = form.removeprefix(":")
    if form and form not in _FORMS[field] and not (field == "timestamp" and "%" in form):
        forms = ", ".join(_FORMS[field]) or "none"
        raise BadParameter("--map", f"{field}: there is no form {form!r}; the forms are: {forms}")
    if not star:
        return Wish(form or None)
    if field not in _FACTORS:
        raise BadParameter("--map", f"{field}: only {', '.join(_FACTORS)} take a factor")
    number = parsers.number(factor)
    if number is None:
        raise BadParameter("--map", f"{field}: the factor {factor!r} is not a number")
    return Wish(form or None, Decimal(number))


def nothing_for(field: str, wish: Wish) -> Callable[[Cell], bool]:
    """Return the function that tells whether a cell of a field holds no value."""
    if wish.form == "text":
        return parsers.blank
    named = field in (*REQUIRED, "model", "reason", "project")
    return parsers.no_name if named else parsers.no_value


def reading_for(field: str, column: str, wish: Wish) -> ColumnReading:
    """Return the reader of a column's cells if it is this field."""
    if field == "timestamp":
        if wish.form and wish.form not in (*ORDERS, EXCEL, START):
            return ColumnReading(parsers.moment_as(wish.form))
        # A small number is a serial of Excel, if it can be one.
        return ColumnReading(parsers.moment, lambda cell: parsers.number(cell) is None)
    if field in QUANTITIES:
        quantity = replace(QUANTITIES[field], factor=wish.factor)
        kind = parsers.confidence(quantity) if field == "confidence" else quantity
        # Without a comma a point is a decimal point, unless only whole numbers make sense.
        return ColumnReading(kind, lambda cell: quantity.whole or "," in str(cell))
    if field == "status":
        asked = {parsers.FAILED: parsers.failure, parsers.SUCCESS: parsers.succeeded}
        known = asked.get(wish.form) if wish.form else _STATUS_COLUMNS.get(bare(column))
        return ColumnReading(known or parsers.status)
    return ColumnReading(parsers.flag if field == "fallback" else parsers.name)


def bare(name: str) -> str:
    """Return a column's name without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
