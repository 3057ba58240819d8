"""Access: what a client is allowed to do, and which projects it may see.

A client proves itself with a *credential* (a token or an API key). Whatever the credential is, it
becomes a `Principal`. All decisions about access are made from a principal and the tables below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from routecast.core.history import HistoryQuery
from routecast.core.texts import spelling
from routecast.core.view import View
from routecast.errors import Forbidden, Invalid, MissingScope


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
    """

    subject: str = ""
    scopes: frozenset[Scope] = ALL_SCOPES
    projects: frozenset[str] | None = None
    expires: float | None = None
    credential: str = ""
    issued: float | None = None
    is_key: bool = False


# Everyone, while authentication is off.
ANYONE: Final = Principal()

# The scope that each route needs; None for the routes without data, which are open. The tests
# iterate over this table.
SCOPE_OF_ROUTE: Final[Mapping[tuple[str, str], Scope | None]] = {
    ("GET", "/"): None,
    ("GET", "/health"): None,
    ("GET", "/ready"): None,
    ("GET", "/docs"): None,
    ("GET", "/openapi.json"): None,
    ("GET", "/asyncapi.json"): None,
    ("GET", "/metrics"): Scope.ADMIN,
    ("GET", "/routing/metrics"): Scope.READ,
    ("GET", "/v1/history"): Scope.READ,
    ("GET", "/ws/metrics"): Scope.READ,
    ("GET", "/sse/metrics"): Scope.READ,
    ("POST", "/v1/decisions"): Scope.WRITE,
}


def require_scope(principal: Principal, scope: Scope | None) -> None:
    """Raise MissingScope if a principal lacks a scope."""
    if scope is not None and scope not in principal.scopes:
        raise MissingScope(scope)


def restrict(view: View, principal: Principal) -> View:
    """Return a view with nothing but the principal's projects in it.

    Raises Forbidden if the view names another project: silently leaving it out would show other
    numbers than the client asked for.
    """
    if principal.projects is None:
        return view
    if view.project is None:
        return replace(view, project=principal.projects)
    # A view has the names as they were given, and in the stored form that a principal has.
    others = sorted(name for name in view.project if spelling(name) not in principal.projects)
    if others:
        raise Forbidden(f"project: the credential does not allow {others[0]!r}")
    return view


def restrict_history(query: HistoryQuery, principal: Principal) -> HistoryQuery:
    """Return a history query for nothing but the principal's projects. Raises Forbidden."""
    filters = restrict(query.filters, principal)
    return query if filters is query.filters else replace(query, filters=filters)


def project_of(sent: str | None, principal: Principal) -> str | None:
    """Return the project of a decision that a principal sends; None for the default project.

    `sent` is the project that the decision names, in its stored form; None if it names none. Then
    it belongs to the principal's only project. Raises Invalid if the principal has several, or may
    not write to the project.
    """
    projects = principal.projects
    if projects is None:
        return sent
    if sent is None and len(projects) == 1:
        return next(iter(projects))
    if sent is None:
        raise Invalid("project: must be given, because the credential is not for exactly one")
    if sent not in projects:
        raise Invalid("project: the credential does not allow this one")
    return sent
