"""What ties the log lines of one request together: its id, and the trace that it is part of."""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

REQUEST_ID: Final = b"x-request-id"
TRACEPARENT: Final = b"traceparent"
MAX_REQUEST_ID: Final = 64

_REQUEST_ID_FORM: Final = re.compile(rb"[!-~]{1,%d}" % MAX_REQUEST_ID)
# W3C Trace Context, 3.2: version, trace id, parent id, flags. A later version may have more.
_TRACEPARENT_FORM: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """A request, as the audit log has it.

    Attributes:
        request_id: What the client or a proxy calls it, or else a random text.
        trace_id: The trace that it is part of; None if the client does not say.
        address: The address of the client, as limits count it.
        route: The path as the router has it; "" for a path that does not exist. The path itself may
            contain anything.
    """

    request_id: str
    trace_id: str | None
    address: str
    route: str


def read_request_id(value: bytes | None) -> bytes | None:
    """Return the value of the field `X-Request-Id`; None if there is none that may be used."""
    return value if value is not None and _REQUEST_ID_FORM.fullmatch(value) else None


def read_trace_id(value: bytes) -> str | None:
    """Return the trace id of the field `traceparent`; None if the field is malformed."""
    found = _TRACEPARENT_FORM.fullmatch(value)
    if found is None or (found[1] == b"00" and found[4] is not None):
        return None
    return found[2].decode("ascii")


def trace_of(headers: Iterable[tuple[bytes, bytes]], address: str, route: str) -> RequestTrace:
    """Return the trace of a request with these fields, whose names are in lower case.

    A field that comes more than once is not used: it would be unclear which one counts.
    """
    ids, parents = [], []
    for name, value in headers:
        if name == REQUEST_ID:
            ids.append(value)
        elif name == TRACEPARENT:
            parents.append(value)
    known = read_request_id(ids[0]) if len(ids) == 1 else None
    return RequestTrace(
        request_id=secrets.token_hex(8) if known is None else known.decode("ascii"),
        trace_id=read_trace_id(parents[0]) if len(parents) == 1 else None,
        address=address,
        route=route,
    )
