"""`HttpSender`: posts batches of decisions over HTTP, and reconnects after a lost connection."""

import codecs
import gzip
import http.client
import logging
from typing import Final

import msgspec

from routecast.client.answers import HttpAnswer, explain, followed, plain
from routecast.client.auth import Token, advice, bearer
from routecast.client.http_exchange import Exchange
from routecast.client.stream_errors import describe
from routecast.client.url import Server
from routecast.errors import Refused, RoutecastError, Unauthenticated, Unavailable
from routecast.protocol import Position, Problem, Receipt, Rejection
from routecast.retry import Outcome, after_batch

logger: Final = logging.getLogger("routecast.client")

TIMEOUT: Final = 15.0  # seconds for a whole exchange; a commit may take five
_COMPRESS_FROM: Final = 4096  # bytes; less takes one or two packets with or without compression
# Connecting looks this codec up. A child that is forked during the first look-up would never find
# it.
codecs.lookup("idna")
_receipt: Final = msgspec.json.Decoder(Receipt)


class Unreachable(Unavailable):
    """There was no connection, or it was lost before the answer was complete."""


class NotOurs(Unavailable):
    """The answer is not Routecast's but that of a proxy, and may be temporary."""


class HttpSender:
    """Posts batches to one server, for one thread; `close` it after use.

    `timeout` is for one whole exchange, in seconds; `proxy` is the URL of an HTTP proxy.
    """

    def __init__(
        self,
        server: Server,
        token: Token | None = None,
        *,
        timeout: float = TIMEOUT,
        proxy: str | None = None,
    ) -> None:
        self._server = server
        self._token = token
        self._timeout = timeout
        self._proxy = proxy
        self._url = server.http("/v1/decisions")
        self._exchange = Exchange(self._url, timeout, proxy)
        self._is_redirect_logged = False

    def send(self, body: bytes, count: int) -> Receipt:
        """Post a JSON array of `count` decisions; return the receipt.

        Raises Unavailable if the batch may be sent again after `retry_after` seconds: Unreachable
        without an answer, NotOurs after one that is not Routecast's. Raises Refused if it would be
        refused again; after the code 413, its halves may be accepted.
        """
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = self._authorization(self._token)
        if len(body) >= _COMPRESS_FROM:
            body = gzip.compress(body, compresslevel=1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        try:
            answer = self._post(body, headers)
            if target := followed(answer, self._exchange.url):
                answer = self._follow(answer, target, body, headers)
            return self._checked(self._read(answer), count)
        except Exception:
            # The target of a redirect is used only while it works.
            if self._exchange.url != self._url:
                self._turn_to(self._url)
            raise

    def _checked(self, receipt: Receipt, count: int) -> Receipt:
        """Return a receipt. Raises NotOurs unless it answers for exactly the sent decisions."""
        answered_for = receipt.accepted + receipt.duplicates + receipt.conflicts
        answered_for += receipt.rejected_count
        indexes = [one.index for one in receipt.rejected] + [one.index for one in receipt.warnings]
        are_valid = all(0 <= index < count for index in indexes)
        if answered_for != count or len(receipt.rejected) > receipt.rejected_count or not are_valid:
            words = f"answered for {answered_for:,} decisions of {count:,}"
            if answered_for == count:
                words = "named decisions that were not sent"
            raise NotOurs(f"{self._server} {words}: it is not a Routecast server", retry_after=0)
        return receipt

    @staticmethod
    def _authorization(token: Token) -> str:
        try:
            return bearer(token)
        except RoutecastError:
            raise
        except (
            Exception,
            SystemExit,
        ) as error:  # of the program's function
            words = f"there is no token: {type(error).__name__}: {error}"
            raise Unavailable(words, retry_after=0) from error

    def close(self) -> None:
        """Close the connection; the next `send` connects again."""
        self._exchange.close()

    def _post(self, body: bytes, headers: dict[str, str]) -> HttpAnswer:
        try:
            return self._exchange.post(body, headers)
        except (OSError, http.client.HTTPException) as error:
            broke = isinstance(error, http.client.HTTPException)  # some of these are OSErrors, too
            why = "the connection broke" if broke else describe(error)
            raise Unreachable(f"{self._server}: {why}", retry_after=0) from None

    def _follow(
        self, answer: HttpAnswer, target: str, body: bytes, headers: dict[str, str]
    ) -> HttpAnswer:
        """Send this and later batches to the target of a redirect."""
        words = f"{self._server} {explain(answer, self._url)}"
        self._turn_to(target)
        try:
            followed_to = self._post(body, headers)
        except Unreachable as error:
            why = str(error).removeprefix(f"{self._server}: ")
            raise NotOurs(f"{words} (there: {why})", retry_after=0) from None
        if not self._is_redirect_logged:
            self._is_redirect_logged = True
            logger.warning("%s; following it", words)
        return followed_to

    def _turn_to(self, url: str) -> None:
        self._exchange.close()
        self._exchange = Exchange(url, self._timeout, self._proxy)

    def _read(self, answer: HttpAnswer) -> Receipt:
        problem = answer.problem
        if problem is None and answer.status == 200 and (receipt := _read_receipt(answer)):
            return receipt
        if problem is not None and answer.status == 422 and (receipt := _all_rejected(problem)):
            return receipt
        words = f"{self._server} {explain(answer, self._exchange.url)}"
        match after_batch(answer.status, own=problem is not None):
            case Outcome.RETRY:
                # A server that answers early may not read the body: do not reuse the connection.
                self.close()
                kind = NotOurs if problem is None else Unavailable
                raise kind(words, retry_after=answer.retry_after)
            case Outcome.NEW_TOKEN:
                raise Unauthenticated(answer.status, f"{words}; {advice(self._token)}")
            case Outcome.SMALLER if problem is None:
                self.close()
        raise Refused(answer.status, words)


def _read_receipt(answer: HttpAnswer) -> Receipt | None:
    """Return the receipt of a batch; None if the answer is cut off, or not Routecast's."""
    try:
        receipt = _receipt.decode(answer.body)
    except (msgspec.DecodeError, RecursionError):
        return None
    counts = (receipt.accepted, receipt.duplicates, receipt.conflicts, receipt.rejected_count)
    if min(*counts, receipt.warnings_count) < 0:
        return None
    warnings = [
        msgspec.structs.replace(one, field=plain(one.field), message=plain(one.message))
        for one in receipt.warnings
    ]
    return msgspec.structs.replace(receipt, rejected=_legible(receipt.rejected), warnings=warnings)


def _all_rejected(problem: Problem) -> Receipt | None:
    """Return the answer 422 as a receipt: it has the same numbers, but no position."""
    if not isinstance(problem.rejected_count, int) or problem.rejected_count < 0:
        return None
    rejected = problem.rejected if isinstance(problem.rejected, list) else []
    return Receipt(0, 0, _legible(rejected), problem.rejected_count, Position("", 0))


def _legible(rejections: list[Rejection]) -> list[Rejection]:
    return [
        msgspec.structs.replace(rejection, error=plain(rejection.error)) for rejection in rejections
    ]
