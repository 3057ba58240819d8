"""Group rules: what people may do whom a provider or a proxy has signed in."""

from typing import Any

import pytest

from routecast.core.access import Principal, Scope
from routecast.core.group_rules import GroupRule, GroupRules, parse_group_rules
from routecast.errors import BadCredential, Forbidden

READ, WRITE, ADMIN = Scope.READ, Scope.WRITE, Scope.ADMIN
RULES = "admins=read,admin; search=read,write:search, ads; *=read:public"


def test_a_setting_is_read() -> None:
    """White space does not matter; without projects a rule is for all of them."""
    assert parse_group_rules(f" {RULES};;") == (
        GroupRule("admins", frozenset({READ, ADMIN})),
        GroupRule("search", frozenset({READ, WRITE}), frozenset({"search", "ads"})),
        GroupRule("*", frozenset({READ}), frozenset({"public"})),
    )
    assert parse_group_rules("a=read:*") == (GroupRule("a", frozenset({READ})),)
    assert parse_group_rules("") == ()


def test_the_name_of_a_group_may_be_a_distinguished_name() -> None:
    """As directories have it."""
    (rule,) = parse_group_rules("CN=ops,DC=corp,DC=example=admin")
    assert rule.group == "CN=ops,DC=corp,DC=example"


@pytest.mark.parametrize(
    "text", ["a", "=read", "a=", "a=raed", "a=read,", "a=read:", "a=read:x,", "a=read:" + "x" * 129]
)
def test_a_rule_that_cannot_be_read_is_refused(text: str) -> None:
    """The text has the rule."""
    with pytest.raises(ValueError, match="a"):
        parse_group_rules(text)


def rules(**claims: str) -> GroupRules:
    return GroupRules(parse_group_rules(RULES), groups_claim="groups", **claims)


@pytest.mark.parametrize("groups", [["search", "admins"], ("admins",), "search admins"])
def test_the_first_rule_counts(groups: Any) -> None:
    """Not the order of the groups, and not several rules together."""
    found = rules().read({"sub": "ann", "groups": groups}, 5.0)
    assert found == Principal("ann", frozenset({READ, ADMIN}), None, issued=5.0)


def test_everyone_may_have_a_rule() -> None:
    """Without it, whoever is in no group has no access."""
    assert rules().read({"sub": "ann"}, 5.0).projects == frozenset({"public"})
    with pytest.raises(Forbidden):
        GroupRules(parse_group_rules("a=read")).principal("ann", ["b"], 5.0)


def test_another_claim_may_name_the_person() -> None:
    """Such as the address of the person's mail."""
    claims = {"sub": "1", "email": "ann@corp.example"}
    assert rules(subject_claim="email").read(claims, 5.0).subject == "ann@corp.example"


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"sub": 5},
        {"sub": ""},
        {"sub": "x" * 256},
        {"sub": "a\nb"},
        {"sub": "ann", "groups": 5},
        {"sub": "ann", "groups": {"admins": True}},
        {"sub": "ann", "groups": ["a"] * 1001},
    ],
)
def test_malformed_claims_are_refused(claims: dict[str, Any]) -> None:
    """What was meant is unknown."""
    with pytest.raises(BadCredential):
        rules().read(claims, 5.0)
