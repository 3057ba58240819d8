"""The audit log: connections, refusals with their reason, credentials made and revoked.

An event is a record of the logger `routecast.audit`, which has fields beside its text. Only the log
in JSON shows them (`server/json_log.py`). Otherwise it is off, and an event costs a look at
the level of a logger.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeAlias

from routecast.core.access import Principal
from routecast.core.request_trace import RequestTrace

AuditEvent: TypeAlias = Literal[
    "settings",
    "connect",
    "disconnect",
    "expel",
    "refuse",
    "sign_in",
    "sign_out",
    "key_created",
    "revoke",
]
# Of the refusals of one cause, at most this number is logged in LIMIT_SECONDS; the others are
# counted.
MAX_REFUSALS: Final = 100
LIMIT_SECONDS: Final = 10.0

_SILENT: Final = logging.CRITICAL + 1
_EXTRA: Final = "audit_fields"

log = logging.getLogger("routecast.audit")
log.setLevel(_SILENT)

# The request that is being answered in this context.
_request: ContextVar[RequestTrace | None] = ContextVar("routecast.audit.request", default=None)


def listen() -> None:
    """Have events logged from now on, at any level of other lines."""
    log.setLevel(logging.INFO)


def listens() -> bool:
    """Whether events are logged."""
    return log.isEnabledFor(logging.INFO)


def record(event: AuditEvent, text: str, **fields: Any) -> None:
    """Log an event. Values are texts, numbers, lists of them, or None; never a secret."""
    if listens():
        log.info(text, extra=marked(event, **fields))


def marked(event: AuditEvent, **fields: Any) -> dict[str, Any]:
    """Return the argument `extra` by which a line of another logger is an event, too."""
    return {_EXTRA: {"event": event, **fields}}


def fields_of(entry: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of an event; {} for any other record."""
    found: dict[str, Any] = getattr(entry, _EXTRA, {})
    return found


def holder(principal: Principal) -> dict[str, str]:
    """Return the fields that name the subject of an event, and its credential."""
    return {"subject": principal.subject, "credential": principal.credential}


# -- requests -----------------------------------------------------------------------------------


@contextmanager
def answering(trace: RequestTrace) -> Iterator[None]:
    """Have `trace_fields` return the fields of this request in the body."""
    token = _request.set(trace)
    try:
        yield
    finally:
        _request.reset(token)


def trace_fields() -> dict[str, str]:
    """Return the fields that name the request that is being answered; {} if there is none."""
    trace = _request.get()
    if trace is None:
        return {}
    fields = {"address": trace.address, "request_id": trace.request_id}
    return fields if trace.trace_id is None else {**fields, "trace_id": trace.trace_id}


def route_of_request() -> str:
    """Return the path of the request that is being answered, as the router has it; or ""."""
    trace = _request.get()
    return "" if trace is None else trace.route


# -- refusals -----------------------------------------------------------------------------------


class Refusals:
    """Logs refusals at a bounded rate, so that a flood of them costs little.

    A cause must never contain text of a client, because each cause has a count of its own.
    """

    def __init__(
        self, call_later: Callable[[float, Callable[[], None]], object] | None = None
    ) -> None:
        self._call_later = call_later or _call_later
        self._counts: dict[str, int] = {}  # in this period
        self._waits = False

    def add(self, cause: str, why: str, **fields: Any) -> None:
        """Log that a request was refused, unless too many others were for the same cause."""
        if not listens():
            return
        count = self._counts[cause] = self._counts.get(cause, 0) + 1
        if count <= MAX_REFUSALS:
            record("refuse", "A request was refused", why=why, **fields, **trace_fields())
        if not self._waits:
            self._waits = True
            self._call_later(LIMIT_SECONDS, self.flush)

    def flush(self) -> None:
        """Log how many were left out, and begin a new period."""
        self._waits = False
        counts, self._counts = self._counts, {}
        for cause, count in counts.items():
            if count > MAX_REFUSALS:
                left_out = count - MAX_REFUSALS
                record("refuse", "More requests were refused", why=cause, left_out=left_out)


def _call_later(seconds: float, action: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(seconds, action)


refusals: Final = Refusals()
