"""Views: the fields, filters and window of a client. Equal views share one document."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from routecast.core.decision import MINUTE
from routecast.core.rollup import Key
from routecast.core.texts import spellings
from routecast.errors import BadParameter
from routecast.protocol import (
    DEFAULT_FIELDS,
    DEFAULT_INTERVAL,
    FIELDS,
    MAX_FILTER_VALUES,
    MAX_INTERVAL,
    MIN_INTERVAL,
    WINDOWS,
    Filters,
)

_DECIMAL: Final = re.compile(r"\d{1,4}(\.\d{1,20})?", re.ASCII)
FILTERS: Final = ("strategy", "provider", "model", "project")
INTERVAL_RULE: Final = f"must be a number of seconds from {MIN_INTERVAL:g} to {MAX_INTERVAL:g}"
VIEW_PARAMETERS: Final = ("fields", *FILTERS, "window", "interval")
# Proxies and pages add parameters of their own, such as `_` and `nocache`, which are ignored. A
# name that is this similar to one of ours (`difflib`'s ratio) is refused as misspelt: if it were
# ignored, the client would get other numbers than it asked for.
MISSPELT_RATIO: Final = 0.75
MAX_CHECKED_NAMES: Final = 20  # unknown names that are compared; each takes a few microseconds
MAX_FILTER_NAME: Final = 128
# Keeps the request line under the 8 KiB that servers and proxies commonly accept.
MAX_QUERY: Final = 7_000

Filter = frozenset[str] | None
# The index of a field of a key, and the names that pass the filter.
FilterPart = tuple[int, frozenset[str]]
_FILTER_INDEXES: Final = {name: Key._fields.index(name) for name in FILTERS}


class Selection(NamedTuple):
    """The decisions of a view; views that differ only in their fields share it.

    `length` is the number of whole minutes of the window, before the running minute; None means all
    time. `parts` are the filters. `histogram`: latencies are needed.
    """

    length: int | None
    parts: tuple[FilterPart, ...] = ()
    histogram: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """The fields, filters and window that a client asked for. A filter of None passes all."""

    fields: tuple[str, ...] = DEFAULT_FIELDS
    strategy: Filter = None
    provider: Filter = None
    model: Filter = None
    project: Filter = None
    window: str = "all"

    def matches(self, key: Key) -> bool:
        """Whether decisions of this key belong to the view."""
        return (
            (self.strategy is None or key.strategy in self.strategy)
            and (self.provider is None or key.provider in self.provider)
            and (self.model is None or key.model in self.model)
            and (self.project is None or key.project in self.project)
        )

    @property
    def parts(self) -> tuple[FilterPart, ...]:
        """The filters that are set."""
        filters = ((name, getattr(self, name)) for name in FILTERS)
        return tuple((_FILTER_INDEXES[name], names) for name, names in filters if names is not None)

    @property
    def selections(self) -> tuple[Selection, ...]:
        """The selections that the document is made of.

        The first one is the window. If the view has a rate, the second one is the running minute,
        and the third one that and the minute before it.
        """
        parts = self.parts
        whole = Selection(WINDOWS[self.window], parts, "latency_ms" in self.fields)
        if "rate" not in self.fields:
            return (whole,)
        return whole, Selection(0, parts), Selection(1, parts)

    def time_key(self, now: int) -> int:
        """Return a key that changes whenever the passing of time alone can change the document.

        With a rate it is `now` (microseconds), with a bounded window the minute, otherwise 0.
        """
        return now if "rate" in self.fields else 0 if self.window == "all" else now // MINUTE

    @property
    def timeless(self) -> bool:
        """Whether the document depends on the position alone, not on time or the node."""
        return self.window == "all" and not {"rate", "savings"} & set(self.fields)

    @property
    def filtered(self) -> bool:
        """Whether any filter is set."""
        return not (self.strategy is self.provider is self.model is self.project is None)

    @property
    def plain(self) -> bool:
        """Whether it is the view of a stream without parameters."""
        return self.fields == DEFAULT_FIELDS and self.window == "all" and not self.filtered

    @property
    def size(self) -> int:
        """The memory of the filters, in bytes."""
        filters = (self.strategy, self.provider, self.model, self.project)
        given = [names for names in filters if names is not None]
        return sum(sys.getsizeof(names) + sum(map(sys.getsizeof, names)) for names in given)


@dataclass(frozen=True, slots=True)
class ViewSubscription:
    """A view, and its interval in seconds."""

    view: View = View()
    interval: float = DEFAULT_INTERVAL


def parse_query(query: bytes | str, *, interval: float = DEFAULT_INTERVAL) -> ViewSubscription:
    """Read the query string that `/ws/metrics` and its siblings share.

    `interval` is the default, in seconds. Unknown parameters are ignored, unless they look like a
    misspelt known one. Raises BadParameter, naming the parameter.
    """
    given = read_parameters(query, VIEW_PARAMETERS)
    view = View(
        fields=_fields(given["fields"]) if "fields" in given else DEFAULT_FIELDS,
        window=_window(only("window", given)) if "window" in given else "all",
        **read_filters(given),
    )
    return ViewSubscription(
        view, _interval(only("interval", given)) if "interval" in given else interval
    )


def make_view(fields: Sequence[str] | None, filters: Filters | None, window: str | None) -> View:
    """Return the view that a message asks for. Raises BadParameter, naming the field."""
    given = msgspec.structs.asdict(filters or Filters())
    return View(
        fields=_fields(fields) if fields is not None else DEFAULT_FIELDS,
        window=_window(window) if window is not None else "all",
        **{name: values and spellings(values) for name, values in given.items()},
    )


def read_parameters(query: bytes | str, known: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each parameter in a query string.

    Raises BadParameter if it cannot be read, or has a name that looks like a misspelt known one.
    """
    text = query.decode("latin-1") if isinstance(query, bytes) else query
    if len(text) > MAX_QUERY:
        raise BadParameter("query", f"must be at most {MAX_QUERY:,} characters in all")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=1000, errors="strict")
    except ValueError:
        raise BadParameter("query", "must be UTF-8, with at most 1,000 parameters") from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    for name in islice((name for name in given if name not in known), MAX_CHECKED_NAMES):
        if meant := get_close_matches(name[:MAX_FILTER_NAME].lower(), known, 1, MISSPELT_RATIO):
            raise BadParameter(
                name[:MAX_FILTER_NAME], f"no such parameter; did you mean {meant[0]}?"
            )
    return given


