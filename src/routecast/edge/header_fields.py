"""Checks of a request's header fields, for the fast path and for ASGI."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from routecast.core.request_trace import REQUEST_ID
from routecast.errors import BadHead

# Fields that may come only once: with two values, it would be unclear which one counts (RFC 9110,
# 5.3).
ONCE: Final = frozenset({b"host", b"origin", b"content-type", b"authorization"})
# A host and a port (RFC 3986, 3.2.2): a name, an IPv4 address, or an IPv6 address in brackets.
_HOST_FIELD: Final = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+(?:%[\w.~-]+)?\]|[\w.~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?"
)
MAX_HOST_BYTES: Final = 300
# What a client calls itself is kept for each stream, in at most this number of characters. Most
# clients have the same texts, so the last ones are shared.
MAX_AGENT: Final = 200
REMEMBERED_AGENTS: Final = 1_024


def read_fields(headers: Sequence[tuple[bytes, bytes]], version: str) -> dict[bytes, bytes]:
    """Return the fields of a request by name; of a field that comes more than once, the last.

    An `X-Request-Id` that comes more than once is left out: the audit log does not use it, either.

    `headers` have names in lower case; `version` is that of HTTP, such as 1.1. Raises BadHead if a
    field of ONCE comes twice, or if `Host` is missing or malformed (RFC 9112, 3.2).
    """
    fields = dict(headers)
    if len(fields) != len(headers):
        _check_once(headers)
        if [name for name, _ in headers].count(REQUEST_ID) > 1:
            del fields[REQUEST_ID]
    host = fields.get(b"host")
    if host is None:
        if version == "1.1":
            raise BadHead("the Host field is missing")
    elif len(host) > MAX_HOST_BYTES or not _is_host(host):
        raise BadHead("the Host field is malformed")
    return fields


def _check_once(headers: Sequence[tuple[bytes, bytes]]) -> None:
    seen = set()
    for name, _ in headers:
        if name in ONCE:
            if name in seen:
                raise BadHead(f"the {name.decode().title()} field comes more than once")
            seen.add(name)


@lru_cache(256)
def _is_host(host: bytes) -> bool:
    return _HOST_FIELD.fullmatch(host) is not None


def read_agent(text: str | None) -> str:
    """Return a `User-Agent` as it is kept for a stream; "" for None."""
    return _shared((text or "")[:MAX_AGENT])


def read_agent_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the `User-Agent` among the headers of an ASGI scope."""
    return read_agent(next((v.decode("latin-1") for n, v in headers if n == b"user-agent"), None))


@lru_cache(REMEMBERED_AGENTS)
def _shared(text: str) -> str:
    """Return the object that was returned for an equal text before."""
    return text
