"""The query of `GET /v1/admin/connections`: which connections, in which order, from where on."""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple, cast, get_args

from routecast.core.view import only, read_parameters
from routecast.errors import BadParameter
from routecast.protocol import DEFAULT_PAGE, MAX_PAGE, STREAM_PROTOCOLS, ConnectionOrder

CONNECTION_PARAMETERS: Final = (
    *("subject", "address", "protocol", "sort", "limit", "after", "closed"),
)
_AFTER: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,20})", re.ASCII)
_WHOLE: Final = re.compile(r"[0-9]{1,6}", re.ASCII)


class Place(NamedTuple):
    """The place of a connection in the order of a list; the first one is the least."""

    rank: int
    identity: int

    def __str__(self) -> str:
        """The place as the parameter `after` has it."""
        return f"{-self.rank}-{self.identity}"


@dataclass(frozen=True, slots=True)
class ConnectionsQuery:
    """A page of open or closed connections. A filter of None passes all.

    `after` is the place of the last one on the page before. Open connections are sorted by start,
    the first one first, or by bytes or lag, the largest first; closed ones by their end, the last
    one first.
    """

    subject: str | None = None
    address: str | None = None
    protocol: str | None = None
    sort: ConnectionOrder = "start"
    limit: int = DEFAULT_PAGE
    after: Place | None = None
    closed: bool = False

    def matches(self, subject: str, address: str, protocol: str) -> bool:
        """Whether a connection is in the list."""
        return (
            (self.protocol is None or self.protocol == protocol)
            and (self.address is None or self.address == address)
            and (self.subject is None or self.subject == subject)
        )


def parse_connections_query(query: bytes | str) -> ConnectionsQuery:
    """Read a query string. Raises BadParameter, naming the parameter."""
    lists = read_parameters(query, CONNECTION_PARAMETERS)
    given = {name: only(name, lists) for name in CONNECTION_PARAMETERS if name in lists}
    closed = given.get("closed", "false")
    if closed not in ("true", "false"):
        raise BadParameter("closed", "must be true or false")
    protocol = given.get("protocol")
    if protocol is not None and protocol not in STREAM_PROTOCOLS:
        raise BadParameter("protocol", f"must be one of {', '.join(STREAM_PROTOCOLS)}")
    orders = get_args(ConnectionOrder)
    if given.get("sort", orders[0]) not in orders:
        raise BadParameter("sort", f"must be one of {', '.join(orders)}")
    if closed == "true" and "sort" in given:
        raise BadParameter("sort", "closed connections are always sorted by their end")
    return ConnectionsQuery(
        subject=given.get("subject"),
        address=given.get("address"),
        protocol=protocol,
        sort=cast(ConnectionOrder, given.get("sort", orders[0])),
        limit=_limit(given["limit"]) if "limit" in given else DEFAULT_PAGE,
        after=_place(given["after"]) if "after" in given else None,
        closed=closed == "true",
    )


def _limit(text: str) -> int:
    limit = int(text) if _WHOLE.fullmatch(text) else 0
    if not 1 <= limit <= MAX_PAGE:
        raise BadParameter("limit", f"must be a whole number from 1 to {MAX_PAGE:,}")
    return limit


def _place(text: str) -> Place:
    found = _AFTER.fullmatch(text)
    if found is None:
        raise BadParameter("after", "must be the member `next` of the page before")
    return Place(-int(found[1]), int(found[2]))
