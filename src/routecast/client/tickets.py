"""Tickets: each opens one stream, once, in place of the token or API key."""

import asyncio
from http import HTTPStatus
from http.client import HTTPException
from typing import Final
from urllib.parse import urlsplit

import msgspec
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from routecast.client.answers import HttpAnswer
from routecast.client.auth import Token, text_of
from routecast.client.http_exchange import Exchange
from routecast.client.stream_errors import describe, refusal, verdict_on
from routecast.client.url import DEFAULT_SERVER, Server
from routecast.errors import Unavailable
from routecast.retry import Outcome

# The time for a ticket, in seconds.
TICKET_TIMEOUT: Final = 10.0
_KEPT_FIELDS: Final = ("Content-Type", "Location", "Retry-After", "WWW-Authenticate")


class _Ticket(msgspec.Struct):
    ticket: str


_decode: Final = msgspec.json.Decoder(_Ticket).decode


def fetch_ticket(url: str = DEFAULT_SERVER, *, token: Token | None = None) -> str:
    """Ask a server for a ticket, for a program that can only open an address.

    The ticket is the parameter `ticket` of the address of a stream, `/sse/metrics` or
    `/ws/metrics`. It opens one stream, once, within 30 seconds, and from this machine only; so each
    attempt to connect needs another one. `connect` and `stream` fetch their own with `tickets`.

    Args:
        url: The address of the server, as for `Client`.
        token: A token or an API key, or a function that returns it, as for `Client`.

    Returns:
        The ticket.

    Raises:
        BadParameter: `url` is not an address of a server.
        Refused: The server gives this client no ticket, and asking again does not help.
        Unauthenticated: The token or API key is missing, invalid or expired.
        Unavailable: There is no ticket now. Ask again after `retry_after` seconds.

    Examples:
        >>> ticket = fetch_ticket("http://127.0.0.1:8000")
        >>> address = f"http://127.0.0.1:8000/sse/metrics?ticket={ticket}"
    """
    server = Server.parse(url)
    asked = server.tickets()
    text = None if token is None else text_of(token)
    exchange = Exchange(asked, TICKET_TIMEOUT, _proxy_for(server, asked))
    try:
        return _ask(exchange, text)
    except InvalidStatus as error:
        verdict = verdict_on(error)
        if verdict.outcome is not Outcome.RETRY:
            raise refusal(error, token) from None
        after = max(1, round(verdict.seconds))
        raise Unavailable(f"{server}: {describe(error, asked)}", retry_after=after) from None
    except OSError as error:
        raise Unavailable(f"{server}: {describe(error, asked)}") from None


async def ask_for_ticket(server: Server, url: str, text: str | None) -> str:
    """Return a ticket from `url`, for a token's text.

    Raises InvalidStatus for any other answer, as an upgrade that is refused does, and OSError.
    """
    exchange = Exchange(url, TICKET_TIMEOUT, _proxy_for(server, url))
    try:
        return await asyncio.to_thread(_ask, exchange, text)
    finally:
        exchange.abort()  # it may have been cancelled, and its thread must not wait


def _ask(exchange: Exchange, text: str | None) -> str:
    try:
        answer = exchange.post(b"", {} if text is None else {"Authorization": f"Bearer {text}"})
    except HTTPException:
        raise ConnectionError("the answer to a request for a ticket is not valid HTTP") from None
    finally:
        exchange.close()
    if answer.status != HTTPStatus.OK:
        raise InvalidStatus(_response(answer))
    try:
        return _decode(answer.body).ticket
    except (msgspec.DecodeError, RecursionError):  # the page of a proxy
        raise InvalidStatus(_response(answer)) from None


def _response(answer: HttpAnswer) -> Response:
    """Return an answer as the library for streams has those to upgrades."""
    found = ((name, answer.headers.get(name, "")) for name in _KEPT_FIELDS)
    fields = Headers([(name, value) for name, value in found if value])
    return Response(answer.status, answer.phrase, fields, answer.body)


def _proxy_for(server: Server, url: str) -> str | None:
    """Return the HTTP proxy of the environment, which streams use as well; None without one."""
    if server.loopback:
        return None
    from urllib.request import getproxies, proxy_bypass  # imports much that few programs need

    parts = urlsplit(url)
    if proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    found = getproxies().get(parts.scheme)
    return found if found is not None and found.startswith("http://") else None
