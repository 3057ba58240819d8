"""Signing in by an identity provider that is slow, while anyone asks: a real HTTP server.

What a good provider answers is in `tests/browser/test_oidc.py`.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from routecast.adapters import oidc as module
from routecast.adapters.oidc import MAX_REDEEMED, MAX_WAITING_CODES, OidcProvider
from routecast.errors import BadCredential, Unavailable
from routecast.ports import SignInAttempt
from tests.support.upstream import Received, Upstream, upstream

ATTEMPT = SignInAttempt("state", "nonce", "verifier", "http://127.0.0.1/auth/callback")


class SlowSite:
    """A provider that answers when the test lets it; it knows no code."""

    def __init__(self, site: Upstream) -> None:
        self.site = site
        self.lets_go = threading.Event()
        self.asked = threading.Semaphore(0)  # once for each request
        self.most = 0  # requests at once
        self.holds = ""  # the paths that wait begin with this
        self._now = 0
        self._lock = threading.Lock()
        self.issuer = f"http://127.0.0.1:{site.port}"
        self.keys = f"{self.issuer}/jwks"
        site.answer = self._answer

    def _answer(self, asked: Received) -> bytes:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.asked.release()
        path = asked.first.split(" ")[1]
        if path.startswith(self.holds):
            assert self.lets_go.wait(60)
        with self._lock:
            self._now -= 1
        if path == "/token":
            return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}"
        found = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": self.keys,
        }
        body = json.dumps(found).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def wait_for(self, requests: int) -> None:
        """Return after so many requests."""
        for _ in range(requests):
            assert await asyncio.to_thread(self.asked.acquire, timeout=30)


@contextmanager
def slow_site() -> Iterator[SlowSite]:
    with upstream() as site:
        made = SlowSite(site)
        yield made
        made.lets_go.set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowSite]:
    """A provider that has not answered yet, and that is not given up."""
    monkeypatch.setattr(module, "JWKS_SECONDS", 120.0)
    with slow_site() as made:
        yield made


def provider_at(slow: SlowSite) -> OidcProvider:
    return OidcProvider(slow.issuer, "routecast", None, scopes="openid", needed="groups")


async def test_all_who_begin_wait_for_one_request(slow: SlowSite) -> None:
    """Anyone may begin: a slow provider must not take a thread for each."""
    provider = provider_at(slow)
    begun = [asyncio.create_task(provider.address(ATTEMPT)) for _ in range(50)]
    await slow.wait_for(1)
    begun.pop().cancel()  # the others go on
    slow.lets_go.set()
    for address in await asyncio.gather(*begun):
        assert address.startswith(f"{slow.issuer}/authorize?")
    assert len(slow.site.received) == 1


async def test_a_provider_whose_keys_are_at_no_address_cannot_be_used(slow: SlowSite) -> None:
    """It fails as any provider that answers something else, and not as a setting would."""
    slow.keys = "https://login.example:65536/jwks"
    slow.lets_go.set()
    with pytest.raises(Unavailable, match="Port out of range"):
        await provider_at(slow).address(ATTEMPT)


async def test_few_codes_are_redeemed_at_once(slow: SlowSite) -> None:
    """Anyone can send one. The others wait, up to a number; over it they are refused."""
    slow.holds = "/token"
    provider = provider_at(slow)
    codes = MAX_REDEEMED + MAX_WAITING_CODES
    sent = [asyncio.create_task(provider.claims(ATTEMPT, f"{number}")) for number in range(codes)]
    await slow.wait_for(1 + MAX_REDEEMED)  # the first asks what the provider says about itself
    with pytest.raises(Unavailable, match="at once"):
        await provider.claims(ATTEMPT, "one more")
    sent.pop().cancel()  # it leaves its place to another
    await asyncio.sleep(0)
    sent.append(asyncio.create_task(provider.claims(ATTEMPT, "in its place")))
    slow.lets_go.set()
    for result in await asyncio.gather(*sent, return_exceptions=True):
        assert isinstance(result, BadCredential)
    assert slow.most <= MAX_REDEEMED
    with pytest.raises(BadCredential, match="does not accept the code"):
        await provider.claims(ATTEMPT, "later")
