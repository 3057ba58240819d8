"""The keys of an identity provider: what a real HTTP server may answer, and when it does not."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from routecast.adapters import jwks as module
from routecast.adapters.jwks import MAX_JWKS_BYTES, MAX_JWKS_KEYS, JwkSet
from routecast.adapters.jwt_keys import JwtVerifier, TokenKey
from routecast.core.claims import ClaimRules
from routecast.errors import BadCredential, BadSettings, Unavailable
from routecast.instruments import Instruments
from routecast.services.authenticator import Authenticator
from routecast.services.key_refresh import UNKNOWN_KEY_SECONDS, KeyRefresh
from routecast.services.supervisor import Supervisor
from tests.support.clock import HeldClock, HeldTimers
from tests.support.running_services import running
from tests.support.tokens import encoded, forged, jwk, private_pem, token
from tests.support.upstream import CLOSE, UNENDING, Upstream, upstream

ONE = jwk("EdDSA", "one")


def answer(body: object, status: str = "200 OK", *fields: str) -> bytes:
    """Return an HTTP answer: bytes as they are, or an object as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *fields, "", "")
    return "\r\n".join(lines).encode() + data


def keys(*entries: object) -> bytes:
    return answer({"keys": entries})


@pytest.fixture
def provider() -> Iterator[Upstream]:
    """A server with one key."""
    with upstream() as site:
        site.answer = lambda _: keys(ONE)
        yield site


def url(provider: Upstream) -> str:
    return f"http://127.0.0.1:{provider.port}/jwks.json"


async def fetch(provider: Upstream) -> Sequence[TokenKey]:
    return await JwkSet(url(provider)).fetch()


async def test_each_kind_of_key(provider: Upstream) -> None:
    """A key has the algorithm of its type, whether the set says so or not."""
    provider.answer = lambda _: keys(
        jwk("RS256", "r", alg="RS256"), jwk("ES256", "e"), jwk("EdDSA", "d", key_ops=["verify"])
    )
    found = await fetch(provider)
    assert [(key.kid, key.algorithm) for key in found] == [
        ("r", "RS256"),
        ("e", "ES256"),
        ("d", "EdDSA"),
    ]
    verifier = JwtVerifier([], JwkSet(url(provider)).fetch)
    assert verifier.fetches
    assert await verifier.fetch()
    assert not await verifier.fetch()  # the same keys
    for key in found:
        assert verifier.verify(token(key.algorithm, header={"kid": key.kid}))
        assert verifier.verify(token(key.algorithm))  # there is only one of its kind
    first = provider.received[0]
    assert first.first == "GET /jwks.json HTTP/1.1"
    assert "authorization" not in first.fields


def entries_without_a_key() -> dict[str, object]:
    rsa_key = jwk("RS256", "r")
    short = rsa.generate_private_key(65_537, 1_024).public_key().public_numbers()
    modulus = encoded(short.n.to_bytes(128, "big"))
    return {
        "secret": {"kty": "oct", "k": encoded(b"x" * 40), "kid": "one"},
        "secret for RS256": {"kty": "oct", "k": encoded(b"x" * 40), "alg": "RS256"},
        "encryption": {**rsa_key, "use": "enc"},
        "other operations": {**rsa_key, "key_ops": ["encrypt"]},
        "operations of another type": {**rsa_key, "key_ops": "verify"},
        "algorithm of another type": {**rsa_key, "alg": "ES256"},
        "secret's algorithm": {**rsa_key, "alg": "HS256"},
        "none": {**rsa_key, "alg": "none"},
        "algorithm that is not used": {**rsa_key, "alg": "PS256"},
        "null algorithm": {**rsa_key, "alg": None},
        "short": {**rsa_key, "n": modulus},
        "huge": {**rsa_key, "n": "A" * 500_000},
        "even exponent": {**rsa_key, "e": "AQAA"},
        "no exponent": {name: value for name, value in rsa_key.items() if name != "e"},
        "number": {**rsa_key, "n": 7},
        "not base64": {**rsa_key, "n": "?" * 342},
        "not ASCII": {**rsa_key, "n": "\u00e9" * 342},
        "empty": {**rsa_key, "n": ""},
        "another curve": {**jwk("ES256", "e"), "crv": "P-384"},
        "off the curve": {**jwk("ES256", "e"), "x": encoded(b"\1" * 32)},
        "no curve": {"kty": "EC", "x": "AQ", "y": "AQ"},
        "short Ed25519": {**ONE, "x": "AQ"},
        "Ed448": {**ONE, "crv": "Ed448"},
        "unknown type": {**rsa_key, "kty": "AKP"},
        "no type": {"kid": "one"},
        "list as type": {"kty": ["RSA"]},
        "number as id": {**rsa_key, "kid": 7},
        "long id": {**rsa_key, "kid": "x" * 300},
        "no object": 7,
        "null": None,
    }


