"""Group rules: what a person signed in by a provider or a proxy may do, by the person's groups.

An identity provider or a proxy names a person. It does not know our scopes and projects.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from routecast.core.access import ALL_PROJECTS, Principal, Projects, Scope
from routecast.core.claims import MAX_SUBJECT
from routecast.core.texts import is_allowed, spelling
from routecast.errors import BadCredential, Forbidden
from routecast.protocol import MAX_NAME

# The group of all people who are signed in.
EVERYONE: Final = "*"
MAX_GROUPS: Final = 1_000
MAX_GROUP_RULES: Final = 1_000


@dataclass(frozen=True, slots=True)
class GroupRule:
    """What the members of a group may do; `projects` is None for all."""

    group: str
    scopes: frozenset[Scope]
    projects: Projects = None


def parse_group_rules(text: str) -> tuple[GroupRule, ...]:
    """Return the rules of a setting, as in `admins=read,admin; search-team=read:search,ads`.

    Raises ValueError.
    """
    rules = tuple(_rule(entry.strip()) for entry in text.split(";") if entry.strip())
    if len(rules) > MAX_GROUP_RULES:
        raise ValueError(f"has more than {MAX_GROUP_RULES:,} rules")
    return rules


def _rule(entry: str) -> GroupRule:
    group, separator, allowed = entry.rpartition("=")  # the name of a group may have = in it
    group = group.strip()
    scopes, limited, projects = allowed.partition(":")
    if not separator or not group:
        raise ValueError(f"{entry!r}: write a rule as group=scope or group=scope,scope:project")
    try:
        read = frozenset(Scope(name.strip()) for name in scopes.split(","))
    except ValueError:
        raise ValueError(f"{entry!r}: the scopes are {', '.join(Scope)}") from None
    if not limited or projects.strip() == ALL_PROJECTS:
        return GroupRule(group, read)
    names = [name.strip() for name in projects.split(",")]
    if not all(0 < len(name) <= MAX_NAME and is_allowed(name) for name in names):
        raise ValueError(f"{entry!r}: a project has 1 to {MAX_NAME} characters")
    return GroupRule(group, read, frozenset(map(spelling, names)))


class GroupRules:
    """Tells what a person may do: what the first rule says that is about one of its groups.

    Only one rule counts. If several were added up, a group that may read all projects and another
    one that may write to one of them would together give the right to write to all.
    """

    def __init__(
        self, rules: Collection[GroupRule], *, subject_claim: str = "sub", groups_claim: str = ""
    ) -> None:
        self._rules = tuple(rules)
        self._subject_claim = subject_claim
        self._groups_claim = groups_claim

    def read(self, claims: Mapping[str, Any], now: float) -> Principal:
        """Return the principal of a person with these claims. Raises as `principal` does."""
        subject = claims.get(self._subject_claim)
        if not isinstance(subject, str):
            raise BadCredential(f"the claim `{self._subject_claim}` is missing, or is no text")
        groups = claims.get(self._groups_claim, ()) if self._groups_claim else ()
        if isinstance(groups, str):
            groups = groups.split()
        if not isinstance(groups, list | tuple) or len(groups) > MAX_GROUPS:
            raise BadCredential(f"`{self._groups_claim}` must be a list of up to {MAX_GROUPS:,}")
        return self.principal(subject, [each for each in groups if isinstance(each, str)], now)

    def principal(self, subject: str, groups: Collection[str], now: float) -> Principal:
        """Return the principal of a person. Raises BadCredential, and Forbidden without a rule."""
        if not 0 < len(subject) <= MAX_SUBJECT or not is_allowed(subject):
            raise BadCredential(
                f"the name of the person must be 1 to {MAX_SUBJECT} characters, none invisible"
            )
        named = frozenset(groups)  # there may be many of them, and many rules
        for rule in self._rules:
            if rule.group == EVERYONE or rule.group in named:
                return Principal(subject, rule.scopes, rule.projects, issued=now)
        raise Forbidden("no rule of ROUTECAST_GROUP_RULES is about a group of this person")
