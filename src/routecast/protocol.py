"""The wire contract: messages, names, limits and close codes of HTTP and WebSockets.

Imports only the standard library and msgspec, so that clients can share it.
"""

from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

# -- time ---------------------------------------------------------------------------------------

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


def rfc3339(moment: int) -> str:
    """Format microseconds since 1970 as RFC 3339 in UTC, always with six decimals."""
    return (EPOCH + timedelta(microseconds=moment)).isoformat(timespec="microseconds")


# -- positions ----------------------------------------------------------------------------------


class Position(msgspec.Struct, frozen=True):
    """A state of the database.

    Attributes:
        epoch: The name of the database's history; a new one begins when the past changes.
        seq: A number that rises by one with each commit of decisions within the epoch.
    """

    epoch: str
    seq: int


# -- decisions in -------------------------------------------------------------------------------

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_BATCH: Final = 50_000
MAX_REJECTIONS_LISTED: Final = 100
MAX_WARNINGS_LISTED: Final = 100

# Limits that keep each 64-bit sum far from overflow: it holds a million decisions at the cost
# limit, 15 million at the latency limit, 9,000 million at the token limit.
MAX_COST: Final = 9_000.0
MAX_LATENCY_MS: Final = 7 * 24 * 3600 * 1000.0
MAX_TOKENS: Final = 10**9

# In characters. Longer texts are stored in a shorter form: see `core/texts.py`.
MAX_NAME: Final = 64
MAX_MODEL: Final = 128
MAX_ID: Final = 128
MAX_REASON: Final = 500

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
# A whole number may also be written as 374.0 or 1e3, as data frames and some languages do.
_Integer = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
TokenCount = _Integer | Annotated[float, Meta(ge=0, le=float(MAX_TOKENS))]
Band = Literal["high", "medium", "low"]
Status = Literal["success", "error"]


class DecisionIn(msgspec.Struct, gc=False):
    """One routing decision as a producer sends it to `POST /v1/decisions`.

    A decision whose fields all have these types is decoded in one step. `core/decode_fields.py`
    reads all others.
    """

    strategy: Name
    provider: Name
    model: Annotated[str, Meta(max_length=MAX_MODEL)] | None = None
    id: Annotated[str, Meta(min_length=1, max_length=MAX_ID)] | None = None
    timestamp: datetime | float | None = None
    confidence: Annotated[float, Meta(ge=0, le=1)] | Band | None = None
    cost: Annotated[float, Meta(ge=0, le=MAX_COST)] | None = None
    latency_ms: Annotated[float, Meta(ge=0, le=MAX_LATENCY_MS)] | None = None
    input_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None
    cached_tokens: TokenCount | None = None
    status: Status | None = None
    fallback: bool | None = None
    reason: Annotated[str, Meta(max_length=MAX_REASON)] | None = None
    project: Name | None = None


def is_clean(text: str) -> bool:
    """Whether every database can store a text, and every encoder write it."""
    # A lone surrogate cannot be written as UTF-8, and PostgreSQL cannot hold a NUL.
    return "\0" not in text and (text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))


