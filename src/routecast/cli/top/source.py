"""Reads a server's nodes and connections over HTTP."""

import http.client
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

import msgspec

from routecast.cli.terminal import command_name
from routecast.cli.top.choice import Shown
from routecast.client.answers import explain
from routecast.client.auth import API_KEY, bearer
from routecast.client.http_exchange import Exchange
from routecast.client.url import Server
from routecast.protocol import ClosedConnections, NodeSummaries, OpenConnections

# The maximum time of one request, in seconds.
TOP_ANSWER_SECONDS: Final = 5.0

_CONNECTIONS: Final = "/v1/admin/connections"
_NOT_ALLOWED: Final = frozenset({http.client.UNAUTHORIZED, http.client.FORBIDDEN})

T = TypeVar("T")


class NoAnswer(Exception):
    """The server did not answer as it must; the text says what a person can do."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Messages and bytes a second; of a node also the share of one core that it used."""

    messages: float
    bytes: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Observed:
    """The answers of one moment, and rates since the ones before, by node and connection id."""

    nodes: NodeSummaries
    page: OpenConnections | ClosedConnections
    rates: dict[str, Rate]


class AdminSource:
    """Asks one server, again and again; `close` it after use."""

    def __init__(self, server: Server, token: str | None) -> None:
        self._server = server
        self._headers = {} if token is None else {"Authorization": bearer(token)}
        self._exchanges: dict[str, Exchange] = {}
        # At the time of the last answers: seconds, messages, bytes and processor seconds, by node
        # and by connection.
        self._before: dict[str, tuple[float, int, int, float]] = {}

    def observe(self, shown: Shown) -> Observed:
        """Ask for what is shown. Blocks; raises NoAnswer."""
        nodes = self._ask("/v1/admin/nodes", "", NodeSummaries)
        page: OpenConnections | ClosedConnections
        if shown.closed:
            page = self._ask(_CONNECTIONS, shown.query, ClosedConnections)
        else:
            page = self._ask(_CONNECTIONS, shown.query, OpenConnections)
        return self._compared(nodes, page, time.monotonic())

    def close(self) -> None:
        """Close the connections to the server."""
        for exchange in self._exchanges.values():
            exchange.close()

    def _compared(
        self, nodes: NodeSummaries, page: OpenConnections | ClosedConnections, now: float
    ) -> Observed:
        counts = {
            each.node: (seconds_of(each.at), each.messages, each.bytes, each.cpu_seconds)
            for each in nodes.nodes
        }
        if isinstance(page, OpenConnections):
            counts |= {each.id: (now, each.messages, each.bytes, 0.0) for each in page.connections}
        rates, before = {}, self._before
        for name, (moment, messages, size, cpu) in counts.items():
            then = before.get(name)
            if then is not None and moment > then[0]:
                passed = moment - then[0]
                rates[name] = Rate(
                    (messages - then[1]) / passed,
                    (size - then[2]) / passed,
                    (cpu - then[3]) / passed,
                )
        self._before = counts
        return Observed(nodes, page, rates)

    def _ask(self, path: str, query: str, kind: type[T]) -> T:
        url = self._server.http(path) + (f"?{query}" if query else "")
        exchange = self._exchanges.get(path)
        if exchange is None or exchange.url != url:
            if exchange is not None:
                exchange.close()
            exchange = self._exchanges[path] = Exchange(url, TOP_ANSWER_SECONDS)
        try:
            answer = exchange.get(self._headers)
        except TimeoutError:
            raise NoAnswer(f"{self._server} did not answer in {TOP_ANSWER_SECONDS:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            serve = f"{command_name()} serve"
            raise NoAnswer(
                f"cannot reach {self._server}: {why}. Is it running ({serve})?"
            ) from None
        wrong = f"{self._server} {explain(answer, url)}"
        if answer.status in _NOT_ALLOWED and answer.problem is not None:
            raise NoAnswer(f"{wrong} (set {API_KEY} to a token or key with the scope `admin`)")
        try:
            if answer.status == http.client.OK:
                return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, RecursionError):
            pass
        raise NoAnswer(wrong)


def seconds_of(moment: str) -> float:
    """Return a time (RFC 3339) in seconds since 1970; 0 if it cannot be read."""
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (ValueError, OverflowError):
        return 0.0