WITHOUT_A_KEY = entries_without_a_key()


@pytest.mark.parametrize("name", WITHOUT_A_KEY)
async def test_an_entry_that_cannot_be_used_spoils_no_other(provider: Upstream, name: str) -> None:
    """It is left out, and a set with nothing else in it is a failure."""
    entry = WITHOUT_A_KEY[name]
    provider.answer = lambda _: keys(entry, ONE)
    assert [key.kid for key in await fetch(provider)] == ["one"]
    provider.answer = lambda _: keys(entry)
    with pytest.raises(Unavailable, match="none can be used"):
        await fetch(provider)


async def test_the_private_part_of_a_key_is_not_read(provider: Upstream) -> None:
    """A provider that publishes it by mistake is no reason to keep it in memory."""
    provider.answer = lambda _: keys({**ONE, "d": encoded(b"x" * 32)})
    (key,) = await fetch(provider)
    assert not hasattr(key.key, "sign")


async def test_a_secret_of_a_set_verifies_nothing(provider: Upstream) -> None:
    """Otherwise whoever can read the public set could sign."""
    secret = b"x" * 40
    provider.answer = lambda _: keys({"kty": "oct", "k": encoded(secret), "kid": "s"}, ONE)
    verifier = JwtVerifier([], JwkSet(url(provider)).fetch)
    await verifier.fetch()
    with pytest.raises(BadCredential):
        verifier.verify(forged({"alg": "HS256", "kid": "s"}, {}, lambda _: secret))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (answer(b"", "204 No Content"), "status 204"),
        (answer(b"", "404 Not Found"), "status 404"),
        (answer(b"", "401 Unauthorized", "WWW-Authenticate: Basic"), "status 401"),
        (answer(b"", "500 Oops"), "status 500"),
        (answer(b"", "304 Not Modified"), "status 304"),
        (answer(b"<html>sign in</html>"), "not JSON"),
        (answer(b""), "not JSON"),
        (answer(b"\xff\xfe{}"), "not JSON"),
        (answer(b"[" * 100_000), "not JSON"),
        (answer([ONE]), "no JWK set"),
        (answer({}), "no JWK set"),
        (answer({"keys": {"one": ONE}}), "no JWK set"),
        (answer({"keys": []}), "none can be used"),
        (answer({"keys": [ONE] * (MAX_JWKS_KEYS + 1)}), f"more than {MAX_JWKS_KEYS}"),
        (answer({"keys": [ONE], "more": "x" * MAX_JWKS_BYTES}), "over 1,048,576 bytes"),
        (CLOSE, "cannot be read|closed"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}" + b" " * 10,
            "not come|cannot be read",
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "cannot be read"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "cannot be read"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1_000 + b"\r\n", "cannot be read"),
        (answer(b"", "302 Found", "Location: http://127.0.0.2/jwks.json"), "another host"),
        (answer(b"", "302 Found", "Location: http://127.0.0.1:1/jwks.json"), "another host"),
        (answer(b"", "302 Found", "Location: https://127.0.0.1/jwks.json"), "another host"),
        (answer(b"", "302 Found", "Location: file:///etc/passwd"), "another host|status 302"),
        (answer(b"", "302 Found", "Location: /jwks.json"), "status 302"),  # a loop
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else value,
)
async def test_bad_answers(
    provider: Upstream, given: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a failure that says what is wrong, in a line, without the body."""
    monkeypatch.setattr(module, "JWKS_SECONDS", 1.0)
    provider.answer = lambda _: given
    with pytest.raises(Unavailable, match=words) as failed:
        await fetch(provider)
    assert url(provider) in str(failed.value)
    assert len(str(failed.value)) < 400
    assert "sign in" not in str(failed.value)


async def test_a_redirect_on_the_same_host_is_followed(provider: Upstream) -> None:
    """A provider may move its set."""
    moved = answer(b"", "302 Found", "Location: /new.json")
    provider.answer = lambda asked: moved if "jwks" in asked.first else keys(ONE)
    assert [key.kid for key in await fetch(provider)] == ["one"]


async def test_a_server_that_is_gone() -> None:
    """Nothing listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="refused"):
            await JwkSet(f"http://127.0.0.1:{taken.getsockname()[1]}/").fetch()