def read_filters(given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the filters among some parameters. Raises BadParameter."""
    return {name: _filter(name, given[name]) for name in FILTERS if name in given}


def only(name: str, given: Mapping[str, Sequence[str]]) -> str:
    """Return the value of a parameter that may be given once. Raises BadParameter."""
    values = given[name]
    if len(values) > 1:
        raise BadParameter(name, "must be given once")
    return values[0]


def _fields(values: Sequence[str]) -> tuple[str, ...]:
    asked = {name.strip() for value in values for name in value.split(",")}
    unknown = sorted(asked - set(FIELDS))
    if unknown:
        wrong = unknown[0][:MAX_FILTER_NAME]
        raise BadParameter("fields", f"{wrong!r} is not one of {', '.join(FIELDS)}")
    # In the order of the protocol, so that equal requests are equal views.
    return tuple(name for name in FIELDS if name in asked)


def _filter(name: str, values: Sequence[str]) -> Filter:
    chosen = frozenset(values)
    if len(chosen) > MAX_FILTER_VALUES:
        raise BadParameter(name, f"at most {MAX_FILTER_VALUES} values")
    for value in chosen:
        if not 0 < len(value) <= MAX_FILTER_NAME:
            raise BadParameter(name, f"must be 1 to {MAX_FILTER_NAME} characters")
    return spellings(chosen)


def _window(value: str) -> str:
    if value not in WINDOWS:
        raise BadParameter("window", f"must be one of {', '.join(WINDOWS)}")
    return value


def _interval(value: str) -> float:
    seconds = float(value) if _DECIMAL.fullmatch(value) else -1.0
    if not MIN_INTERVAL <= seconds <= MAX_INTERVAL:
        raise BadParameter("interval", INTERVAL_RULE)
    return seconds
