"""Access: what a client is allowed to do, and which projects it may see.

A client proves itself with a *credential* (a token or an API key). Whatever the credential is, it
becomes a `Principal`. All decisions about access are made from a principal and the tables below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Final

from routecast.core.cardinality import OTHER
from routecast.core.decision import DecisionRecord, Rules
from routecast.core.decode_fields import ExactDecision, Flaw
from routecast.core.history import HistoryQuery
from routecast.core.texts import spelling
from routecast.core.view import View
from routecast.errors import Forbidden, Invalid, MissingScope
from routecast.protocol import DecisionIn


class Scope(StrEnum):
    """What a principal may do (RFC 6749, 3.3). They are separated by spaces in a token.

    Attributes:
        READ: Read metrics and history.
        DECISIONS: Read individual decisions.
        WRITE: Record decisions.
        ADMIN: See and end the connections of others.
    """

    READ = "read"
    DECISIONS = "decisions"
    WRITE = "write"
    ADMIN = "admin"


ALL_SCOPES: Final = frozenset(Scope)
# In a list of projects: all of them.
ALL_PROJECTS: Final = "*"


@dataclass(frozen=True, slots=True)
class Principal:
    """A client whose credential was accepted.

    Attributes:
        subject: The name of the person or program (`sub` of a token, the name of an API key); ""
            while authentication is off.
        scopes: What it may do.
        projects: The projects that it may see and write to; None for all.
        expires: When its credential expires, in seconds since 1970; None for never. Its streams end
            then; for clocks that differ, requests are accepted for `claims.LEEWAY` longer.
        credential: The id of its credential (`jti` of a token, the id of a key); "" if it has none.
        issued: When its credential was issued, in seconds since 1970; None if that is unknown.
        is_key: Whether its credential is an API key, and no token.
        session: The id of the session that it came in by; "" without one.
        by_proxy: Whether a proxy has signed the person in.
    """

    subject: str = ""
    scopes: frozenset[Scope] = ALL_SCOPES
    projects: frozenset[str] | None = None
    expires: float | None = None
    credential: str = ""
    issued: float | None = None
    is_key: bool = False
    session: str = ""
    by_proxy: bool = False


# Everyone, while authentication is off.
ANYONE: Final = Principal()

# A client without a valid credential, on a route that is open while authentication is on.
NOBODY: Final = Principal(scopes=frozenset(), projects=frozenset())

# The scope that each route needs, by its method and path as in the router; None for the routes
# without data, which are open, and for those that sign in. The tests iterate over this table, and
# compare it with the routes.
SCOPE_OF_ROUTE: Final[Mapping[tuple[str, str], Scope | None]] = {
    ("GET", "/"): None,
    ("GET", "/admin"): None,
    ("GET", "/dashboard/{path:path}"): None,
    ("GET", "/health"): None,
    ("GET", "/ready"): None,
    ("GET", "/docs"): None,
    ("GET", "/openapi.json"): None,
    ("GET", "/asyncapi.json"): None,
    ("GET", "/auth/login"): None,
    ("GET", "/auth/callback"): None,
    ("GET", "/auth/session"): None,
    ("POST", "/auth/session"): None,
    ("DELETE", "/auth/session"): None,
    ("GET", "/metrics"): Scope.ADMIN,
    ("GET", "/routing/metrics"): Scope.READ,
    ("GET", "/v1/history"): Scope.READ,
    ("GET", "/ws/metrics"): Scope.READ,
    ("OPTIONS", "/ws/metrics"): Scope.READ,
    ("GET", "/sse/metrics"): Scope.READ,
    ("POST", "/v1/tickets"): Scope.READ,
    ("POST", "/v1/decisions"): Scope.WRITE,
    ("GET", "/v1/admin/connections"): Scope.ADMIN,
    ("DELETE", "/v1/admin/connections"): Scope.ADMIN,
    ("DELETE", "/v1/admin/connections/{identity}"): Scope.ADMIN,
    ("GET", "/v1/admin/nodes"): Scope.ADMIN,
}

# The projects that a client is limited to; None for all projects.
Projects = frozenset[str] | None
# Remembered sets of projects: clients of one team have equal ones.
REMEMBERED_PROJECTS: Final = 256
_NOT_YOURS: Final = "the credential does not allow this project"


def require_scope(principal: Principal, scope: Scope | None) -> None:
    """Raise MissingScope if a principal lacks a scope.

    Raises Forbidden for ADMIN if it is limited to some projects: what an operator sees is about all
    of them.
    """
    if scope is not None and scope not in principal.scopes:
        raise MissingScope(scope)
    if scope is Scope.ADMIN and principal.projects is not None:
        raise Forbidden("this is about all projects, and the credential is limited to some")


def is_operator(principal: Principal) -> bool:
    """Whether a principal may see how the server is, which tells something of all projects."""
    return Scope.ADMIN in principal.scopes and principal.projects is None


def require_renewal(principal: Principal, renewed: Principal) -> None:
    """Raise Forbidden if a new credential cannot take the place of that of an open stream.

    What the stream shows was decided for its subject and projects, so both must be the same.
    """
    if renewed.subject != principal.subject:
        raise Forbidden("it is of another subject than the one of this connection")
    if renewed.projects != principal.projects:
        raise Forbidden("it is for other projects than the one of this connection")
    require_scope(renewed, Scope.READ)


# -- reading ------------------------------------------------------------------------------------


def restrict(view: View, projects: Projects) -> View:
    """Return a view with nothing but these projects in it: one more filter.

    So clients with equal projects share documents with each other, and with everyone who asks for
    the same filter. Raises Forbidden if the view names another project: silently leaving it out
    would show other numbers than the client asked for.
    """
    if projects is None:
        return view
    allowed = _allowed(projects)
    if view.project is None:
        return replace(view, project=allowed)
    if not allowed.issuperset(map(spelling, view.project)):
        raise Forbidden(f"project: {_NOT_YOURS}")
    return view


def restrict_history(query: HistoryQuery, projects: Projects) -> HistoryQuery:
    """Return a history query with nothing but these projects in it. Raises as `restrict` does."""
    return query if projects is None else replace(query, filters=restrict(query.filters, projects))


@lru_cache(REMEMBERED_PROJECTS)
def _allowed(projects: frozenset[str]) -> frozenset[str]:
    """Return the names of projects as decisions have them. Raises Forbidden if there are none.

    Decisions of all projects whose names are over the limit count as OTHER, so it is the project of
    no principal.
    """
    allowed = frozenset(map(spelling, projects)) - {OTHER}
    if not allowed:
        raise Forbidden("project: the credential allows no project")
    return allowed


# -- writing ------------------------------------------------------------------------------------


class ProjectRules:
    """The rules of decisions (`Rules`) for a producer that may write to some projects only.

    If there is one of them, it is the project of decisions that name none.
    """

    def __init__(self, rules: Rules, projects: frozenset[str]) -> None:
        self._rules = rules
        self._allowed = _allowed(projects)
        self._default = next(iter(self._allowed)) if len(self._allowed) == 1 else ""

    def normalise(
        self, sent: DecisionIn | ExactDecision, now: int, flaws: list[Flaw] | None = None
    ) -> DecisionRecord:
        """Return the decision as `Rules.normalise` does. Raises Invalid if its project is wrong."""
        record = self._rules.normalise(sent, now, flaws, self._default)
        if record.owner in self._allowed:
            return record
        if not record.owner:
            raise Invalid("project: is required, because the credential allows several")
        raise Invalid(f"project: {_NOT_YOURS}")


def rules_for(rules: Rules, projects: Projects) -> Rules | ProjectRules:
    """Return the rules for the decisions of a producer. Raises Forbidden if it has no project."""
    return rules if projects is None else ProjectRules(rules, projects)
