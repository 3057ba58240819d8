"""Keys of tokens: each has one algorithm, and no token can choose another one."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from routecast.adapters.jwt_keys import (
    JwtVerifier,
    TokenKey,
    private_key,
    public_keys,
    secret_key,
    sign,
)
from routecast.errors import BadCredential, BadSettings
from tests.support.tokens import (
    ALGORITHMS,
    SECRET,
    claims,
    encoded,
    forged,
    jwk,
    private,
    private_pem,
    public_pem,
    token,
)


def key_of(algorithm: str, number: int = 0) -> TokenKey:
    key = private(algorithm, number)
    return secret_key(key) if algorithm == "HS256" else public_keys(public_pem(key))[0]


@pytest.fixture(scope="module")
def verifier() -> JwtVerifier:
    """A verifier with a key of each kind."""
    return JwtVerifier([key_of(algorithm) for algorithm in ALGORITHMS])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_kind_of_key(algorithm: str) -> None:
    """The algorithm follows from the key; another key of the kind is refused."""
    verifier = JwtVerifier([key_of(algorithm)])
    payload = verifier.verify(token(algorithm))
    assert payload is not None
    assert json.loads(payload) == claims()
    with pytest.raises(BadCredential):
        verifier.verify(token(algorithm, number=1))
    assert not verifier.fetches


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_changed_character_is_noticed(algorithm: str, verifier: JwtVerifier) -> None:
    """It may be in the header, in the claims or in the signature."""
    good = token(algorithm)
    for at in range(0, len(good), 7):
        other = "A" if good[at] != "A" else "B"
        with pytest.raises(BadCredential):
            verifier.verify(good[:at] + other + good[at + 1 :])


def test_a_token_has_one_spelling(verifier: JwtVerifier) -> None:
    """Padding, other alphabets and unused bits would be other texts with the same meaning."""
    good = token()
    signature = good.rpartition(".")[2]
    assert len(signature) % 4 == 3  # two bits of the last character are not used
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = alphabet.index(good[-1])
    others = [good[:-1] + alphabet[at + bits] for bits in (1, 2, 3)]
    for other in (*others, good + "=", good + "\n", good.replace(".", "=.", 1)):
        with pytest.raises(BadCredential, match="cannot be read"):
            verifier.verify(other)
    assert verifier.verify(good)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_second_key_allows_for_rotation(algorithm: str) -> None:
    """Tokens of both are accepted."""
    verifier = JwtVerifier([key_of(algorithm, 1), key_of(algorithm)])
    for number in (0, 1):
        assert verifier.verify(token(algorithm, number=number))


# -- what attackers send --------------------------------------------------------------------------


def keyed(key: bytes) -> Callable[[bytes], bytes]:
    return lambda signed: hmac.new(key, signed, hashlib.sha256).digest()


def forgeries() -> dict[str, str]:
    """Return tokens that must not be accepted by a server with an RSA key."""
    rsa_key = private("RS256")
    pem = public_pem(rsa_key).encode()
    der = rsa_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = json.dumps(jwk("RS256", "one")).encode()
    other = jwk("RS256", "evil", 1)
    hs256 = {"alg": "HS256", "typ": "JWT"}
    found = {
        "none": forged({"alg": "none"}, claims()),
        "NONE": forged({"alg": "NONE"}, claims()),
        "none with a key": forged({"alg": "none"}, claims(), keyed(pem)),
        "no algorithm": forged({"typ": "JWT"}, claims()),
        "null": forged({"alg": None}, claims()),
        "list": forged({"alg": ["RS256"]}, claims()),
        "the public key as a secret": forged(hs256, claims(), keyed(pem)),
        "without its last newline": forged(hs256, claims(), keyed(pem.strip())),
        "as DER": forged(hs256, claims(), keyed(der)),
        "as JWK": forged(hs256, claims(), keyed(own)),
        "an empty secret": forged(hs256, claims(), keyed(b"")),
        "no signature": token("RS256").rpartition(".")[0] + ".",
        "another RSA algorithm": jwt.encode(claims(), rsa_key, "RS512"),
        "a padding that this key is not for": jwt.encode(claims(), rsa_key, "PS256"),
        "the header of another algorithm": forged({"alg": "ES256"}, claims(), lambda _: b"\0" * 64),
        "own key": token("RS256", number=1, header={"jwk": other}),
        "own certificate": token("RS256", number=1, header={"x5c": ["MIIB"]}),
    }
    for member, value in {
        "crit": ["exp"],
        "b64": True,
        "jku": "https://evil.example/jwks.json",
        "x5u": "https://evil.example/cert.pem",
        "jwk": other,
        "x5c": ["MIIB"],
    }.items():
        for what, given_value in (("a value", value), ("null", None)):
            header = {"alg": "RS256", "typ": "JWT", member: given_value}
            found[f"{member}: {what}, well signed"] = forged(header, claims(), rsa_signature)
    for kind in ("logout+jwt", "dpop+jwt", "secevent+jwt", "", 7):
        found[f"type {kind}"] = forged({"alg": "RS256", "typ": kind}, claims(), rsa_signature)
    return found


def rsa_signature(signed: bytes) -> bytes:
    signature: bytes = jwt.get_algorithm_by_name("RS256").sign(signed, private("RS256"))
    return signature


FORGERIES = forgeries()


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries(name: str, verifier: JwtVerifier) -> None:
    """They are refused by a server with this key alone, and by one with keys of all kinds."""
    for one in (JwtVerifier([key_of("RS256")]), verifier):
        with pytest.raises(BadCredential) as refused:
            one.verify(FORGERIES[name])
        assert FORGERIES[name][-20:] not in str(refused.value)


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "application/at+JWT"])
def test_types_of_tokens_that_are_accepted(kind: str, verifier: JwtVerifier) -> None:
    """Those of RFC 7519 and RFC 9068, in any case."""
    assert verifier.verify(forged({"alg": "RS256", "typ": kind}, claims(), rsa_signature))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "..",
        "a.b",
        "a.b.c.d",
        f"{encoded({'alg': 'HS256'})}.{encoded(claims())}",
        f"{encoded({'alg': 'HS256'})}.{encoded(claims())}.",
        f"{encoded({'alg': 'HS256'})}..",
        f"{encoded([])}.{encoded({})}.x",
        f"{encoded(b'null')}.e30.e30",
        f"{encoded(b'[' * 3_000)}.e30.e30",
        encoded(b"{" + b'"a":{' * 500 + b"}" * 501) + ".e30.e30",
        encoded(b'{"alg":"HS256","x":' + b"9" * 5_000 + b"}") + ".e30.e30",
        encoded(b'{"alg":"HS256","x":' + b"9" * 2_500 + b"}") + ".e30.e30",
        f"{encoded({'alg': 'HS256', 'kid': 7})}.e30.e30",
        f"{encoded({'alg': 'HS256', 'kid': 'x' * 2_000})}.e30.e30",
        "\u00e9.e30.e30",
        "\ud800.e30.e30",
        "\0.\0.\0",
        "A" * 100_000,
        "A." * 50_000,
        "=" * 16_000 + ".=.=",
        f"{encoded({'alg': 'HS256'})}.{'A' * 100_000}.AAAA",
        f"{encoded({'alg': 'RS256'})}.e30.{'A' * 100_000}",
        f"{encoded({'alg': 'ES256'})}.e30.AAAA",
        f"{encoded({'alg': 'EdDSA'})}.e30.AAAA",
    ],
    ids=lambda text: f"{len(text)} characters",
)
def test_what_is_no_token(text: str, verifier: JwtVerifier) -> None:
    """It is refused, quickly, whatever it is."""
    began = time.thread_time()
    with pytest.raises(BadCredential):
        verifier.verify(text)
    assert time.thread_time() - began < 0.1


@given(
    st.sampled_from(ALGORITHMS),
    st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9)),
    st.binary(max_size=60),
    st.binary(max_size=300),
)
def test_any_parts(
    verifier: JwtVerifier, algorithm: str, header: dict[str, Any], payload: bytes, end: bytes
) -> None:
    """Parts that nobody signed are a bad credential, and never another error."""
    with pytest.raises(BadCredential):
        verifier.verify(forged({"alg": algorithm, **header}, payload, lambda _: end))


# -- settings -------------------------------------------------------------------------------------


def test_a_file_may_have_several_keys(tmp_path: Path) -> None:
    """Each has the algorithm of its type."""
    path = tmp_path / "keys.pem"
    path.write_text("# ours\n" + "".join(public_pem(private(name)) for name in ALGORITHMS[1:]))
    assert [key.algorithm for key in public_keys(str(path))] == ["RS256", "ES256", "EdDSA"]


def test_a_variable_may_have_its_lines_escaped() -> None:
    """Some tools cannot set a variable of several lines."""
    assert public_keys(public_pem(private("ES256")).replace("\n", "\\n"))[0].algorithm == "ES256"


@pytest.mark.parametrize("kind", ["short RSA", "P-384", "secp256k1", "Ed448"])
def test_keys_that_are_not_used(kind: str) -> None:
    """A weak key, or one whose algorithm this server does not have, is refused at the start."""
    made = {
        "short RSA": lambda: rsa.generate_private_key(65_537, 1_024),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
        "Ed448": ed448.Ed448PrivateKey.generate,
    }
    with pytest.raises(BadSettings, match="2,048"):
        public_keys(public_pem(made[kind]()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/no/such/file.pem", "No such file"),
        ("", "directory"),
        ("\0", "no path"),
        ("x" * 5_000, "too long"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "cannot be read"),
        ("-----BEGIN PUBLIC KEY-----", "no PEM"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "cannot be read"),
    ],
)
def test_a_public_key_that_cannot_be_read(text: str, words: str) -> None:
    """The error names the setting and what is wrong, in a line."""
    with pytest.raises(BadSettings, match=words) as refused:
        public_keys(text)
    assert "ROUTECAST_JWT_PUBLIC_KEY" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_private_key_is_no_public_key() -> None:
    """It would work, but the server must not have it; the error does not show it."""
    pem = private_pem(private("ES256"))
    with pytest.raises(BadSettings, match="pubout") as refused:
        public_keys(pem)
    assert pem[40:60] not in str(refused.value)


@pytest.mark.parametrize("secret", ["", "short", "x" * 31])
def test_a_short_secret_is_refused(secret: str) -> None:
    """It could be guessed from one token."""
    with pytest.raises(BadSettings, match="at least 32 bytes") as refused:
        secret_key(secret)
    assert not secret or secret not in str(refused.value)


def test_a_public_key_is_no_secret() -> None:
    """Everyone has it."""
    with pytest.raises(BadSettings, match="ROUTECAST_JWT_PUBLIC_KEY"):
        secret_key(public_pem(private("RS256")))


def test_a_key_shows_nothing_of_itself() -> None:
    """Its text may get into a log."""
    assert SECRET not in repr(secret_key(SECRET))


# -- signing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS[1:])
def test_a_private_key_signs_what_its_public_key_verifies(tmp_path: Path, algorithm: str) -> None:
    """The algorithm follows from the key here, too."""
    path = tmp_path / "key.pem"
    path.write_text(private_pem(private(algorithm)))
    key = private_key(str(path))
    assert key.algorithm == algorithm
    payload = JwtVerifier([key_of(algorithm)]).verify(sign(claims(), key))
    assert payload is not None
    assert json.loads(payload) == claims()


def test_a_private_key_that_cannot_be_used(tmp_path: Path) -> None:
    """The error says why."""
    path = tmp_path / "key.pem"
    with pytest.raises(BadSettings, match="No such file"):
        private_key(str(path))
    path.write_text(public_pem(private("ES256")))
    with pytest.raises(BadSettings, match="not a private key"):
        private_key(str(path))
    locked = private("ES256").private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    path.write_bytes(locked)
    with pytest.raises(BadSettings, match="encrypted"):
        private_key(str(path))
    path.write_text(private_pem(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(BadSettings, match="P-256"):
        private_key(str(path))