class Rejection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why one decision of a batch was not stored; `index` is its place in the batch, from 0."""

    index: int
    error: str
    id: str | UnsetType = UNSET


class FieldWarning(msgspec.Struct, frozen=True):
    """A decision was stored without a field, or with another form of it than was sent.

    `index` is the decision's place in the batch, from 0; `code` says what was wrong with `field`.
    """

    index: int
    field: str
    code: str
    message: str


class WarningCode(StrEnum):
    """What is wrong with a field. Clients must accept codes that they do not know."""

    # The decision counts without the field.
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"  # NaN or an infinity
    NEGATIVE = "negative"
    TOO_LARGE = "too_large"
    NOT_WHOLE = "not_whole"
    UNKNOWN_VALUE = "unknown_value"
    EMPTY = "empty"
    BAD_CHARACTER = "bad_character"
    # Another form of the field was stored.
    TRUNCATED = "truncated"
    HASHED = "hashed"
    CONVERTED = "converted"


class Receipt(msgspec.Struct, frozen=True):
    """The answer to a batch, sent after its commit.

    `accepted + duplicates + conflicts + rejected_count` is the number sent. At most
    `MAX_REJECTIONS_LISTED` rejections and `MAX_WARNINGS_LISTED` warnings are listed.
    """

    accepted: int
    duplicates: int
    rejected: list[Rejection]
    rejected_count: int
    position: Position
    # Servers of earlier versions do not send these.
    conflicts: int = 0
    warnings: list[FieldWarning] = []
    warnings_count: int = 0


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error answer, `application/problem+json` (RFC 9457)."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    parameter: str | UnsetType = UNSET
    accepted: int | UnsetType = UNSET
    duplicates: int | UnsetType = UNSET
    rejected: list[Rejection] | UnsetType = UNSET
    rejected_count: int | UnsetType = UNSET


# -- metrics out --------------------------------------------------------------------------------

DEFAULT_FIELDS: Final = (
    "total_decisions",
    "avg_confidence",
    "strategy_performance",
    "confidence_distribution",
    "provider_usage",
)
EXTRA_FIELDS: Final = (
    "cost",
    "tokens",
    "latency_ms",
    "errors",
    "fallbacks",
    "models",
    "rate",
    "savings",
)
FIELDS: Final = DEFAULT_FIELDS + EXTRA_FIELDS
BANDS: Final = ("high", "medium", "low")

# Length of each window in minutes; None is all of history.
WINDOWS: Final[dict[str, int | None]] = {
    "all": None,
    "5m": 5,
    "1h": 60,
    "24h": 24 * 60,
    "7d": 7 * 24 * 60,
}

MIN_INTERVAL: Final = 0.1
MAX_INTERVAL: Final = 60.0
DEFAULT_INTERVAL: Final = 5.0

FETCH_FAILED: Final = "Failed to fetch metrics"


class Source(StrEnum):
    """Where numbers come from, the best source first.

    Attributes:
        LIVE: The live state of the node.
        CACHE: The cached snapshot.
        DATABASE: The database.
        STALE: The last known numbers, because nothing newer can be had.
    """

    LIVE = "live"
    CACHE = "cache"
    DATABASE = "database"
    STALE = "stale"


class CloseCode(IntEnum):
    """WebSocket close codes (RFC 6455, 7.4). `retry.py` says what a client does after each.

    This server does not send POLICY and FULL.
    """

    DONE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NOT_UTF8 = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTART = 1012
    FULL = 1013
    NOT_PROTOCOL = 4400
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    SILENT = 4408
    TOO_SLOW = 4409
    TOO_MANY_MESSAGES = 4429


def close_reason(return_ms: int | None) -> str:
    """Return the reason text of a close code: after how many milliseconds to reconnect."""
    return "" if return_ms is None else f"reconnect_after_ms={return_ms}"


# -- routecast.v1: subscriptions over a WebSocket -----------------------------------------------

V1: Final = "routecast.v1"
V1_JSON: Final = "routecast.v1.json"  # text messages
V1_MSGPACK: Final = "routecast.v1.msgpack"  # binary ones, of the same shape
SUBPROTOCOLS: Final = (V1_JSON, V1_MSGPACK)
# How lists of connections name streams without a subprotocol.
DEFAULT_STREAM: Final = "default"
SSE: Final = "sse"
STREAM_PROTOCOLS: Final = (DEFAULT_STREAM, *SUBPROTOCOLS, SSE)

# Limits of one connection, which `hello` reports.
MAX_SUBSCRIPTIONS: Final = 16
MAX_MESSAGES_A_MINUTE: Final = 120
MAX_MESSAGE_BYTES: Final = 65_536
MAX_FILTER_VALUES: Final = 100  # of one filter; a dashboard names a handful
MAX_POINTS: Final = 2_000
# A client gets a snapshot at least this often, in seconds. A stream that is silent for longer is
# dead.
ALIVE_SECONDS: Final = 25.0

Id = Annotated[str, Meta(min_length=1, max_length=64)]
FilterValue = Annotated[str, Meta(min_length=1, max_length=128)]
FilterValues = Annotated[list[FilterValue], Meta(min_length=1, max_length=MAX_FILTER_VALUES)]
FieldNames = Annotated[list[str], Meta(min_length=1, max_length=64)]
Moment = Annotated[datetime, Meta(tz=True)]
GroupBy = Literal["strategy", "provider", "model", "band", "status"]


class _Message(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type"):
    """A message of routecast.v1. Readers must ignore fields that they do not know."""


class Filters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which decisions count: those that have one of the listed values in each listed part."""

    strategy: FilterValues | None = None
    provider: FilterValues | None = None
    model: FilterValues | None = None
    project: FilterValues | None = None


class Subscribe(_Message, frozen=True, tag="subscribe"):
    """Follow a view, under an `id` that the client chooses; from a `position` if given."""

    id: Id
    fields: FieldNames | None = None
    filter: Filters | None = None
    window: str | None = None
    interval: Annotated[float, Meta(ge=MIN_INTERVAL, le=MAX_INTERVAL)] | None = None
    position: Position | None = None


class Unsubscribe(_Message, frozen=True, tag="unsubscribe"):
    """End a subscription or a history that follows: no more messages have this id."""

    id: Id


class GetHistory(_Message, frozen=True, tag="history"):
    """Ask for the past in at most `points` buckets; with `follow`, for later buckets too."""

    id: Id
    from_: Moment | None = msgspec.field(name="from", default=None)
    to: Moment | None = None
    points: Annotated[int, Meta(ge=1, le=MAX_POINTS)] | None = None
    group_by: GroupBy | None = None
    fields: FieldNames | None = None
    filter: Filters | None = None
    follow: bool | None = None


