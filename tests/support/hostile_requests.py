"""Requests that try to break HTTP/1.1 parsing, each with its one right outcome.

`CORPUS` has a `Hostile` for each attack, and `attack` sends one over a socket and returns the
outcome. The server has two paths for requests: the fast path for small batches, and ASGI. A request
with the placeholder `VARIANT_MARK` is tried on both.

Many bodies contain a complete request for `HIDDEN_PATH`, which no server has: an answer with status
404 shows that bytes of a body were parsed as a request.
"""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

HOST: Final = b"@HOST"  # replaced by the address that the client connects to
VARIANT_MARK: Final = (
    b"@VARIANT\r\n"  # replaced by the header line that chooses the path, or by nothing
)
HIDDEN_PATH: Final = b"/hidden-in-a-body"
HIDDEN: Final = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % HIDDEN_PATH
GOOD: Final = b'{"strategy":"hybrid","provider":"gemini"}'
WAIT_SECONDS: Final = 10.0
MIB: Final = 2**20

Variant = Literal["fast", "asgi"]
VARIANTS: Final[tuple[Variant, ...]] = ("fast", "asgi")
# A page at the server's own address sends an Origin, and such a request goes through ASGI.
_VARIANT_LINES: Final = {"fast": b"", "asgi": b"Origin: http://%s\r\n" % HOST}
After = Literal["open", "closed", "either"]


@dataclass(frozen=True, slots=True)
class Hostile:
    """One attack.

    `sent` are the pieces, each one write. `statuses` has a set for each answer that must come, in
    order; no other may come. `after` tells whether the connection can be used again. `kept` is the
    number of decisions that count. `bodiless` marks answers to HEAD. `at_once` marks an attack that
    has to arrive before its first request is answered.
    """

    name: str
    sent: tuple[bytes, ...]
    statuses: tuple[frozenset[int], ...]
    after: After
    kept: int = 0
    bodiless: bool = False
    at_once: bool = False

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The paths on which it is tried."""
        return VARIANTS if any(VARIANT_MARK in piece for piece in self.sent) else ("fast",)

    def pieces(self, host: str, variant: Variant = "fast") -> list[bytes]:
        """Return the bytes to send to a server at `host`, which is an address with a port."""
        line = _VARIANT_LINES[variant]
        return [
            piece.replace(VARIANT_MARK, line).replace(HOST, host.encode()) for piece in self.sent
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an attack: statuses and bodies of the answers, and the connection's state."""

    statuses: tuple[int, ...]
    bodies: tuple[bytes, ...]
    open: bool

    @property
    def leaked(self) -> bool:
        """Whether bytes of a body were parsed as a request."""
        return 404 in self.statuses or HIDDEN_PATH in b"".join(self.bodies)


# -- building blocks ----------------------------------------------------------------------------


def post(*lines: bytes, body: bytes = b"", variant: bool = True) -> bytes:
    """Return a POST of decisions with these header lines."""
    head = b"POST /v1/decisions HTTP/1.1\r\nHost: %s\r\n" % HOST
    return (
        head
        + (VARIANT_MARK if variant else b"")
        + b"".join(line + b"\r\n" for line in lines)
        + b"\r\n"
        + body
    )


def get(path: bytes, *lines: bytes, body: bytes = b"", method: bytes = b"GET") -> bytes:
    """Return a request without decisions with these header lines."""
    head = b"%s %s HTTP/1.1\r\nHost: %s\r\n" % (method, path, HOST)
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def length(body: bytes) -> bytes:
    """Return the header line that announces a body."""
    return b"Content-Length: %d" % len(body)


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    """Return one chunk."""
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def chunked(data: bytes, trailers: bytes = b"") -> bytes:
    """Return a body as one chunk, with trailer lines."""
    return chunk(data) + b"0\r\n" + trailers + b"\r\n"


LINES: Final = b"Content-Type: application/x-ndjson"
TE: Final = b"Transfer-Encoding: chunked"
# A good decision, and a request as a line of the body, which must be rejected as a decision.
SMUGGLING: Final = GOOD + b"\r\n" + HIDDEN
OK: Final = (frozenset({200}),)
BAD: Final = (frozenset({400}),)
REFUSED: Final = (frozenset({400, 405, 413, 431, 501, 505}),)


