"""What `routecast top` shows: the choice of connections, and how each key changes it."""

from dataclasses import dataclass, replace
from typing import Final, get_args
from urllib.parse import urlencode

from routecast.protocol import STREAM_PROTOCOLS, ConnectionOrder

_ORDERS: Final[tuple[ConnectionOrder, ...]] = get_args(ConnectionOrder)
_PROTOCOLS: Final = (None, *STREAM_PROTOCOLS)
_FIRST: Final[dict[str, str]] = {
    "start": "the oldest first",
    "newest": "the newest first",
    "bytes": "most bytes first",
    "lag": "furthest behind first",
    "round_trip": "slowest answers first",
}

# The keys and their effects, as the help shows them.
TOP_HELP: Final = (
    ("s", "the next order: by start, by bytes sent, by lag, by round trip, the newest first"),
    ("p", "only the next protocol; then all of them"),
    ("c", "connections that were closed last, with code and reason; or the open ones"),
    ("? h", "show or hide this help"),
    ("q", "leave"),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Which connections are shown, and in which order."""

    sort: ConnectionOrder = "start"
    protocol: str | None = None
    subject: str | None = None
    address: str | None = None
    closed: bool = False
    limit: int = 100

    @property
    def query(self) -> str:
        """The choice as the query of `GET /v1/admin/connections`."""
        given = {
            "limit": str(self.limit),
            "subject": self.subject,
            "address": self.address,
            "protocol": self.protocol,
            "closed": "true" if self.closed else None,
            "sort": None if self.closed else self.sort,
        }
        return urlencode({name: value for name, value in given.items() if value is not None})

    @property
    def words(self) -> str:
        """A description of the choice."""
        words = ["closed connections, the last one first" if self.closed else "connections"]
        if not self.closed:
            words.append(_FIRST[self.sort])
        if self.protocol is not None:
            words.append(f"only {self.protocol}")
        if self.subject is not None:
            words.append(f"subject {self.subject}")
        if self.address is not None:
            words.append(f"address {self.address}")
        return ", ".join(words)

    def pressed(self, key: str) -> "Shown":
        """Return the choice after a key."""
        match key:
            case "s" if not self.closed:
                place = _ORDERS.index(self.sort) + 1
                return replace(self, sort=_ORDERS[place % len(_ORDERS)])
            case "p":
                place = _PROTOCOLS.index(self.protocol) + 1
                return replace(self, protocol=_PROTOCOLS[place % len(_PROTOCOLS)])
            case "c":
                return replace(self, closed=not self.closed)
        return self


def top_footer(shown: Shown, width: int) -> str:
    """Return one line that lists the keys, as many as fit."""
    protocol = shown.protocol or "all"
    for line in (
        f"q leave   s order: {shown.sort}   p protocol: {protocol}   c closed or open   ? help",
        "q leave  s order  p protocol  c closed  ? help",
        "q leave  s p c change  ? help",
    ):
        if len(line) <= width:
            return line
    return "? help"
