"""Batches of decisions over HTTP, on one connection that is opened again when it is lost."""

import base64
import codecs
import gzip
import http.client
import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from routecast.client.address import Server
from routecast.client.credentials import Token, bearer
from routecast.client.reasons import describe
from routecast.errors import Refused, Unauthenticated, Unavailable
from routecast.protocol import Position, Problem, Receipt

TIMEOUT: Final = 15.0  # seconds to connect, and to wait for an answer: a commit may wait five
_COMPRESS_FROM: Final = 4096  # bytes; less is a packet or two either way
_LONGEST_ASKED: Final = 300
_AGAIN: Final = frozenset({408, 429, 502, 503, 504})
# Connecting looks it up. A child forked in the midst of its first look-up would never find it.
codecs.lookup("idna")
_receipt: Final = msgspec.json.Decoder(Receipt)
_problem: Final = msgspec.json.Decoder(Problem)


class Delivery:
    """Posts batches to one server. For one thread; `close` when done.

    `timeout` is how many seconds it takes to connect, and to wait for an answer, at most.
    """

    def __init__(
        self, server: Server, token: Token | None = None, *, timeout: float = TIMEOUT
    ) -> None:
        parts = urlsplit(server.http("/v1/decisions"))
        self._path = parts.path
        self._server = server
        self._token = token
        self._headers = {"Content-Type": "application/json"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        assert parts.hostname  # `Server.parse` saw to it
        self._connection = (
            http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=ssl.create_default_context()
            )
            if parts.scheme == "https"
            else http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        )

    def send(self, body: bytes) -> Receipt:
        """Post a JSON array of decisions; return what became of them.

        Raises Unavailable when it may be sent again, after `retry_after` seconds, and Refused when
        it would be refused again.
        """
        headers = dict(self._headers)
        if self._token is not None:
            headers["Authorization"] = bearer(self._token)
        if len(body) >= _COMPRESS_FROM:
            body = gzip.compress(body, compresslevel=1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        idle = self._connection.sock is not None
        try:
            try:
                return self._exchange(body, headers)
            except ConnectionError:
                if not idle:
                    raise
                # A server may hang up on an idle connection just as it is used again.
                self.close()
                return self._exchange(body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            why = describe(error) if isinstance(error, OSError) else "the connection broke"
            raise Unavailable(f"{self._server}: {why}", retry_after=0) from None

    def close(self) -> None:
        """Hang up; the next `send` connects again."""
        self._connection.close()

    def _exchange(self, body: bytes, headers: dict[str, str]) -> Receipt:
        self._connection.request("POST", self._path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status == 200:
            try:
                return _receipt.decode(text)
            except msgspec.DecodeError:
                raise Refused(
                    answer.status,
                    f"{self._server} does not answer as Routecast does",
                ) from None
        problem = _read_problem(text)
        if answer.status == 422 and isinstance(problem.rejected_count, int):
            return _all_rejected(problem)
        words = f"{self._server} answered {answer.status}: {problem.detail or answer.reason}"
        if answer.status in _AGAIN:
            raise Unavailable(words, retry_after=_asked(answer.getheader("Retry-After", "")))
        if answer.status == 401:
            raise Unauthenticated(answer.status, words)
        raise Refused(answer.status, words)


def _read_problem(text: bytes) -> Problem:
    try:
        return _problem.decode(text)
    except msgspec.DecodeError:  # a proxy's page
        return Problem(title="", status=0, detail="")


def _all_rejected(problem: Problem) -> Receipt:
    """Return the answer 422 as a receipt: it says the same, but for the position."""
    assert isinstance(problem.rejected_count, int)
    rejected = problem.rejected if isinstance(problem.rejected, list) else []
    return Receipt(0, 0, rejected, problem.rejected_count, Position("", 0))


def _asked(text: str) -> int:
    """Return the seconds of a `Retry-After`; a date, as some proxies send, counts as nothing."""
    return min(int(text), _LONGEST_ASKED) if text.isdecimal() else 0