def good(name: str, *sent: bytes, kept: int = 1, answers: int = 1) -> Hostile:
    """Return an unusual but valid case: it is answered, and the connection stays."""
    return Hostile(name, sent, OK * answers, "open", kept)


def bad(name: str, *sent: bytes) -> Hostile:
    """Return a case that is refused with 400, and ends the connection."""
    return Hostile(name, sent, BAD, "closed")


# -- the corpus ---------------------------------------------------------------------------------


def _framing() -> Iterator[Hostile]:
    yield good("a plain request (control)", post(length(GOOD), body=GOOD))
    yield good("head and body apart", post(length(GOOD)), GOOD)
    yield good("chunked", post(TE, body=chunked(GOOD)))
    yield good("blank lines before the request", b"\r\n\r\n" + post(length(GOOD), body=GOOD))
    yield good("space after the length", post(length(GOOD) + b" \t", body=GOOD))
    for name, line in {
        "length and chunked": length(GOOD) + b"\r\n" + TE,
        "chunked and length": TE + b"\r\n" + length(GOOD),
        "length with a sign": b"Content-Length: +41",
        "negative length": b"Content-Length: -1",
        "length as a list": b"Content-Length: 41, 41",
        "length twice, equal": length(GOOD) + b"\r\n" + length(GOOD),
        "length twice, different": length(GOOD) + b"\r\nContent-Length: 3",
        "length in hexadecimal": b"Content-Length: 0x29",
        "length with a space within": b"Content-Length: 4 1",
        "empty length": b"Content-Length:",
        "length beyond 64 bits": b"Content-Length: 99999999999999999999999",
        "length with a space before the colon": b"Content-Length : 41",
        "chunked twice in a field": b"Transfer-Encoding: chunked, chunked",
        "chunked in two fields": TE + b"\r\n" + TE,
        "identity after chunked": b"Transfer-Encoding: chunked, identity",
        "identity": b"Transfer-Encoding: identity",
        "almost chunked": b"Transfer-Encoding: xchunked",
        "chunked in quotes": b'Transfer-Encoding: "chunked"',
        "chunked with a parameter": b"Transfer-Encoding: chunked;q=1",
        "vertical tab before chunked": b"Transfer-Encoding: \x0bchunked",
        "empty transfer coding": b"Transfer-Encoding:",
        "transfer coding with a space before the colon": b"Transfer-Encoding : chunked",
        "transfer coding on a folded line": b"Transfer-Encoding:\r\n chunked",
        "an underscore is no dash": b"Transfer_Encoding: chunked\r\n"
        + TE
        + b"\r\nContent-Length: 5",
    }.items():
        yield Hostile(name, (post(line, body=HIDDEN),), REFUSED, "closed")
    yield Hostile(
        "a transfer coding that is not known",
        (post(b"Transfer-Encoding: gzip, chunked", body=chunked(GOOD)),),
        (frozenset({400, 501}),),
        "closed",
    )
    old = b"POST /v1/decisions HTTP/1.0\r\nHost: %s\r\n%s\r\n" % (HOST, TE)
    yield bad("chunked over HTTP/1.0", old + b"\r\n" + chunked(GOOD) + HIDDEN)


