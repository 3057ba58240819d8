"""A flood of forged returns from a slow identity provider: one address does not fill all places."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx2
import pytest

from routecast.edge.http.login import MAX_CODES_OF_ADDRESS
from tests.support.server import EDGES, Edge, Server
from tests.support.upstream import Received, Upstream, upstream
from tests.support.waiting import until

FORGED: Final = {"Cookie": "routecast_attempt=state.nonce.verifier"}
CALLBACK: Final = "/auth/callback?state=state&code=forged"
ELSEWHERE: Final = {"X-Forwarded-For": "203.0.113.9"}


class SlowTokens:
    """A provider that says what it is, and redeems a code when the test lets it."""

    def __init__(self, site: Upstream) -> None:
        self.issuer = f"http://127.0.0.1:{site.port}"
        self.lets_go = threading.Event()
        self.asked = threading.Event()  # for a code
        site.answer = self._answer

    def _answer(self, asked: Received) -> bytes:
        if "/token" in asked.first:
            self.asked.set()
            self.lets_go.wait(60)
            return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}"
        found = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
        }
        body = json.dumps(found).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def provider() -> Iterator[SlowTokens]:
    """A provider that redeems no code yet."""
    with upstream() as site:
        made = SlowTokens(site)
        yield made
        made.lets_go.set()


@pytest.mark.parametrize("edge", EDGES)
def test_one_address_keeps_no_other_from_signing_in(
    tmp_path: Path, provider: SlowTokens, edge: Edge
) -> None:
    """Over its limit it is sent to the page at once; the place of another address is free."""
    env = {
        "ROUTECAST_OIDC_ISSUER": provider.issuer,
        "ROUTECAST_OIDC_CLIENT_ID": "routecast",
        "ROUTECAST_GROUP_RULES": "ops=read",
    }
    with Server(tmp_path / "server", env=env, edge=edge) as server, ThreadPoolExecutor(40) as pool:

        def come_back(**headers: str) -> str:
            answer = httpx2.get(server.url + CALLBACK, headers={**FORGED, **headers}, timeout=60)
            assert answer.status_code == 303
            return answer.headers["location"]

        flood = [pool.submit(come_back) for _ in range(MAX_CODES_OF_ADDRESS + 8)]
        assert provider.asked.wait(30)
        until(lambda: sum(each.done() for each in flood) >= 8)
        provider.lets_go.set()
        # Its code is looked at, and so are those of the first address once others are done.
        until(lambda: come_back(**ELSEWHERE) == "/#sign-in=refused")
        places = {each.result(60) for each in flood}
        assert places <= {"/#sign-in=unavailable", "/#sign-in=refused"}
        until(lambda: come_back() == "/#sign-in=refused")
