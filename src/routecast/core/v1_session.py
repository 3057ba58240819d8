"""The session of routecast.v1: it takes a message of the client, and returns what must be done.

Each message has one outcome. An error names an invalid field, and the connection stays open. The
first two consecutive messages that are not part of the protocol get an error; the third closes the
connection.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import msgspec

from routecast.core.access import ANYONE, Principal, restrict, restrict_history
from routecast.core.client_limits import ClientLimit, LimitModes
from routecast.core.history import GROUP_RULE, POINTS_RULE, HistoryQuery, history_query
from routecast.core.message import DecodedMessage, Encoding, HistoryMessage
from routecast.core.validation_messages import worded
from routecast.core.view import INTERVAL_RULE, ViewSubscription, make_view
from routecast.errors import BadParameter, Forbidden, Unavailable
from routecast.protocol import (
    MAX_MESSAGE_BYTES,
    MAX_MESSAGES_A_MINUTE,
    MAX_SUBSCRIPTIONS,
    Ack,
    CloseCode,
    ErrorCode,
    ErrorOut,
    Ping,
    Pong,
    Position,
    Refresh,
    Subscribe,
    Unsubscribe,
)

# After this many consecutive messages that are not part of the protocol, the connection is closed.
MAX_CONSECUTIVE_INVALID: Final = 3
MINUTE_SECONDS: Final = 60.0
_MOMENT_RULE: Final = "must be RFC 3339 with an offset, such as 2026-01-31T12:34:56Z"
_RULES: Final = {
    "interval": INTERVAL_RULE,
    "from": _MOMENT_RULE,
    "to": _MOMENT_RULE,
    "points": POINTS_RULE,
    "group_by": GROUP_RULE,
}
_MESSAGE_TYPES: Final = frozenset({"subscribe", "unsubscribe", "history", "ack", "refresh", "ping"})


@dataclass(frozen=True, slots=True)
class StartSubscription:
    """Send a subscription's documents from now on.

    `position` is that of the document that the client holds; None if it holds none.
    """

    id: str
    subscription: ViewSubscription
    position: Position | None


@dataclass(frozen=True, slots=True)
class QueryHistory:
    """Send the history under this id; call `release` after its last message."""

    id: str
    query: HistoryQuery


@dataclass(frozen=True, slots=True)
class StopSubscription:
    """Send nothing more under this id."""

    id: str


@dataclass(frozen=True, slots=True)
class RenewCredential:
    """Verify a token, and keep the connection open for as long as it is valid.

    If it cannot take the place of the present credential, send `renewal_refusal`.
    """

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Close the connection."""

    code: CloseCode


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """What a client may send on one connection in a minute; 0 bytes are no limit."""

    messages: int = MAX_MESSAGES_A_MINUTE
    bytes: int = 0
    modes: LimitModes = field(default_factory=LimitModes)


V1Outcome = (
    ErrorOut
    | Pong
    | StartSubscription
    | QueryHistory
    | StopSubscription
    | RenewCredential
    | CloseConnection
    | None
)


DEFAULT_LIMITS: Final = MessageLimits()


