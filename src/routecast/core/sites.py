"""Sites: the hosts and origins that a request may name, in one normal form.

Settings and the headers `Host` and `Origin` are read by the same functions, so a setting that is
accepted can match. A name is in lower case, in ASCII (IDNA), without a dot at its end; the default
port of a scheme is no port.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from routecast.errors import BadBody, Forbidden, Misdirected

ANY: Final = "*"
# Longer headers are refused: no scheme, name and port are this long.
MAX_HEADER: Final = 400
# Remembered results: clients of one server use few names for it.
REMEMBERED_SITES: Final = 256

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_NAME: Final = 253
_HOST_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII)
_HOST: Final = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([0-9]{0,5}))?", re.ASCII)
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\\]+)", re.ASCII | re.IGNORECASE)


class Origin(NamedTuple):
    """The site of a page (RFC 6454). `port` is None only if the scheme has no default."""

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = self.port == _DEFAULT_PORTS.get(self.scheme)
        return f"{self.scheme}://{host}" + ("" if default else f":{self.port}")


def read_host(text: str) -> tuple[str, int | None]:
    """Return the host and the port of a `Host` header, with None for no port.

    Raises ValueError if it is neither a name nor an address.
    """
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError("is not a host with an optional port")
    port = int(found[2]) if found[2] else None
    if port is not None and port > 65_535:
        raise ValueError("has a port over 65535")
    return _normal_host(found[1]), port


def read_origin(text: str) -> Origin:
    """Return an `Origin` header in its normal form. Raises ValueError if it is invalid."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        raise ValueError("is not scheme://host")
    scheme = found[1].lower()
    host, port = read_host(found[2])
    return Origin(scheme, host, _DEFAULT_PORTS.get(scheme) if port is None else port)


def _normal_host(text: str) -> str:
    if text.startswith("["):
        return str(IPv6Address(text[1:-1].partition("%")[0]))
    if not text.isascii():
        text = _to_ascii(text)
    name = text.lower().removesuffix(".")
    try:
        return str(IPv4Address(name))
    except ValueError:
        pass
    if len(name) > _MAX_NAME or not _HOST_NAME.fullmatch(name):
        raise ValueError("is not the name or address of a host")
    return name


def _to_ascii(name: str) -> str:
    import idna  # slow to import, and few names need it

    # Headers are decoded as ISO-8859-1; bytes beyond ASCII mean UTF-8.
    with suppress(ValueError):  # a setting, which is text already
        name = name.encode("latin-1").decode()
    return idna.encode(name, uts46=True).decode()  # its errors are ValueErrors


# -- settings -----------------------------------------------------------------------------------


def origin_entry(text: str) -> str:
    """Return an entry of ROUTECAST_ALLOWED_ORIGINS in its normal form.

    Raises ValueError with the reason and the fix if no browser would ever send it.
    """
    if text == ANY:
        return text
    if text == "null":
        raise ValueError("is what sandboxed pages of every site send: serve the page from a site")
    _check_separators(text)
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError(f"has no scheme: write https://{text} or http://{text}")
    if scheme in ("ws", "wss"):
        raise ValueError(
            f"is not the site of a page: write {scheme.replace('ws', 'http')}://{rest}"
        )
    host = re.split(r"[/?#]", rest)[0]
    if not host:
        raise ValueError("names no host: write https://name or https://name:port")
    if rest not in (host, f"{host}/"):
        raise ValueError(f"has a path or query, and browsers send none: write {scheme}://{host}")
    if "@" in host:
        raise ValueError(f"has a user in it: write {scheme}://{host.rpartition('@')[2]}")
    wild, dotted = _split_wildcard(host)
    try:
        origin = read_origin(f"{scheme}://{dotted}")
    except ValueError as error:
        raise ValueError(f"{error}: write it as https://name or https://name:port") from None
    return str(origin._replace(host=wild + origin.host))


def host_entry(text: str) -> str:
    """Return an entry of ROUTECAST_ALLOWED_HOSTS in its normal form.

    Raises ValueError with the reason and the fix if no request would ever match it.
    """
    if text == ANY:
        return text
    _check_separators(text)
    if "/" in text:
        bare = re.split(r"[/?#]", text.partition("://")[2] or text)[0]
        raise ValueError(f"is more than a name: write {bare.rpartition('@')[2]}")
    wild, dotted = _split_wildcard(text)
    try:
        bare_v6 = dotted.count(":") > 1 and not dotted.startswith("[")
        name, port = read_host(f"[{dotted}]" if bare_v6 else dotted)
    except ValueError as error:
        raise ValueError(f"{error}: write a name such as routecast.example") from None
    if port is not None:
        raise ValueError(f"has a port, and a host is allowed on every port: write {wild}{name}")
    return wild + name


def _check_separators(text: str) -> None:
    if text[:1] in "\"'" or text[-1:] in "\"'":
        raise ValueError("is in quotes: leave them out")
    if re.search(r"[\s;|]", text):
        raise ValueError("is more than one entry: separate them with commas")


def _split_wildcard(host: str) -> tuple[str, str]:
    """Return "*." or "", and the rest of a host."""
    wild = "*." if host.startswith("*.") else ""
    rest = host.removeprefix("*.")
    if ANY in rest:
        raise ValueError("may have * only as its first label, as in *.example.com")
    return wild, rest


# -- the rules ----------------------------------------------------------------------------------