class Ack(_Message, frozen=True, tag="ack"):
    """Report how far the client has read a subscription. The server never waits for it."""

    id: Id
    seq: Annotated[int, Meta(ge=0)]


class Refresh(_Message, frozen=True, tag="refresh"):
    """Bring a new token into an open connection, before the old one expires.

    The answer is an error if it does not help, and nothing otherwise. While authentication is off,
    the error is `not_supported`.
    """

    token: Annotated[str, Meta(min_length=1, max_length=16_384)]


class Ping(_Message, frozen=True, tag="ping"):
    """Ask for a `pong` with the same id."""

    id: Id


ClientMessage = Subscribe | Unsubscribe | GetHistory | Ack | Refresh | Ping


class Limits(msgspec.Struct, frozen=True):
    """Limits of one connection; `min_interval` is in seconds."""

    subscriptions: int = MAX_SUBSCRIPTIONS
    messages_per_minute: int = MAX_MESSAGES_A_MINUTE
    max_message_bytes: int = MAX_MESSAGE_BYTES
    min_interval: float = MIN_INTERVAL


class Hello(_Message, frozen=True, tag="hello", kw_only=True):
    """The first message of every connection. `epoch` is left out while it is unknown."""

    protocol: str = msgspec.field(default_factory=lambda: V1)
    connection: str
    epoch: str | UnsetType = UNSET
    limits: Limits = msgspec.field(default_factory=Limits)


class SnapshotOut(_Message, frozen=True, tag="snapshot"):
    """A view's whole document. `age_ms` is the age of the state behind it.

    `interval` is present, in seconds, if the server sends less often than the client asked for.
    """

    id: Id
    position: Position
    source: str
    age_ms: int
    data: dict[str, Any]
    timestamp: str
    interval: float | UnsetType = UNSET


class DeltaOut(_Message, frozen=True, tag="delta"):
    """The change of a view's document since the client's `base`: a merge patch (RFC 7396)."""

    id: Id
    base: int
    position: Position
    source: str
    age_ms: int
    data: dict[str, Any]
    timestamp: str
    interval: float | UnsetType = UNSET


class HistoryOut(_Message, frozen=True, tag="history"):
    """Buckets of `step` seconds from `from` on. Each of `series` has its `key` and columns."""

    id: Id
    position: Position
    step: int
    from_: str = msgspec.field(name="from")
    points: int
    series: list[dict[str, Any]]


class ErrorCode(StrEnum):
    """Error codes. Clients must accept codes that they do not know."""

    BAD_REQUEST = "bad_request"
    FORBIDDEN = "forbidden"
    ID_IN_USE = "id_in_use"
    UNKNOWN_ID = "unknown_id"
    TOO_MANY = "too_many"
    NOT_SUPPORTED = "not_supported"
    NOT_PROTOCOL = "not_protocol"
    UNAVAILABLE = "unavailable"


class ErrorOut(_Message, frozen=True, tag="error", kw_only=True):
    """What the server could not do, and whether a retry may help. The connection stays open."""

    id: Id | UnsetType = UNSET
    code: str
    message: str
    retryable: bool


class Goodbye(_Message, frozen=True, tag="goodbye"):
    """The server closes the connection with `code`; reconnect after `reconnect_after_ms`."""

    code: int
    reconnect_after_ms: int


class TokenExpiring(_Message, frozen=True, tag="token_expiring"):
    """The client's credential expires; without a `refresh` the connection is then closed."""

    expires_in_ms: int


class Pong(_Message, frozen=True, tag="pong"):
    """The answer to a ping."""

    id: Id


ServerMessage = (
    Hello | SnapshotOut | DeltaOut | HistoryOut | ErrorOut | Goodbye | TokenExpiring | Pong
)


# -- health -------------------------------------------------------------------------------------


EngineStatus = Literal["ok", "failing"]
ServiceStatus = Literal["ok", "failing", "down"]


class Components(msgspec.Struct, frozen=True):
    """The states of the engines that a node uses. Engines that are not set up are `ok`."""

    database: Literal["ok", "failing", "corrupt"]
    cache: EngineStatus
    bus: EngineStatus
    census: EngineStatus  # the number of streams of all nodes


class ServiceState(msgspec.Struct, frozen=True):
    """A background service: `ok`, `failing` (it runs, with errors) or `down` (it will restart).

    `failures` are those since it last worked, `restarts` those since the process began.
    `last_error` stays after it works again, and is "" if it never failed.
    """

    status: ServiceStatus
    failures: int
    restarts: int
    last_error: str


