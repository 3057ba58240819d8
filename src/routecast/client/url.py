"""`Server`: the address of a server, as HTTP and WebSocket URLs."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlencode, urlsplit

from routecast.errors import BadParameter

DEFAULT_SERVER: Final = "http://127.0.0.1:8000"
"""The address that `routecast serve` listens on by default: this machine, port 8000."""
_STREAM: Final = "/ws/metrics"
_TICKETS: Final = "/v1/tickets"


@dataclass(frozen=True, slots=True)
class Server:
    """The base URL of a Routecast server: `http://` or `https://`, a host, and maybe a path."""

    url: str

    @classmethod
    def parse(cls, text: str, name: str = "url") -> "Server":
        """Parse an address as typed: with `http`, `https`, `ws` or `wss`, or without a scheme.

        The path of the stream may be at its end. Raises BadParameter for the parameter `name`.
        """
        text = text.strip()
        parts = _split(text if "://" in text else f"http://{text}", name)
        scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
        if scheme not in ("http", "https") or not parts.hostname:
            raise BadParameter(name, f"{_shown(text)!r} is not an address such as {DEFAULT_SERVER}")
        if parts.query or parts.fragment:
            raise BadParameter(name, "must have no query: give fields and filters separately")
        path = parts.path.rstrip("/").removesuffix(_STREAM).rstrip("/")
        return cls(f"{scheme}://{parts.netloc}{path}")

    def __str__(self) -> str:
        """The address without its user and password."""
        return _shown(self.url)

    @property
    def loopback(self) -> bool:
        """Whether it is this machine: then proxies of the environment are not used."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def http(self, path: str) -> str:
        """Return the URL of `path`, which starts with a slash."""
        return f"{self.url}{path}"

    def stream(self, query: Iterable[tuple[str, str]] = ()) -> str:
        """Return the URL of the metrics stream with a query."""
        encoded = urlencode(list(query), safe=",")
        return f"ws{self.url.removeprefix('http')}{_STREAM}" + (f"?{encoded}" if encoded else "")

    def tickets(self) -> str:
        """Return the URL that gives tickets."""
        return self.http(_TICKETS)


def tickets_of(stream: str) -> str:
    """Return the URL that gives tickets for the URL of a stream."""
    base = stream.partition("?")[0].removesuffix(_STREAM)
    return f"http{base.removeprefix('ws')}{_TICKETS}"


def stream_of(tickets: str, stream: str) -> str:
    """Return the URL of a stream at the server that gives tickets at a URL."""
    base = tickets.removesuffix(_TICKETS).removeprefix("http")
    _, mark, query = stream.partition("?")
    return f"ws{base}{_STREAM}{mark}{query}"


def with_ticket(stream: str, ticket: str) -> str:
    """Return the URL of a stream with a ticket."""
    return f"{stream}{'&' if '?' in stream else '?'}{urlencode({'ticket': ticket})}"


def _split(text: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError if it is invalid
    except ValueError:  # its text may contain a part of a password
        raise BadParameter(
            name, f"{_shown(text)!r} is not an address such as {DEFAULT_SERVER}"
        ) from None
    return parts


def _shown(text: str) -> str:
    """Return an address without its user and password, whatever characters are in them."""
    return re.sub(r"//.*@", "//", text)
