"""Where a server is: one address, over HTTP and over WebSocket."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlencode, urlsplit

from routecast.errors import BadParameter

DEFAULT_SERVER = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Server:
    """A Routecast server's address, `http://` or `https://`, with or without a path before ours."""

    url: str

    @classmethod
    def parse(cls, text: str) -> "Server":
        """Read an address as typed; the scheme may be left out. Raises BadParameter."""
        text = text.strip()
        parts = _split(text if "://" in text else f"http://{text}")
        scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
        if scheme not in ("http", "https") or not parts.hostname:
            raise BadParameter("--server", f"{text!r} is not an address such as {DEFAULT_SERVER}")
        return cls(f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}")

    @property
    def loopback(self) -> bool:
        """Whether it is this machine: then no proxy of the environment is asked."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def http(self, path: str) -> str:
        """Return the URL of `path`, which starts with a slash."""
        return f"{self.url}{path}"

    def stream(self, query: Iterable[tuple[str, str]]) -> str:
        """Return the URL of the metrics stream asked for with `query`."""
        encoded = urlencode(list(query), safe=",")
        return f"ws{self.url.removeprefix('http')}/ws/metrics" + (f"?{encoded}" if encoded else "")


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port  # reading it checks it
    except ValueError as error:
        raise BadParameter("--server", f"{text!r} is not an address: {error}") from None
    return parts
