"""The opening handshake, by `websockets`: the request, the negotiated terms, and the answer."""

from binascii import Error, a2b_base64
from collections.abc import Collection, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple

from starlette.responses import Response
from websockets.datastructures import Headers
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.http11 import Request
from websockets.http11 import Response as WireResponse
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.utils import accept_key

from routecast.edge.access import BEARER_PROTOCOL, find_credential, split_bearers
from routecast.edge.problem import NOSNIFF, respond_error
from routecast.edge.ws.frames import WINDOW_BITS
from routecast.edge.ws.messages import silent_log
from routecast.errors import RoutecastError

_DEFLATE_TERMS: Final = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True, client_no_context_takeover=True
)
_DEFLATE_ON: Final = ServerPerMessageDeflateFactory(client_no_context_takeover=True)

# The maximum number of cached sets of terms. Clients with the same software ask for the same.
REMEMBERED_TERMS: Final = 64
_NONCE_BYTES: Final = 16
_KEY: Final = b"sec-websocket-key"
_PROTOCOL: Final = b"sec-websocket-protocol"
# The negotiated terms depend on these fields only.
_TERMS: Final = (
    b"connection",
    b"upgrade",
    b"sec-websocket-version",
    _PROTOCOL,
    b"sec-websocket-extensions",
)
_SOME_KEY: Final = b"dGhlIHNhbXBsZSBub25jZQ=="

_Fields = Sequence[tuple[bytes, bytes]]


class UpgradeRequest:
    """An upgrade request: its method, its target, and its fields with names in lower case.

    Bytes beyond ASCII are taken as ISO-8859-1 (RFC 9110, 5.5). A credential among the subprotocols
    is not one of the fields, so that it is never remembered, answered or part of an error.
    """

    __slots__ = ("_bearers", "_by_name", "fields", "method", "scheme", "target")

    def __init__(self, method: str, target: bytes, fields: _Fields) -> None:
        self.method = method
        self.target = target
        self.scheme = "http"  # or https, once a trusted proxy was found to say so
        self.fields = fields
        self._by_name = dict(fields)
        self._bearers: Sequence[bytes] = ()
        protocols = self._by_name.get(_PROTOCOL)
        if protocols is not None and (
            BEARER_PROTOCOL in protocols or len(self._by_name) != len(fields)
        ):
            self._take_bearers()

    def _take_bearers(self) -> None:
        kept, found = [], []
        for name, value in self.fields:
            if name == _PROTOCOL:
                value, bearers = split_bearers(value)
                found += bearers
                if bearers and not value:
                    continue  # no other subprotocol is offered
            kept.append((name, value))
        if found:
            self.fields, self._by_name, self._bearers = kept, dict(kept), found

    @property
    def credential(self) -> str | None:
        """The credential; None if it has none. Raises BadCredential, BadHead."""
        return find_credential(self._by_name.get(b"authorization"), self._bearers)

    def __contains__(self, name: bytes) -> bool:
        return name in self._by_name

    def get(self, name: bytes) -> str | None:
        """Return a field's value, the last one if it comes more than once; None without it."""
        value = self._by_name.get(name)
        return None if value is None else value.decode("latin-1")

    def get_all(self, name: bytes) -> list[str]:
        """Return all values of a field, in their order."""
        if name not in self._by_name:
            return []
        return [value.decode("latin-1") for each, value in self.fields if each == name]

    def terms(self) -> tuple[bytes | None, ...] | None:
        """Return the values of the fields of _TERMS; None if any field comes more than once."""
        if len(self._by_name) != len(self.fields):
            return None
        return tuple(map(self._by_name.get, _TERMS))


class Agreement(NamedTuple):
    """The answer to an upgrade request; if it is 101, also the negotiated terms."""

    answer: bytes
    accepted: bool
    subprotocol: Subprotocol | None = None
    inflates: bool = False  # the client may send deflated messages
    deflates: bool = False  # the server may send them, with a window of WINDOW_BITS
    remembers: bool = False  # the client keeps the context of the message before


