"""The gate: which requests pass it, and what the application sees of them."""

from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from routecast.core.sites import Sites
from routecast.edge.gate import Gate
from routecast.edge.proxies import Proxies

Fields = list[tuple[bytes, bytes]]


async def send_through(
    app: ASGIApp, kind: str, *fields: tuple[bytes, bytes], **more: Any
) -> Fields:
    """Send a request through a gate that trusts 127.0.0.1; return status and headers."""
    gate = Gate(app, Sites(hosts={"routecast.example"}), Proxies("127.0.0.1"), str)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": kind, "http_version": "1.1", "client": ("127.0.0.1", 5), "headers": fields}
    await gate({**scope, **more}, receive, send)
    return [(b":status", b"%d" % sent[0]["status"]), *sent[0]["headers"]] if sent else []


class Seen:
    """An application that records the scope of a request."""

    def __init__(self, answer: ASGIApp | None = None) -> None:
        self.scope: Scope = {}
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        if self._answer is not None:
            await self._answer(scope, receive, send)


HOST = (b"host", b"127.0.0.1:8000")


@pytest.mark.parametrize(("kind", "scheme"), [("http", "https"), ("websocket", "wss")])
async def test_the_scope_has_the_clients_address_and_scheme(kind: str, scheme: str) -> None:
    """`Proxies` finds both, for each kind of request."""
    seen = Seen()
    forwarded = [(b"x-forwarded-for", b"[2001:DB8::1]:4711"), (b"x-forwarded-proto", b"https")]
    await send_through(seen, kind, HOST, *forwarded, scheme="http")
    assert seen.scope["client"] == ("2001:db8::1", 0)
    assert seen.scope["scheme"] == scheme


async def test_a_scope_without_forwarded_fields_is_passed_on_unchanged() -> None:
    """A client that connects directly keeps its port."""
    seen = Seen()
    await send_through(seen, "http", HOST, scheme="http")
    assert (seen.scope["client"], seen.scope["scheme"]) == (("127.0.0.1", 5), "http")


@pytest.mark.parametrize(
    ("hosts", "version", "status"),
    [
        ([b"routecast.example"], "1.1", b"200"),
        ([b"evil.example"], "1.1", b"421"),
        ([b"a b"], "1.1", b"400"),
        ([], "1.1", b"400"),
        ([b"127.0.0.1", b"127.0.0.1"], "1.1", b"400"),
        ([b"127.0.0.1", b"evil.example"], "2", b"400"),
        ([], "1.0", b"200"),
        ([], "2", b"200"),
    ],
)
async def test_only_requests_for_this_server_pass(
    hosts: list[bytes], version: str, status: bytes
) -> None:
    """Other requests never reach the application."""
    seen = Seen(PlainTextResponse("fine"))
    fields = [(b"host", host) for host in hosts]
    answer = dict(await send_through(seen, "http", *fields, http_version=version))
    assert answer[b":status"] == status
    assert bool(seen.scope) == (status == b"200")


@pytest.mark.parametrize("headers", [{}, {"X-Content-Type-Options": "nosniff"}])
async def test_every_answer_has_nosniff_once(headers: dict[str, str]) -> None:
    """Answers of the framework have it, too."""
    answer = await send_through(Seen(JSONResponse({}, headers=headers)), "http", HOST)
    assert [value for name, value in answer if name == b"x-content-type-options"] == [b"nosniff"]


async def test_a_lifespan_passes() -> None:
    """A lifespan is no request."""
    seen = Seen()
    await send_through(seen, "lifespan")
    assert seen.scope["type"] == "lifespan"