class Sites:
    """The hosts that this server answers for, and the origins whose pages may use it.

    `origins` and `hosts` are settings in their normal form, as `origin_entry` and `host_entry`
    return them. A server answers for IP addresses, for names that cannot be registered (those
    without a dot, and those that end in `.localhost`), for the hosts of `origins`, and for `hosts`.

    `exact` tells whether authentication is on. Then pages of `origins` and of this very server are
    allowed, and no others: not those of other ports of this machine.
    """

    def __init__(
        self,
        origins: Iterable[str] = (),
        hosts: Iterable[str] = (),
        exact: Callable[[], bool] = lambda: False,
    ) -> None:
        self._exact = exact
        entries, names = set(origins), set(hosts)
        self._any_origin, self._any_host = ANY in entries, ANY in names
        self._origins = {_read_entry(entry) for entry in entries - {ANY}}
        self._hosts = names | {origin.host for origin in self._origins}
        self._is_known = lru_cache(REMEMBERED_SITES)(self._judge_host)
        self._is_allowed = lru_cache(REMEMBERED_SITES)(self._judge_origin)

    def is_known_host(self, host: str) -> bool:
        """Whether this server answers requests with this `Host`.

        Raises ValueError on one that is neither a name nor an address.
        """
        if len(host) > MAX_HEADER:
            raise ValueError("is too long")
        return self._is_known(host)

    def require_known_host(self, host: str) -> None:
        """Raise Misdirected, naming the setting, if `Host` is unknown; BadBody if it is invalid.

        The owner of a name can make it point to this server, and then a page loaded under that
        name can read the answers as its own (DNS rebinding). So a name must be known.
        """
        try:
            known = self.is_known_host(host)
        except ValueError as error:
            raise BadBody(f"Host {host[:200]!r} {error}") from None
        if not known:
            raise Misdirected(
                f"Host {host[:200]!r} is not known as a name of this server; if it is one, start "
                "the server with it in ROUTECAST_ALLOWED_HOSTS, or, so that its page works by "
                "that name, with the page's address in ROUTECAST_ALLOWED_ORIGINS"
            )

    def is_allowed_origin(self, origin: str | None, host: str | None, scheme: str = "http") -> bool:
        """Whether a page is from this machine, from the server's own IP address, or from `origins`.

        `scheme` is the one by which the client reaches this server, http or https.

        Without this rule, any page in a user's browser could read and write the user's local
        Routecast (RFC 6455, 10.2). A page that this server sent under a name must be allowed, too.
        Clients other than browsers send no origin.
        """
        if origin is None or self._any_origin:
            return True
        if len(origin) > MAX_HEADER or len(host or "") > MAX_HEADER:
            return False
        return self._is_allowed(origin, host, scheme if self._exact() else None)

    def is_own_origin(self, origin: str | None, host: str | None, scheme: str = "http") -> bool:
        """Whether a page is certainly of this very server, or of a site of `origins`.

        It decides whether a cookie counts, which a browser adds to requests of other pages, too.
        `*` allows no page, and a request without an origin is of none.
        """
        if origin is None or len(origin) > MAX_HEADER or len(host or "") > MAX_HEADER:
            return False
        return self._is_allowed(origin, host, scheme)

    def require_allowed_origin(
        self, origin: str | None, host: str | None, scheme: str = "http"
    ) -> None:
        """Raise Forbidden, naming the setting, if the page's origin is not allowed."""
        if not self.is_allowed_origin(origin, host, scheme):
            shown = (origin or "")[:200]
            raise Forbidden(
                f"Origin {shown!r} may not connect; to let its pages in, start the server with "
                "it in ROUTECAST_ALLOWED_ORIGINS"
            )

    def _judge_host(self, host: str) -> bool:
        name, _ = read_host(host)
        return (
            self._any_host
            or "." not in name  # a name of this network, or an IPv6 address
            or name.endswith(".localhost")  # RFC 6761, 6.3
            or _is_ipv4(name)
            or any(form in self._hosts for form in _forms(name))
        )

    def _judge_origin(self, origin: str, host: str | None, own_scheme: str | None) -> bool:
        """Whether an origin is one of `origins`, or one that needs no setting.

        With `own_scheme`, the latter is this very server's alone, by that scheme.
        """
        try:
            site = read_origin(origin)
        except ValueError:
            return False
        if any(site._replace(host=form) in self._origins for form in _forms(site.host)):
            return True
        try:
            name, port = read_host(host or "")
        except ValueError:
            return False
        default = _DEFAULT_PORTS.get(site.scheme)
        here = default is not None and (name, port or default) == (site.host, site.port)
        if own_scheme is not None:
            # By name too: a page that was opened under it needs a credential.
            return here and site.scheme == own_scheme
        if here and (":" in name or _is_ipv4(name)):
            return True
        return default is not None and site.host in _LOOPBACK and name in _LOOPBACK


def _read_entry(entry: str) -> Origin:
    wild, rest = ("*.", entry.replace("://*.", "://", 1)) if "://*." in entry else ("", entry)
    origin = read_origin(rest)
    return origin._replace(host=wild + origin.host)


def _forms(name: str) -> Iterator[str]:
    """Yield the entries that cover a name: itself, and `*.` before each name that it is under."""
    yield name
    parent = name.partition(".")[2]
    while parent:
        yield f"*.{parent}"
        parent = parent.partition(".")[2]


def _is_ipv4(name: str) -> bool:
    try:
        IPv4Address(name)
    except ValueError:
        return False
    return True
