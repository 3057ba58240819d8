"""The query of `GET /v1/admin/connections`: which connections, in which order, from where on."""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple, cast, get_args

from routecast.core.connection_ids import read_id
from routecast.core.view import only, read_parameters
from routecast.errors import BadParameter
from routecast.protocol import DEFAULT_PAGE, MAX_PAGE, STREAM_PROTOCOLS, ConnectionOrder

CONNECTION_PARAMETERS: Final = (
    *("id", "subject", "address", "protocol", "node", "search", "code"),
    *("sort", "limit", "after", "closed"),
)
_AFTER: Final = re.compile(r"([0-9]{1,19})-([0-9]{1,19})", re.ASCII)
# Characters of a text that is searched for.
MAX_SEARCH: Final = 100
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
    the first or the newest one first, or by a number, the largest first; closed ones by their end,
    the last one first. `node` is the only node to ask. `search` is in lower case.
    """

    subject: str | None = None
    address: str | None = None
    protocol: str | None = None
    sort: ConnectionOrder = "start"
    limit: int = DEFAULT_PAGE
    after: Place | None = None
    closed: bool = False
    node: str | None = None
    search: str | None = None
    code: int | None = None
    identity: int | None = None

    def finds(self, *texts: str) -> bool:
        """Whether one of the texts contains what is searched for."""
        return self.search is None or any(self.search in text.lower() for text in texts)

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
    if closed == "false" and "code" in given:
        raise BadParameter("code", "open connections have none yet; add closed=true")
    search = given.get("search", "").strip()
    if len(search) > MAX_SEARCH:
        raise BadParameter("search", f"must have at most {MAX_SEARCH} characters")
    return ConnectionsQuery(
        subject=given.get("subject"),
        address=given.get("address"),
        protocol=protocol,
        sort=cast(ConnectionOrder, given.get("sort", orders[0])),
        limit=_limit(given["limit"]) if "limit" in given else DEFAULT_PAGE,
        after=_place(given["after"]) if "after" in given else None,
        closed=closed == "true",
        node=given.get("node"),
        search=search.lower() or None,
        code=_code(given["code"]) if "code" in given else None,
        identity=_identity(given["id"]) if "id" in given else None,
    )


def _identity(text: str) -> int:
    identity = read_id(text)
    if identity is None:
        raise BadParameter("id", "must be the id of a connection")
    return identity


def _code(text: str) -> int:
    code = int(text) if _WHOLE.fullmatch(text) else 0
    if not 1_000 <= code <= 4_999:
        raise BadParameter("code", "must be a close code, from 1000 to 4999")
    return code


def _limit(text: str) -> int:
    limit = int(text) if _WHOLE.fullmatch(text) else 0
    if not 1 <= limit <= MAX_PAGE:
        raise BadParameter("limit", f"must be a whole number from 1 to {MAX_PAGE:,}")
    return limit


def _place(text: str) -> Place:
    found = _AFTER.fullmatch(text)
    if found is None or max(int(found[1]), int(found[2])) >= 2**63:  # nodes send 64 bits
        raise BadParameter("after", "must be the member `next` of the page before")
    return Place(-int(found[1]), int(found[2]))
