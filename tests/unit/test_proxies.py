"""Whose word is taken on where a request comes from."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from routecast.edge.proxies import Proxies

CLIENT, PROXY, OUTER = "203.0.113.9", "127.0.0.1", "10.1.2.3"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        (CLIENT, [], CLIENT),
        (CLIENT, ["198.51.100.1"], CLIENT),  # nobody's proxy: its word is worth nothing
        (PROXY, [], PROXY),
        (PROXY, [""], PROXY),
        (PROXY, [CLIENT], CLIENT),
        (PROXY, [f"198.51.100.1, {CLIENT}"], CLIENT),  # the first was the client's own invention
        (PROXY, [CLIENT, OUTER], CLIENT),
        (PROXY, [f"{CLIENT}, {OUTER}"], CLIENT),
        (PROXY, [OUTER], OUTER),
        (PROXY, ["nonsense"], "nonsense"),
        ("", [CLIENT], ""),
    ],
)
def test_the_client_is_the_last_who_is_no_proxy(
    peer: str, forwarded: list[str], client: str
) -> None:
    """A trusted proxy tells whom it heard from; what stands before that is not believed."""
    assert Proxies("127.0.0.1, ::1, 10.0.0.0/8").client_of(peer, forwarded) == client


def test_everybody_may_be_trusted() -> None:
    """With `*` the first of the list is the client; with nothing, no list is read."""
    assert Proxies("*").client_of(CLIENT, [f"{OUTER}, {PROXY}"]) == OUTER
    assert Proxies("").client_of(PROXY, [CLIENT]) == PROXY


HOSTS = st.sampled_from([CLIENT, PROXY, OUTER, "::1", "2001:db8::1", "unknown"])


@given(
    trusted=st.sampled_from(["*", "127.0.0.1,::1", "127.0.0.1,::1,10.0.0.0/8"]),
    peer=HOSTS,
    forwarded=st.lists(st.lists(HOSTS, min_size=1).map(", ".join), max_size=3),
)
def test_streams_and_requests_have_one_rule(trusted: str, peer: str, forwarded: list[str]) -> None:
    """A WebSocket's address is the one uvicorn's middleware finds for an HTTP request."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    scope: Any = {"type": "http", "client": (peer, 1), "headers": headers}
    nothing: Any = None
    asyncio.run(ProxyHeadersMiddleware(app, trusted)(scope, nothing, nothing))
    assert Proxies(trusted).client_of(peer, forwarded) == seen[0]