class V1Session:
    """The subscriptions of one client. `interval` is the default, in seconds.

    They have nothing but the projects of its `principal`.
    """

    __slots__ = (
        "_bytes",
        "_consecutive_invalid",
        "_count",
        "_interval",
        "_limits",
        "_since",
        "acked",
        "encoding",
        "ids",
        "principal",
    )

    def __init__(
        self,
        encoding: Encoding,
        interval: float,
        principal: Principal = ANYONE,
        limits: MessageLimits = DEFAULT_LIMITS,
    ) -> None:
        self.encoding = encoding
        self.principal = principal
        self.ids: dict[str, int] = {}  # the bytes of each request, by id
        # The last seq that the client has acknowledged, by id; None before the first.
        self.acked: dict[str, int] | None = None
        self._interval = interval
        self._limits = limits
        self._count = 0  # messages in the minute that began at `_since`
        self._bytes = 0  # their bytes
        self._since = 0.0
        self._consecutive_invalid = 0

    def receive(self, message: str | bytes, now: float) -> V1Outcome:
        """Return what must be done about a message; None if nothing must be.

        An ErrorOut or a Pong must be sent as the answer. `now` is in seconds on any clock.
        """
        size = len(message if isinstance(message, bytes) else message.encode())
        if self._is_too_much(size, now):
            return CloseConnection(CloseCode.TOO_MANY_MESSAGES)
        if size > MAX_MESSAGE_BYTES:
            return CloseConnection(CloseCode.TOO_BIG)
        if isinstance(message, bytes) != self.encoding.binary:
            return CloseConnection(CloseCode.UNSUPPORTED_DATA)
        try:
            request = self.encoding.decode(message)
        except (ValueError, RecursionError) as error:
            return self._refuse(message, error)
        self._consecutive_invalid = 0
        try:
            return self._do(request, size)
        except BadParameter as error:
            return _error(request, ErrorCode.BAD_REQUEST, str(error))
        except Forbidden as error:
            return _error(request, ErrorCode.FORBIDDEN, str(error))

    def _is_too_much(self, size: int, now: float) -> bool:
        """Count a message; return whether the connection must be closed."""
        if now - self._since >= MINUTE_SECONDS:
            self._since, self._count, self._bytes = now, 0, 0
        self._count += 1
        self._bytes += size
        limits, refused = self._limits, False
        if self._count > limits.messages:
            refused = limits.modes.hit(ClientLimit.MESSAGES)
        if limits.bytes and self._bytes > limits.bytes:
            refused = limits.modes.hit(ClientLimit.MESSAGE_BYTES) or refused
        return refused

    def _do(self, request: DecodedMessage, size: int) -> V1Outcome:
        match request:
            case Subscribe():
                return self._subscribe(request, size)
            case Unsubscribe(id=identity):
                if identity not in self.ids:
                    return _unknown(request)
                self.release(identity)
                return StopSubscription(identity)
            case HistoryMessage():
                return self._query_history(request, size)
            case Ack(id=identity, seq=seq):
                if identity not in self.ids:
                    return _unknown(request)
                self.acked = self.acked or {}
                self.acked[identity] = seq
                return None
            case Ping(id=identity):
                return Pong(identity)
            case Refresh(token=token) if self.principal is not ANYONE:
                return RenewCredential(token)
            case Refresh():
                return _error(request, ErrorCode.NOT_SUPPORTED, "token: this server asks for none")

    def _subscribe(self, request: Subscribe, size: int) -> V1Outcome:
        view = make_view(request.fields, request.filter, request.window)
        view = restrict(view, self.principal.projects)
        interval = self._interval if request.interval is None else request.interval
        follow = StartSubscription(request.id, ViewSubscription(view, interval), request.position)
        return self._take_id(request, size) or follow

    def _query_history(self, request: HistoryMessage, size: int) -> V1Outcome:
        query = history_query(
            start=request.from_,
            end=request.to,
            points=request.points,
            group_by=request.group_by,
            fields=request.fields,
            filters=make_view(None, request.filter, None),
            follow=bool(request.follow),
        )
        query = restrict_history(query, self.principal.projects)
        return self._take_id(request, size) or QueryHistory(request.id, query)

    def _take_id(self, request: Subscribe | HistoryMessage, size: int) -> ErrorOut | None:
        """Reserve the id of a request; return an error if it is in use, or there are too many."""
        if request.id in self.ids:
            return _error(
                request, ErrorCode.ID_IN_USE, f"id: {request.id!r} is in use; unsubscribe it first"
            )
        if len(self.ids) >= MAX_SUBSCRIPTIONS:
            problem = f"id: at most {MAX_SUBSCRIPTIONS} subscriptions on a connection"
            return _error(request, ErrorCode.TOO_MANY, problem)
        if sum(self.ids.values()) + size > MAX_MESSAGE_BYTES:
            problem = (
                f"filter: a connection's subscriptions take at most {MAX_MESSAGE_BYTES:,} bytes"
            )
            return _error(request, ErrorCode.TOO_MANY, problem)
        self.ids[request.id] = size
        return None

    def release(self, identity: str) -> None:
        """Free an id, after its last message."""
        self.ids.pop(identity, None)
        if self.acked is not None:
            self.acked.pop(identity, None)

    def _refuse(self, message: str | bytes, error: Exception) -> V1Outcome:
        """Name the invalid field; count a message that is not part of the protocol."""
        try:
            seen = self.encoding.decode_envelope(message)
        except (ValueError, RecursionError):
            return self._count_invalid("type: a message is an object with a type")
        if seen.type not in _MESSAGE_TYPES:
            return self._count_invalid(f"type: {seen.type[:64]!r} is not a type of message")
        self._consecutive_invalid = 0
        identity: str | msgspec.UnsetType = msgspec.UNSET
        with suppress(ValueError, RecursionError):  # the id itself may be invalid
            identity = self.encoding.read_id(seen.id)
        return ErrorOut(
            id=identity, code=ErrorCode.BAD_REQUEST, message=_explain(str(error)), retryable=False
        )

    def _count_invalid(self, problem: str) -> V1Outcome:
        self._consecutive_invalid += 1
        if self._consecutive_invalid >= MAX_CONSECUTIVE_INVALID:
            return CloseConnection(CloseCode.NOT_PROTOCOL)
        return ErrorOut(code=ErrorCode.NOT_PROTOCOL, message=problem, retryable=False)


def _error(request: DecodedMessage, code: ErrorCode, message: str) -> ErrorOut:
    identity = msgspec.UNSET if isinstance(request, Refresh) else request.id
    return ErrorOut(id=identity, code=code, message=message, retryable=False)


def refusal(identity: str, error: BadParameter | Unavailable) -> ErrorOut:
    """Return the error for a history that cannot be answered."""
    retryable = isinstance(error, Unavailable)
    code = ErrorCode.UNAVAILABLE if retryable else ErrorCode.BAD_REQUEST
    return ErrorOut(id=identity, code=code, message=str(error), retryable=retryable)


def renewal_refusal(error: Exception) -> ErrorOut:
    """Return the error for a token that does not renew the client's credential."""
    retryable = isinstance(error, Unavailable)
    code = ErrorCode.UNAVAILABLE if retryable else ErrorCode.BAD_REQUEST
    return ErrorOut(code=code, message=f"token: {error}", retryable=retryable)


def _unknown(request: Unsubscribe | Ack) -> ErrorOut:
    return _error(request, ErrorCode.UNKNOWN_ID, f"id: nothing is followed under {request.id!r}")


def _explain(problem: str) -> str:
    """Translate an error of msgspec: the field, then the rule that it breaks."""
    rule, _, path = problem.partition(" - at `$")
    each = "each " if "[" in path else ""
    path = re.sub(r"\[.*?\]", "", path.rstrip("`")).lstrip(".")
    missing = re.fullmatch(r"Object missing required field `(\w+)`", rule)
    if missing:
        return f"{path}.{missing[1]}: is required".lstrip(".")
    return f"{path or 'message'}: {each}{_RULES.get(path) or worded(rule.rstrip())}"