class Handshakes:
    """Answers upgrade requests, for all connections of a server.

    One `ServerProtocol` reads all requests: its `accept` only inspects a request and builds the
    answer. The protocol object is never opened, so all connections share it. For terms that are
    cached, only the answer to the client's key is new.
    """

    def __init__(self, subprotocols: Collection[str], *, compress: bool) -> None:
        self._subprotocols = subprotocols
        self._compress = compress

        def choose(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
            # None is the default stream: the client requests no subprotocol that the server has.
            return next((name for name in offered if name in subprotocols), None)

        self._protocol = ServerProtocol(select_subprotocol=choose, logger=silent_log)
        self._agree_on = lru_cache(REMEMBERED_TERMS)(self._try)

    def answer(self, request: UpgradeRequest) -> Agreement:
        """Return the answer to a request, 101 or an HTTP error's."""
        terms, key = request.terms(), request.get(_KEY)
        if terms is not None and key is not None and _is_nonce(key):
            known = self._agree_on(terms)
            if known.accepted:
                ours = accept_key(key).encode()
                return known._replace(answer=known.answer.replace(_ACCEPTED, ours, 1))
        return self.negotiate(request.fields)

    @property
    def remembered(self) -> int:
        """The number of cached sets of terms."""
        return self._agree_on.cache_info().currsize

    def _try(self, terms: tuple[bytes | None, ...]) -> Agreement:
        """Return the agreement for terms, with an example key."""
        fields = [
            (name, value) for name, value in zip(_TERMS, terms, strict=True) if value is not None
        ]
        return self.negotiate([*fields, (_KEY, _SOME_KEY)])

    def negotiate(self, fields: _Fields) -> Agreement:
        """Return the answer of `websockets` to a request with these fields."""
        protocol = self._protocol
        protocol.available_extensions = self._offer(fields) if self._compress else None
        answer = protocol.accept(Request("", _headers(fields)))
        extensions, protocol.extensions, protocol.handshake_exc = protocol.extensions, [], None
        if answer.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            answer.headers["Sec-WebSocket-Version"] = "13"  # the supported one (RFC 6455, 4.2.2)
            answer.headers.update(_headers([NOSNIFF]))
            return Agreement(answer.serialize(), accepted=False)
        del answer.headers["Date"]  # so that the answer can be cached (RFC 9110, 6.6.1)
        agreement = Agreement(answer.serialize(), accepted=True, subprotocol=protocol.subprotocol)
        for extension in extensions:
            assert isinstance(extension, PerMessageDeflate)
            # All share one window size; a client that asks for a smaller one gets plain frames.
            agreement = agreement._replace(
                inflates=True,
                deflates=extension.local_max_window_bits == WINDOW_BITS,
                remembers=not extension.local_no_context_takeover,
            )
        return agreement

    def _offer(self, fields: _Fields) -> Sequence[ServerPerMessageDeflateFactory]:
        offered = b"".join(value for name, value in fields if name == _PROTOCOL).decode("latin-1")
        return [
            _DEFLATE_ON if any(name in offered for name in self._subprotocols) else _DEFLATE_TERMS
        ]


_ACCEPTED: Final = accept_key(_SOME_KEY.decode()).encode()


def _is_nonce(key: str) -> bool:
    """Whether a key is certainly valid; `websockets` decides on all others."""
    try:
        return len(a2b_base64(key, strict_mode=True)) == _NONCE_BYTES
    except (Error, ValueError):
        return False


def _headers(fields: _Fields) -> Headers:
    return Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields])


def refuse(error: RoutecastError) -> bytes:
    """Return the HTTP answer that refuses a request and ends the connection."""
    return final(respond_error(error))


def final(answer: Response) -> bytes:
    """Return an HTTP answer that ends the connection."""
    headers = _headers(answer.raw_headers)
    headers["Connection"] = "close"
    status = HTTPStatus(answer.status_code)
    return WireResponse(status, status.phrase, headers, bytes(answer.body)).serialize()