def _chunks() -> Iterator[Hostile]:
    for name, body in {
        "size with a prefix": b"0x29\r\n" + GOOD + b"\r\n0\r\n\r\n",
        "negative size": b"-29\r\n" + GOOD + b"\r\n0\r\n\r\n",
        "size with a plus": b"+29\r\n" + GOOD + b"\r\n0\r\n\r\n",
        "size beyond 64 bits": b"f" * 17 + b"\r\n" + GOOD,
        "no size": b"\r\n" + GOOD + b"\r\n0\r\n\r\n",
        "size after a space": b" 29\r\n" + GOOD + b"\r\n0\r\n\r\n",
        "size before spaces": b"29  \r\n" + GOOD + b"\r\n0\r\n\r\n",
        "size that ends with a bare LF": b"29\n" + GOOD + b"\n0\n\n",
        "size that ends with a bare CR": b"29\r" + GOOD,
        "extension with a bare LF": b"29;a\nb\r\n" + GOOD + b"\r\n0\r\n\r\n",
        "data longer than its size": b"5\r\n" + GOOD + b"\r\n0\r\n\r\n",
        "data shorter than its size": b"2b\r\n" + GOOD + b"\r\n0\r\n\r\n",
        "NUL in the size": b"29\0\r\n" + GOOD + b"\r\n0\r\n\r\n",
        "trailer with a NUL": chunked(GOOD, b"X: a\0b\r\n"),
        "trailer that is no field": chunked(GOOD, b"X\r\n"),
        "trailer with a bare LF": chunked(GOOD, b"X: a\nY: b\r\n"),
    }.items():
        yield bad(f"chunk: {name}", post(TE, body=body + HIDDEN))
    yield good("chunk: extensions", post(TE, body=chunk(GOOD, b";a=b;c") + b"0;d\r\n\r\n"))
    yield good(
        "chunk: upper and lower case",
        post(TE, body=b"1C\r\n" + GOOD[:28] + b"\r\nd\r\n" + GOOD[28:] + b"\r\n0\r\n\r\n"),
    )
    yield good("chunk: leading zeros", post(TE, body=b"0000" + chunked(GOOD)))
    tiny = b"".join(chunk(GOOD[at : at + 1]) for at in range(len(GOOD)))
    yield good("chunk: one byte each", post(TE, body=tiny + b"0\r\n\r\n"))
    yield bad("chunk: 40,000 of one byte", post(TE, body=chunk(b" ") * 40_000 + chunked(GOOD)))
    yield bad("chunk: an extension of 1 MiB", post(TE, body=b"1;" + b"x" * MIB))
    yield bad("chunk: a size of 1 MiB of zeros", post(TE, body=b"0" * MIB))


def _trailers() -> Iterator[Hostile]:
    yield good("trailers are dropped", post(TE, body=chunked(GOOD, b"X: 1\r\nY:\r\n")))
    smuggled = b"Origin: http://evil.example\r\nHost: evil.example\r\nX-Forwarded-For: 1.2.3.4\r\n"
    smuggled += b"Authorization: x\r\nContent-Encoding: br\r\nUpgrade: h2c\r\n"
    yield good("trailers are no headers", post(TE, body=chunked(GOOD, smuggled)))
    yield good(
        "a trailer is no header of the next request",
        post(TE, body=chunked(GOOD, b"Origin: http://evil.example\r\n"))
        + post(length(GOOD), body=GOOD),
        kept=2,
        answers=2,
    )
    upgrade = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
    yield good(
        "an upgrade in trailers", post(TE, body=chunked(GOOD, upgrade)) * 2, kept=2, answers=2
    )
    close = post(TE, body=chunked(GOOD, b"Connection: close\r\n"))
    yield Hostile("a trailer that ends the connection", (close + HIDDEN,), OK, "closed", 1)
    for framing in (b"Content-Length: 5\r\n", b"Transfer-Encoding: gzip\r\n"):
        name = framing.partition(b":")[0].decode()
        yield bad(f"a trailer {name}", post(TE, body=chunked(GOOD, framing) + HIDDEN))
    evil = b"POST /v1/decisions HTTP/1.1\r\nHost: %s\r\nOrigin: http://evil.example\r\n" % HOST
    cure = b"Origin: http://%s\r\n" % HOST
    yield Hostile(
        "a trailer does not let a page in",
        (evil + TE + b"\r\n\r\n" + chunked(GOOD, cure),),
        (frozenset({403}),),
        "open",
    )
    many = b"a:\r\n" * 60_000
    yield bad("240 kB of trailers", post(TE, body=chunk(GOOD) + b"0\r\n" + many))
    yield bad("a trailer of 1 MiB", post(TE, body=chunk(GOOD) + b"0\r\nX: " + b"y" * MIB))
    for path in (b"/health", b"/routing/metrics"):
        # The answer may go out before the limit is reached.
        yield Hostile(
            f"endless trailers of GET {path.decode()}",
            (get(path, TE, body=b"0\r\n"), *[b"a:\r\n" * 10_000] * 6),
            (frozenset({200, 400}),),
            "closed",
        )