@asynccontextmanager
async def dripping(
    head: bytes, each: bytes
) -> AsyncIterator[tuple[int, asyncio.Event, asyncio.Event]]:
    """Run a server whose answer never ends: its port, and events for a request and its end."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):  # on a busy machine, before it has asked
            await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        asked.set()
        gone = asyncio.ensure_future(reader.read())
        while not gone.done():
            writer.write(each)
            await asyncio.wait([gone], timeout=0.01)
        left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked, left


@pytest.mark.parametrize(
    ("head", "each"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\n", b"X: x\r"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        (UNENDING, b"1\r\n \r\n"),
    ],
)
async def test_a_slow_server_is_given_up(
    head: bytes, each: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is that of the whole fetch; afterwards no thread waits for the server."""
    monkeypatch.setattr(module, "JWKS_SECONDS", 0.2)
    async with dripping(head, each) as (port, _, left):
        at = JwkSet(f"http://127.0.0.1:{port}/")
        with pytest.raises(Unavailable, match="did not come"):
            await at.fetch()
        async with asyncio.timeout(30):
            await left.wait()
            await asyncio.to_thread(at._downloads._threads.shutdown)


async def test_a_fetch_that_is_cancelled_leaves_no_thread() -> None:
    """The server stops while it waits for the provider."""
    async with dripping(b"HTTP/1.1 200 OK\r\n\r\n", b" ") as (port, asked, left):
        at = JwkSet(f"http://127.0.0.1:{port}/")
        task = asyncio.create_task(at.fetch())
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(30):
            await left.wait()
            await asyncio.to_thread(at._downloads._threads.shutdown)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("", "https://login.example"),
        ("login.example/jwks.json", "https://login.example"),
        ("http://login.example/jwks.json", "must begin with https"),
        ("http://127.0.0.1.evil.example/", "must begin with https"),
        ("http://10.0.0.1/", "must begin with https"),
        ("file:///etc/passwd", "https://login.example"),
        ("ftp://login.example/", "https://login.example"),
        ("https://", "https://login.example"),
        ("https://login.example:99999/", "port|Port"),
        ("https://[::1/", "IPv6"),
        ("https://user:hunter2@login.example/", "no password"),
        ("https://l\u00f6gin.example/", "https://login.example"),
    ],
)
def test_urls_that_are_refused(wrong: str, words: str) -> None:
    """At the start, with the name of the setting."""
    with pytest.raises(BadSettings, match=words) as refused:
        JwkSet(wrong)
    assert "ROUTECAST_JWKS_URL" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_this_machine_needs_no_tls(host: str) -> None:
    """Nobody is on the way."""
    JwkSet(f"http://{host}:8080/jwks.json")


async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    provider: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not reach it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert await fetch(provider)


