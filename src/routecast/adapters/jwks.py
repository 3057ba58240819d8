"""The keys that an identity provider publishes: a JWK set (RFC 7517), fetched over HTTPS.

The provider is trusted to name keys. It is not trusted to answer soon, or with what it should: an
answer has limits of time and size, and a key that cannot be used does not spoil the others.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from ipaddress import ip_address
from typing import IO, Any, Final, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    ProxyHandler,
    Request,
    build_opener,
)

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm

from routecast.adapters.jwt_keys import EDDSA, ES256, MAX_RSA_BITS, RS256, TokenKey, algorithm_of
from routecast.errors import BadSettings, Unavailable
from routecast.urls import masked

# A set has a few keys, of 400 bytes or, with certificates, some KiB each.
MAX_JWKS_BYTES: Final = 2**20
MAX_JWKS_KEYS: Final = 100
# The whole fetch: the name, the connection, TLS, redirects and the body; in seconds.
JWKS_SECONDS: Final = 5.0
# Characters of a key's number in base64url.
_MAX_NUMBER: Final = MAX_RSA_BITS // 6 + 2
_MAX_KID: Final = 255
T = TypeVar("T")

# The algorithm of each type of key (`kty`), and the members that make the key.
_KEY_TYPES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "RSA": (RS256, ("n", "e")),
    "EC": (ES256, ("x", "y")),
    "OKP": (EDDSA, ("x",)),
}


class JwkSet:
    """A JWK set at a URL. Raises BadSettings if it must not be fetched from there."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._shown = masked(url)
        self._downloads = Downloads(1)
        setting = f"jwks_url (ROUTECAST_JWKS_URL) {self._shown!r}"
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise BadSettings(f"{setting}: {error}") from None
        if not host or parts.scheme not in ("http", "https") or not url.isascii():
            raise BadSettings(f"{setting}: must be like https://login.example/jwks.json")
        if "@" in parts.netloc:
            raise BadSettings(f"{setting}: must have no user and no password in it")
        self._local = is_loopback(host)
        if parts.scheme == "http" and not self._local:
            raise BadSettings(
                f"{setting}: must begin with https://, because anyone on the way could replace keys"
            )

    async def fetch(self) -> list[TokenKey]:
        """Return the keys of the set that can be used. Raises Unavailable."""
        request = Request(self._url, headers={"Accept": "application/json"})  # noqa: S310  -- checked
        download = Download(request, self._local)
        try:
            keys = await self._downloads.run(download, lambda: read_set(download.run()))
        except TimeoutError:
            raise Unavailable(
                f"the keys for tokens at {self._shown} did not come within {JWKS_SECONDS:g} s"
            ) from None
        except BadAnswer as error:
            raise Unavailable(f"the keys for tokens at {self._shown}: {error}") from None
        if not keys:
            raise Unavailable(
                f"the keys for tokens at {self._shown}: none can be used; there must be an RSA key "
                "of 2,048 to 8,192 bits for RS256, a P-256 key for ES256, or an Ed25519 key"
            )
        return keys


