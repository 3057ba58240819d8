"""Signing in by an identity provider that is slow, while anyone asks: a real HTTP server.

`tests/browser/test_oidc.py` tests a good provider.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from routecast.adapters import jwks
from routecast.adapters import oidc as module
from routecast.adapters.jwks import JwkSet
from routecast.adapters.oidc import MAX_REDEEMED, MAX_WAITING_CODES, OidcProvider
from routecast.errors import BadCredential, Unavailable
from routecast.ports import SignInAttempt
from tests.support.running_services import until
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
        self.token_endpoint = f"{self.issuer}/token"
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
            "token_endpoint": self.token_endpoint,
            "jwks_uri": self.keys,
        }
        body = json.dumps(found).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def wait_for(self, requests: int) -> None:
        """Return once the site has received this number of requests."""
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
    for each in (jwks, module):
        monkeypatch.setattr(each, "JWKS_SECONDS", 120.0)
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


class FullListener:
    """A listener that takes no further connection: who connects waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried = threading.Semaphore(0)  # once for each connection that is begun
        self.times: list[float] = []  # what each may take
        self._stack = ExitStack()
        listener = self._stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        self.address = listener.getsockname()
        for _ in range(3):
            filling = self._stack.enter_context(socket.socket())
            filling.setblocking(False)
            with suppress(BlockingIOError):
                filling.connect(self.address)
        connect = socket.create_connection

        def observed(address: tuple[str, int], timeout: float, *rest: Any) -> socket.socket:
            if address == self.address:
                self.times.append(timeout)
                self.tried.release()
            return connect(address, timeout, *rest)

        monkeypatch.setattr(socket, "create_connection", observed)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}/token"

    def close(self) -> None:
        """Refuse all who wait."""
        self._stack.close()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[FullListener]:
    made = FullListener(monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize("what", ["codes", "keys"])
async def test_what_is_given_up_while_it_connects_keeps_no_other_work_waiting(
    slow: SlowSite, full: FullListener, what: str
) -> None:
    """A thread that connects cannot be stopped: few do, and commits have other threads."""
    slow.lets_go.set()
    slow.token_endpoint = full.url
    provider = provider_at(slow)
    await provider.address(ATTEMPT)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    keys = JwkSet(full.url)
    threads = 1 if what == "keys" else MAX_REDEEMED

    def ask() -> asyncio.Task[Any]:
        asked = keys.fetch() if what == "keys" else provider.claims(ATTEMPT, "code")
        return asyncio.ensure_future(asked)

    for _ in range(threads):
        given_up = ask()
        await until(lambda: full.tried.acquire(blocking=False))
        given_up.cancel()
    later = [ask() for _ in range(threads)]
    async with asyncio.timeout(60):
        await asyncio.to_thread(int)
        # Nor do they keep what the provider says about itself waiting.
        await provider_at(slow).address(ATTEMPT)
    assert len(full.times) == threads
    assert max(full.times) <= jwks.JWKS_SECONDS
    for each in later:
        each.cancel()