_UPGRADES: Final = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAR",
    "foo": b"Connection: Upgrade\r\nUpgrade: foo",
    "TLS": b"Connection: upgrade\r\nUpgrade: TLS/1.0",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket",
    "a list": b"Connection: Upgrade\r\nUpgrade: websocket, h2c",
    "two Connection fields": b"Connection: keep-alive\r\nConnection: upgrade\r\nUpgrade: h2c",
    "two Upgrade fields": b"Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c",
    "Connection after it": b"Upgrade: h2c\r\nConnection: upgrade",
    "no Connection": b"Upgrade: h2c",
    "Proxy-Connection": b"Proxy-Connection: upgrade\r\nUpgrade: h2c",
    "nothing": b"Connection: upgrade\r\nUpgrade:",
}


def _upgrades() -> Iterator[Hostile]:
    for name, offer in _UPGRADES.items():
        whole = post(LINES, offer, length(SMUGGLING), body=SMUGGLING)
        yield good(f"upgrade to {name}, with a length", whole)
        yield good(f"upgrade to {name}, chunked", post(LINES, offer, TE, body=chunked(SMUGGLING)))
        head = post(LINES, offer, length(SMUGGLING))
        yield good(f"upgrade to {name}, the body apart", head, SMUGGLING)
        yield good(f"upgrade to {name}, twice in a write", whole + whole, kept=2, answers=2)
    h2c = _UPGRADES["h2c"]
    yield good("GET that offers h2c", get(b"/health", h2c), kept=0)
    yield good(
        "GET that offers an upgrade, with a body",
        get(b"/health", h2c, length(HIDDEN), body=HIDDEN),
        kept=0,
    )
    yield Hostile(
        "PUT that offers an upgrade, with a body",
        (get(b"/v1/decisions", h2c, length(HIDDEN), body=HIDDEN, method=b"PUT"),),
        (frozenset({405}),),
        "open",
    )
    socket_lines = (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    yield Hostile(
        "a WebSocket over HTTP/1.0",
        (get(b"/ws/metrics", *socket_lines).replace(b"HTTP/1.1", b"HTTP/1.0"),),
        (frozenset({400, 426}),),
        "closed",
    )
    yield Hostile(
        "a WebSocket with a body",
        (get(b"/ws/metrics", *socket_lines, length(HIDDEN), body=HIDDEN),),
        BAD,
        "closed",
    )
    yield Hostile(
        "a WebSocket by POST",
        (get(b"/ws/metrics", *socket_lines, length(HIDDEN), body=HIDDEN, method=b"POST"),),
        (frozenset({405}),),
        "open",
    )
    yield good("a WebSocket where there is none", get(b"/health", *socket_lines), kept=0)
    for field in (b"Host", b"Origin"):
        yield bad(
            f"a WebSocket with {field.decode()} twice",
            get(b"/ws/metrics", *socket_lines, b"%s: a\r\n%s: a" % (field, field)),
        )
    connect = b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (HOST, HOST)
    yield Hostile("CONNECT", (connect + HIDDEN,), (frozenset({400, 405, 501}),), "closed")


def _fields() -> Iterator[Hostile]:
    body = (length(GOOD),)
    for line in (
        b"Host: %s" % HOST,
        b"Host: evil.example",
        b"Content-Type: application/json\r\nContent-Type: application/x-ndjson",
        b"Content-Type: application/json\r\nContent-Type: application/json",
        b"Authorization: Bearer a\r\nAuthorization: Bearer b",
        b"Origin: http://%s\r\nOrigin: http://evil.example" % HOST,
        b"Origin: http://%s\r\norigin: http://%s" % (HOST, HOST),
    ):
        first = line.partition(b":")[0].decode()
        yield bad(f"{first} twice: {line.decode()!r}", post(line, *body, body=GOOD))
        yield bad(
            f"{first} twice in a GET: {line.decode()!r}",
            get(b"/health", line),
        )
    nobody = b"POST /v1/decisions HTTP/1.1\r\n" + VARIANT_MARK + length(GOOD) + b"\r\n\r\n" + GOOD
    yield bad("no Host", nobody)
    yield bad("no Host in a GET", b"GET /health HTTP/1.1\r\n\r\n")
    for host in (b"a b", b"a/b", b"a@b", b"http://a", b"a, b", b"a:b", b"[::1", b"a:1:2", b"\xff"):
        yield bad(f"Host {host!r}", b"GET /health HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
    for name, line in {
        "a folded field": b"X: a\r\n b",
        "a bare LF": b"X: a\nY: b",
        "a bare CR": b"X: a\rY: b",
        "NUL in a value": b"X: a\0b",
        "NUL in a name": b"X\0: a",
        "a name with a space": b"X Y: a",
        "no colon": b"Abc",
        "no name": b": x",
        "a field of 40 kB": b"X: " + b"y" * 40_000,
        "20,000 fields": b"\r\n".join([b"X: y"] * 20_000),
    }.items():
        yield Hostile(name, (post(line, *body, body=GOOD),), REFUSED, "closed")


def _targets() -> Iterator[Hostile]:
    for name, first in {
        "bare LF": b"GET /health HTTP/1.1\nHost: a\n\n",
        "a tab": b"GET\t/health HTTP/1.1\r\n",
        "no version": b"GET /health\r\n",
        "HTTP/0.9": b"GET /health HTTP/0.9\r\n",
        "HTTP/1.2": b"GET /health HTTP/1.2\r\n",
        "HTTP/2.0": b"GET /health HTTP/2.0\r\n",
        "RTSP": b"DESCRIBE /health RTSP/1.0\r\n",
        "a method in lower case": b"get /health HTTP/1.1\r\n",
        "a method that is none": b"BREW /health HTTP/1.1\r\n",
        "NUL in the target": b"GET /a\0b HTTP/1.1\r\n",
        "a space in the target": b"GET /a b HTTP/1.1\r\n",
        "bytes beyond ASCII": b"GET /\xff HTTP/1.1\r\n",
        "a target of 40 kB": b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\n",
        "a target that is no path": b"GET health HTTP/1.1\r\n",
        "another host in the target": b"GET http://evil.example/health HTTP/1.1\r\n",
        "a field before the first": b"GET /health HTTP/1.1\r\n Host: a\r\n",
    }.items():
        sent = first + b"Host: %s\r\n\r\n" % HOST + HIDDEN
        yield Hostile(f"request line: {name}", (sent,), REFUSED, "closed")
    whole = b"GET http://%s/health HTTP/1.1\r\nHost: %s\r\n\r\n" % (HOST, HOST)
    yield good("an absolute target", whole, kept=0)
    decide = post(length(GOOD), body=GOOD).replace(b"/v1/", b"http://%s/v1/" % HOST, 1)
    yield good("an absolute target of decisions", decide)
    for name, sent in {
        "TLS": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
        "noise": bytes(range(256)),
    }.items():
        yield Hostile(f"another protocol: {name}", (sent,), REFUSED, "closed")
    yield Hostile("blank lines without end", (b"\r\n" * 60_000,), REFUSED, "closed")


def _pipelines() -> Iterator[Hostile]:
    whole = post(length(GOOD), body=GOOD)
    yield good("requests in a write", whole + get(b"/health") + whole, kept=2, answers=3)
    yield good("ten in a write", whole * 10, kept=10, answers=10)
    broken = whole + b"GET /health HTTP/1.1\r\nX: a\0b\r\n\r\n"
    yield Hostile("a bad one behind a good one", (broken,), OK + BAD, "closed", kept=1)
    asgi = get(b"/health") + post(TE, body=b"zz\r\n")
    yield Hostile("a bad body behind a good request", (asgi,), OK + BAD, "closed")
    ended = post(b"Connection: close", length(GOOD), body=GOOD)
    yield Hostile("one behind the last", (ended + HIDDEN,), OK, "closed", kept=1)
    upgrade = get(
        b"/ws/metrics",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    sent = (whole + upgrade,)
    yield Hostile("an upgrade before the last answer", sent, OK + BAD, "closed", 1, at_once=True)


def _heads() -> Iterator[Hostile]:
    for path in (
        *(b"/", b"/health", b"/ready", b"/metrics", b"/routing/metrics", b"/v1/history"),
        *(b"/asyncapi.json", b"/openapi.json", b"/docs", b"/dashboard/main.js"),
    ):
        sent = get(path, method=b"HEAD")
        yield Hostile(f"HEAD {path.decode()}", (sent,), OK, "open", bodiless=True)
    sent = get(b"/sse/metrics", method=b"HEAD")
    yield Hostile("HEAD of a stream", (sent,), OK, "either", bodiless=True)


CORPUS: Final[tuple[Hostile, ...]] = (
    *_framing(),
    *_chunks(),
    *_trailers(),
    *_upgrades(),
    *_fields(),
    *_targets(),
    *_pipelines(),
    *_heads(),
)


# -- sending one --------------------------------------------------------------------------------


def attack(
    case: Hostile, port: int, variant: Variant = "fast", *, host: str = "127.0.0.1", size: int = 0
) -> Outcome:
    """Send a case to a server and return the outcome.

    `size` cuts the pieces into writes of this number of bytes. Raises AssertionError if the server
    sends something that is not HTTP, or nothing within WAIT_SECONDS.
    """
    exchange = _RawExchange(host, port)
    try:
        for piece in case.pieces(f"{host}:{port}", variant):
            for at in range(0, len(piece), size or len(piece)):
                if not exchange.send(piece[at : at + (size or len(piece))]):
                    break
        return exchange.outcome(case)
    finally:
        exchange.socket.close()


class _RawExchange:
    """One connection, and the answers on it."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), WAIT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = f"{host}:{port}".encode()
        self._read = b""
        self._ended = False

    def send(self, data: bytes) -> bool:
        """Send, unless the server has ended the connection."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def outcome(self, case: Hostile) -> Outcome:
        """Read the answers to a case and find out whether the connection is still open."""
        statuses: list[int] = []
        bodies: list[bytes] = []
        while len(statuses) < len(case.statuses):
            answer = self._answer(bodiless=case.bodiless)
            if answer is None:
                return Outcome(tuple(statuses), tuple(bodies), open=False)
            statuses.append(answer[0])
            bodies.append(answer[1])
        if case.after == "either":
            return Outcome(tuple(statuses), tuple(bodies), open=not self._ended)
        # The next answer is to this request, or to one hidden in the case.
        if case.after == "open":
            self.send(b"GET /health HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % self._host)
        probed = False
        while (answer := self._answer()) is not None:
            if case.after == "open" and b'"active_connections"' in answer[1] and not probed:
                probed = True
                continue
            statuses.append(answer[0])
            bodies.append(answer[1])
        return Outcome(tuple(statuses), tuple(bodies), open=probed)

    def _answer(self, *, bodiless: bool = False) -> tuple[int, bytes] | None:
        """Read one answer; None at the end of the connection. Interim ones are left out."""
        while True:
            head = self._until(b"\r\n\r\n")
            if head is None:
                return None
            first, *lines = head.decode("latin-1").split("\r\n")
            assert first.startswith("HTTP/1."), first
            status = int(first.split(" ")[1])
            if status == 101 or status >= 200:
                break
        fields = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        if bodiless or status in (101, 204, 304):
            return status, b""
        if fields.get("transfer-encoding") == "chunked":
            return status, self._chunks()
        if "content-length" in fields:
            return status, self._take(int(fields["content-length"]))
        while self._more():
            pass
        return status, self._take(len(self._read))

    def _chunks(self) -> bytes:
        body = b""
        while True:
            size = self._until(b"\r\n")
            assert size is not None
            data = self._take(int(size, 16) + 2)
            if len(data) == 2:
                return body
            body += data[:-2]

    def _until(self, end: bytes) -> bytes | None:
        while end not in self._read:
            if not self._more():
                assert not self._read, f"the connection ended in {self._read[:200]!r}"
                return None
        found, _, self._read = self._read.partition(end)
        return found

    def _take(self, count: int) -> bytes:
        while len(self._read) < count:
            assert self._more(), f"the connection ended in {self._read[:200]!r}"
        taken, self._read = self._read[:count], self._read[count:]
        return taken

    def _more(self) -> bool:
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            read = self.socket.recv(65_536)
        except TimeoutError:
            raise AssertionError(f"no answer within {WAIT_SECONDS} s") from None
        except ConnectionError:
            read = b""
        assert time.monotonic() <= deadline + 1
        self._ended = not read
        self._read += read
        return bool(read)
