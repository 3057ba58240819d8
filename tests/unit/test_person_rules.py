"""Person rules: what the token of a proxy says about a person."""

import json

import pytest

from routecast.core.access import Scope
from routecast.core.claims import ClaimRules
from routecast.core.group_rules import GroupRules, parse_group_rules
from routecast.errors import BadCredential
from routecast.services.person_rules import AssertionRules
from tests.support.tokens import SECOND, claims

RULES = AssertionRules(ClaimRules(), GroupRules(parse_group_rules("*=read"), subject_claim="email"))


def with_claim(raw: bytes) -> bytes:
    """Return the claims of a person, and one more as it is."""
    known = json.dumps(claims(email="ada@example.com")).encode()
    return known[:-1] + b', "other": ' + raw + b"}"


def test_a_token_names_a_person() -> None:
    """By the address, with the scopes of its groups; its end is that of the token."""
    person = RULES.read(with_claim(b"{}"), SECOND)
    assert person.subject == "ada@example.com"
    assert person.scopes == {Scope.READ}
    assert person.expires == claims()["exp"]
    assert person.by_proxy


@pytest.mark.parametrize("raw", [b'"\xff"', b'{"\xff": 1}', b"[" * 100_000 + b"]" * 100_000, b"x"])
def test_a_claim_that_cannot_be_read_is_refused(raw: bytes) -> None:
    """Also one that nothing here needs: its text is not UTF-8, or it is nested too deeply."""
    with pytest.raises(BadCredential, match="not JSON"):
        RULES.read(with_claim(raw), SECOND)