class HealthReport(msgspec.Struct, frozen=True):
    """The answer of `GET /health`.

    `source` is where numbers come from now: a `Source`, or `none`. `database_check` is how far the
    check of a database file is: `running`, `ok`, `failed` or `unfinished`. `database_error` says
    what is wrong with a `corrupt` database, `database_warning` what needs attention.
    `database_wal_bytes` is the length of its write-ahead log. `degraded` has a text for each reason
    why `status` is not `ok`. A field without a value is left out. `services` has every background
    service by its name.
    """

    status: Literal["ok", "degraded"]
    active_connections: int
    version: str
    position: Position | None
    components: Components
    source: str
    # Parts of names (`project`, `strategy`, `provider`, `model`, or `combination`) that have
    # reached their limit, and the limit: new names count as `other`.
    full_names: dict[str, int] = {}
    database_check: str | UnsetType = UNSET
    database_error: str | UnsetType = UNSET
    database_warning: str | UnsetType = UNSET
    database_wal_bytes: int | UnsetType = UNSET
    services: dict[str, ServiceState] = {}
    degraded: list[str] | UnsetType = UNSET


# -- the operator's view ------------------------------------------------------------------------

# Connections on one page; the default and the maximum.
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000
ConnectionOrder = Literal["start", "bytes", "lag", "round_trip", "newest"]


class FollowedView(msgspec.Struct, frozen=True):
    """A subscription of a connection; `interval` is in seconds.

    `id` is "" for the default stream and server-sent events. `lag` is the number of positions from
    the one that the client acknowledged to the newest one meant for it; None if it never did.
    """

    id: str
    fields: list[str]
    filter: dict[str, list[str]]
    window: str
    interval: float
    lag: int | None


class OpenConnection(msgspec.Struct, frozen=True, kw_only=True):
    """An open stream, as an operator sees it. Times are RFC 3339; ages are in seconds.

    `subject`, `credential` and `expires` are those of the client's credential, if authentication
    is on. `messages` and their `bytes`, before compression, are those with documents and histories.
    `saved_by_patches` are bytes that whole documents would have taken beside these, and
    `saved_by_compression` those of `bytes` that were not sent; None if another server compresses.
    `conflated` counts messages that were skipped because the socket was full. `lag` is the largest
    of its `subscriptions`. `unsent` are bytes that its system has not received.
    """

    id: str
    node: str
    subject: str
    credential: str | None
    expires: str | None
    address: str
    client: str
    protocol: str
    started: str
    subscriptions: list[FollowedView]
    histories: int
    messages: int
    bytes: int
    saved_by_patches: int
    saved_by_compression: int | None
    conflated: int
    lag: int | None
    pong_age: float | None
    round_trip_ms: int | None
    unsent: int


class ClosedConnection(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that was closed with a code; `reason` is the meaning of the code in words."""

    id: str
    node: str
    subject: str
    credential: str | None
    address: str
    client: str
    protocol: str
    started: str
    ended: str
    code: int
    reason: str
    messages: int
    bytes: int
    saved_by_patches: int
    saved_by_compression: int | None
    conflated: int


class OpenConnections(msgspec.Struct, frozen=True):
    """A page of the open connections of a cluster; `total` is their number on all pages.

    `node` is the one that answers. `next` is the parameter `after` of the next page, None on the
    last one. `missing` says why connections of other nodes are not in it; None if all are.
    """

    node: str
    total: int
    next: str | None
    connections: list[OpenConnection]
    missing: str | None = None


class ClosedConnections(msgspec.Struct, frozen=True):
    """A page of the connections that were closed last, the newest first."""

    node: str
    total: int
    next: str | None
    connections: list[ClosedConnection]
    missing: str | None = None


class Expelled(msgspec.Struct, frozen=True):
    """How many streams of a subject are being closed; `missing` as in `OpenConnections`."""

    closed: int
    missing: str | None = None


class NodeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a node did until the time `at`.

    Counts and `cpu_seconds` are since its start, so that two summaries give a rate. Numbers that
    are not known are None. `limit_hits` counts how often clients were over a limit, by its name,
    and `limit_hits_dry_run` how often they were over one that is not enforced.
    """

    node: str
    host: str
    pid: int
    version: str
    role: str
    started: str
    at: str
    connections: int
    closed: int
    messages: int
    bytes: int
    conflated: int
    position: Position | None
    queue: int
    commits: int
    commit_seconds: float
    bus_lag_seconds: float | None
    cpu_seconds: float
    memory_bytes: int | None
    limit_hits: dict[str, int] = {}
    limit_hits_dry_run: dict[str, int] = {}


class NodeSummaries(msgspec.Struct, frozen=True):
    """All nodes of a cluster; `node` is the one that answers.

    `missing` says why other nodes are not known now; None if all are.
    """

    node: str
    nodes: list[NodeSummary]
    missing: str | None = None
