"""Claims: what a verified token says, and what is refused although its signature is right."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.access import Principal, Scope
from routecast.core.claims import (
    LAST_SECOND,
    LEEWAY,
    MAX_SUBJECT,
    MAX_TOKEN_PROJECTS,
    ClaimRules,
)
from routecast.errors import BadCredential
from tests.support.tokens import SECOND, claims

RULES = ClaimRules()


def read(rules: ClaimRules = RULES, now: float = SECOND, **other: object) -> Principal:
    return rules.read(json.dumps(claims(**other)).encode(), now)


def test_claims_become_a_principal() -> None:
    """Each claim that is read has its place; the others are ignored."""
    assert read(
        scope="write read openid",
        projects=["search", "chat"],
        jti="7",
        iat=SECOND - 5,
        email="ada@example.com",
        address={"country": "uk"},
    ) == Principal(
        subject="ada",
        scopes=frozenset({Scope.READ, Scope.WRITE}),
        projects=frozenset({"search", "chat"}),
        expires=SECOND + 3_600,
        credential="7",
        issued=SECOND - 5,
    )


def test_a_token_without_scopes_allows_nothing() -> None:
    """A token of the same provider for another purpose is valid here, and useless."""
    assert read(scope=None).scopes == frozenset()
    assert read(scope="openid  profile").scopes == frozenset()


@pytest.mark.parametrize(
    ("projects", "expected"),
    [
        (None, None),
        (["*"], None),
        (["search", "*"], None),
        ([], frozenset()),
        (["cafe\u0301"], frozenset({"caf\u00e9"})),  # in the form in which names are stored
    ],
)
def test_projects(projects: list[str] | None, expected: frozenset[str] | None) -> None:
    """All projects are None: without the claim, or with `*` in it."""
    assert read(projects=projects).projects == expected


def test_times_have_a_leeway() -> None:
    """A clock that is ten seconds ahead or behind refuses no token, and one more second does."""
    exp = SECOND + 60
    assert read(exp=exp, now=exp + LEEWAY - 1).expires == exp
    with pytest.raises(BadCredential, match="expired"):
        read(exp=exp, now=exp + LEEWAY)
    for name, words in (("nbf", "not valid yet"), ("iat", "in the future")):
        read(**{name: SECOND + LEEWAY})
        with pytest.raises(BadCredential, match=words):
            read(**{name: SECOND + LEEWAY + 1})


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "moment",
    [True, False, "1769862896", [], {}, -1, -0.5, LAST_SECOND + 1, 10**30, 10**400, 1e308],
)
def test_a_time_must_be_a_number_of_seconds(name: str, moment: object) -> None:
    """Nothing else is taken for one, and no number overflows."""
    with pytest.raises(BadCredential):
        read(**{name: moment})


@pytest.mark.parametrize("raw", ["1e400", "-1e400", "NaN", "Infinity", "null", "1e-400", "0"])
def test_an_end_that_json_or_floats_do_not_have(raw: str) -> None:
    """Such numbers are refused, or are long over."""
    payload = f'{{"sub":"ada","exp":{raw}}}'.encode()
    with pytest.raises(BadCredential):
        RULES.read(payload, SECOND)


@pytest.mark.parametrize("name", ["exp", "sub"])
def test_claims_that_a_token_must_have(name: str) -> None:
    """Without an end or a subject, it is refused."""
    with pytest.raises(BadCredential, match=name):
        read(**{name: None})


@pytest.mark.parametrize(
    "other",
    [
        {"sub": ""},
        {"sub": "x" * (MAX_SUBJECT + 1)},
        {"sub": "ada\nadmin"},
        {"sub": "\u202eada"},
        {"sub": 7},
        {"jti": "x" * 256},
        {"jti": "\x1b[2J"},
        {"jti": 7},
        {"scope": ["read"]},
        {"scope": 7},
        {"projects": "search"},
        {"projects": [7]},
        {"projects": [""]},
        {"projects": ["x" * 65]},
        {"projects": ["a\nb"]},
        {"projects": [["search"]]},
        {"projects": [f"p{number}" for number in range(MAX_TOKEN_PROJECTS + 1)]},
        {"projects": [f"p{number}" for number in range(10_000)]},
        {"aud": 7},
        {"iss": {}},
    ],
)
def test_malformed_claims_are_refused(other: dict[str, Any]) -> None:
    """A claim of another form may have another meaning."""
    with pytest.raises(BadCredential):
        read(**other)


@pytest.mark.parametrize(
    ("audience", "accepted"),
    [
        ("routecast", True),
        (["billing", "routecast"], True),
        (None, False),
        ("", False),
        ([], False),
        ("routecast ", False),
        ("routecast-eu", False),
        (["billing"], False),
    ],
)
def test_audience(audience: object, accepted: bool) -> None:
    """If the server has a name, a token must be for it; otherwise the claim is not looked at."""
    read(aud=audience)
    if accepted:
        read(ClaimRules(audience="routecast"), aud=audience)
    else:
        with pytest.raises(BadCredential, match="audience"):
            read(ClaimRules(audience="routecast"), aud=audience)


@pytest.mark.parametrize("issuer", [None, "", "https://login.example/", "https://evil.example"])
def test_issuer(issuer: str | None) -> None:
    """If the server has an issuer, tokens of others are refused."""
    rules = ClaimRules(issuer="https://login.example")
    read(rules, iss="https://login.example")
    with pytest.raises(BadCredential, match="issuer"):
        read(rules, iss=issuer)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"ada"',
        b"{",
        b"\xff\xfe",
        b'{"sub":"\\ud800","exp":9999999999}',
        b"[" * 12_000,
        b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        b'{"sub":"ada","exp":9999999999,"deep":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ],
)
def test_a_payload_that_is_no_claims(payload: bytes) -> None:
    """Whatever was signed, the answer is the same."""
    with pytest.raises(BadCredential):
        RULES.read(payload, SECOND)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["sub", "exp", "nbf", "iat", "iss", "aud", "jti", "scope", "projects", "other"]
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_claims(given: dict[str, Any]) -> None:
    """They are a principal or a bad credential, and never another error."""
    try:
        payload = msgspec.json.encode({**claims(), **given})
    except UnicodeEncodeError:
        return
    try:
        principal = ClaimRules("routecast", "here").read(payload, SECOND)
    except BadCredential as error:
        assert len(str(error)) < 300  # noqa: PT017  # -- both outcomes are right
    else:
        assert principal.subject
        assert principal.expires is not None


@given(st.binary(max_size=200))
def test_any_bytes(payload: bytes) -> None:
    """Bytes that are no claims are a bad credential."""
    with pytest.raises(BadCredential):
        RULES.read(payload, SECOND)