class BadAnswer(Exception):
    """Something could not be fetched; the text says why, and has nothing from the answer's body.

    Attributes:
        status: The status of the answer; None if there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Downloads:
    """Runs downloads in `at_once` threads of its own.

    One that is given up keeps its thread while it looks up a name or connects, which cannot be
    ended from outside. In the threads of asyncio, it would keep commits and revocations waiting.
    """

    def __init__(self, at_once: int) -> None:
        self._threads = ThreadPoolExecutor(at_once, "download")

    async def run(self, download: "Download", work: Callable[[], T]) -> T:
        """Return what `work` returns, which runs the download. Cancelling it is safe.

        Raises BadAnswer, and TimeoutError after JWKS_SECONDS, also if no thread was free.
        """
        try:
            async with asyncio.timeout(JWKS_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            download.abort()


class Download:
    """One fetch of up to MAX_JWKS_BYTES, in a thread. Once connected, `abort` ends it from another.

    `local` is whether the host is this machine.
    """

    def __init__(self, request: Request, local: bool) -> None:
        self._request = request
        self._local = local
        self.aborted = False
        self.socket: socket.socket | None = None

    def run(self) -> bytes:
        """Return the body of the answer. Raises BadAnswer."""
        opener = build_opener(
            # A proxy of the environment cannot reach this machine's own addresses.
            ProxyHandler({} if self._local else None),
            _WatchedHTTP(self),
            _WatchedHTTPS(self),
            _SameHost(),
        )
        try:
            # The time of each step, for those that `abort` cannot end: one address, or TLS.
            with opener.open(self._request, timeout=JWKS_SECONDS) as answer:
                if answer.status != 200:
                    raise BadAnswer(f"the answer has the status {answer.status}")
                body: bytes = answer.read(MAX_JWKS_BYTES + 1)
        except HTTPError as error:
            error.close()
            raise BadAnswer(f"the answer has the status {error.code}", error.code) from None
        except URLError as error:
            raise BadAnswer(str(error.reason)) from None
        except (OSError, HTTPException, ValueError) as error:
            raise BadAnswer(f"the answer cannot be read: {type(error).__name__}") from None
        if len(body) > MAX_JWKS_BYTES:
            raise BadAnswer(f"the answer is over {MAX_JWKS_BYTES:,} bytes")
        return body

    def abort(self) -> None:
        """End the fetch if it still runs: its thread would wait for the server otherwise."""
        self.aborted = True
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def connected(self, to: socket.socket) -> None:
        """Remember a socket that `abort` shuts down. Raises OSError if it was called already."""
        self.socket = to
        if self.aborted:
            raise OSError("the fetch was given up")


class _WatchedHTTP(HTTPHandler):
    """Opens HTTP connections whose sockets a download knows."""

    def __init__(self, download: Download) -> None:
        super().__init__()
        self._download = download

    def http_open(self, req: Request) -> HTTPResponse:
        download = self._download

        class Watched(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                download.connected(self.sock)

        return self.do_open(Watched, req)


class _WatchedHTTPS(HTTPSHandler):
    """The same over TLS, with the system's certificates."""

    def __init__(self, download: Download) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(context=self._tls)
        self._download = download

    def https_open(self, req: Request) -> HTTPResponse:
        download = self._download

        class WatchedTLS(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                download.connected(self.sock)

        return self.do_open(WatchedTLS, req, context=self._tls)


class _SameHost(HTTPRedirectHandler):
    """Follows redirects to the same scheme, host and port only."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if _origin(urlsplit(newurl)) != _origin(urlsplit(req.full_url)):
            fp.close()
            raise BadAnswer("the answer is a redirect to another host")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def read_set(body: bytes) -> list[TokenKey]:
    """Return the keys of a JWK set that can be used. Raises BadAnswer if it is no set."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise BadAnswer("the answer is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise BadAnswer("the answer is no JWK set: it has no list `keys`")
    if len(entries) > MAX_JWKS_KEYS:
        raise BadAnswer(f"the answer has more than {MAX_JWKS_KEYS} keys")
    return [key for entry in entries if (key := _key(entry)) is not None]


def _key(entry: object) -> TokenKey | None:
    """Return a key of a set; None if it is for another use, or of a type that is not used."""
    if not isinstance(entry, dict):
        return None
    kind, kid, operations = entry.get("kty"), entry.get("kid"), entry.get("key_ops", ["verify"])
    if not isinstance(kind, str) or kind not in _KEY_TYPES:
        return None
    if entry.get("use", "sig") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if kid is not None and (not isinstance(kid, str) or len(kid) > _MAX_KID):
        return None
    algorithm, members = _KEY_TYPES[kind]
    if entry.get("alg", algorithm) != algorithm:
        return None
    # The public part alone, whatever else the entry has in it.
    public: dict[str, Any] = {name: entry.get(name) for name in ("kty", "crv", *members)}
    if not all(isinstance(public[name], str) for name in members):
        return None
    if any(len(public[name]) > _MAX_NUMBER for name in members):
        return None
    try:
        key = jwt.get_algorithm_by_name(algorithm).from_jwk(public)
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
        return None
    # Too short a key, or one on another curve, has no algorithm.
    return TokenKey(algorithm, key, kid) if algorithm_of(key) == algorithm else None