# -- TLS ------------------------------------------------------------------------------------------


def certificate(folder: Path) -> Path:
    """Write a certificate of its own authority for 127.0.0.1, and its key, to one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        # Python 3.13 asks for these.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True
        )
        .sign(key, SHA256())
    )
    path = folder / "tests.pem"
    path.write_text(private_pem(key) + built.public_bytes(Encoding.PEM).decode())
    return path


async def test_https_needs_a_certificate_that_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE adds an authority, as for other programs."""
    path = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(keys(ONE))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        at = JwkSet(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json")
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await at.fetch()
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert [key.kid for key in await at.fetch()] == ["one"]


async def test_a_server_without_tls() -> None:
    """The error says that it is about TLS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer(b"", "400 Bad Request"))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(Unavailable, match=r"SSL|TLS"):
            await JwkSet(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/").fetch()


# -- with the authenticator -----------------------------------------------------------------------


def signed(kid: str, number: int = 0) -> str:
    return token("EdDSA", number=number, header={"kid": kid})


class Node:
    """All parts that a node verifies tokens with."""

    def __init__(self, provider: Upstream, clock: HeldClock, instruments: Instruments) -> None:
        verifier = JwtVerifier([], JwkSet(url(provider)).fetch)
        self.timers = HeldTimers()
        self.supervisor = Supervisor(instruments)
        self.refresh = KeyRefresh(verifier, self.timers, self.supervisor)
        self.authenticator = Authenticator(verifier, None, ClaimRules(), clock, self.refresh)

    async def accepts(self, given: str) -> bool:
        try:
            await self.authenticator.authenticate(given)
        except BadCredential:
            return False
        return True


@pytest.fixture
def node(provider: Upstream, clock: HeldClock, instruments: Instruments) -> Node:
    """A node that has not fetched its keys yet."""
    return Node(provider, clock, instruments)


async def test_a_flood_of_unknown_keys_causes_one_request(provider: Upstream, node: Node) -> None:
    """Tokens of the known key are accepted all the time."""
    async with running(node.refresh.run()):
        assert await node.accepts(signed("one"))
        for turn in range(3):
            flood = [node.accepts(signed(f"{number}", 1)) for number in range(50)]
            assert not any(await asyncio.gather(*flood))
            assert await node.accepts(signed("one"))
            assert len(provider.received) == 1 + turn
            node.timers.moment += UNKNOWN_KEY_SECONDS


async def test_keys_are_rotated(provider: Upstream, node: Node) -> None:
    """A new key is found by the first token that is signed with it; the old one may go."""
    async with running(node.refresh.run()):
        assert await node.accepts(signed("one"))
        provider.answer = lambda _: keys(ONE, jwk("EdDSA", "two", 1))
        node.timers.moment += UNKNOWN_KEY_SECONDS
        assert await node.accepts(signed("two", 1))
        assert await node.accepts(signed("one"))
        provider.answer = lambda _: keys(jwk("EdDSA", "two", 1))
        node.timers.moment += UNKNOWN_KEY_SECONDS
        assert not await node.accepts(signed("three"))  # causes a fetch
        assert not await node.accepts(signed("one"))
        assert await node.accepts(signed("two", 1))


BROKEN: dict[str, Callable[[Any], bytes]] = {
    "gone": lambda _: CLOSE,
    "no JSON": lambda _: answer(b"<html>"),
    "empty": lambda _: keys(),
    "huge": lambda _: answer(b" " * (MAX_JWKS_BYTES + 1)),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_the_last_good_set_survives(provider: Upstream, node: Node, how: str) -> None:
    """Known keys stay in use, and `/health` shows that the set cannot be fetched."""
    async with running(node.refresh.run()):
        assert await node.accepts(signed("one"))
        provider.answer = BROKEN[how]
        node.timers.moment += UNKNOWN_KEY_SECONDS
        assert not await node.accepts(signed("two", 1))
        assert "jwks" in node.supervisor.failing
        assert await node.accepts(signed("one"))
