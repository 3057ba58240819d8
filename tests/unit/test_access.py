"""Access: what each principal may see and write, and where a credential may be in a request."""

import json
from base64 import urlsafe_b64encode
from dataclasses import replace
from typing import Any

import pytest

from routecast.adapters.records.memory import MemoryRecords
from routecast.core.access import (
    ANYONE,
    SCOPE_OF_ROUTE,
    Principal,
    Scope,
    is_operator,
    require_renewal,
    require_scope,
    restrict,
    restrict_history,
    rules_for,
)
from routecast.core.client_limits import ClientLimit
from routecast.core.decision import DecisionRecord, Rules
from routecast.core.decode import pieces
from routecast.core.default_session import open_session
from routecast.core.history import parse_history
from routecast.core.record_limit import RecordLimit
from routecast.core.view import View, parse_query
from routecast.edge.access import (
    MAX_COOKIES,
    MAX_SUBPROTOCOLS,
    SESSION_COOKIE,
    Access,
    CookieIn,
    find_credential,
    read_query,
    split_bearers,
    without_ticket,
)
from routecast.edge.access_control import listed_path
from routecast.errors import BadCredential, BadHead, BadParameter, Forbidden, Invalid, MissingScope
from routecast.services.decision_batch import DecisionBatch
from routecast.services.sessions import Sessions
from tests.support.clock import HeldClock
from tests.support.decisions import NOW

OURS = frozenset({"ours", "caf\u00e9"})


# -- scopes -------------------------------------------------------------------------------------


def test_a_scope_is_needed_where_the_table_says_so() -> None:
    """None is open to all; no scope includes another one."""
    reader = Principal("ana", frozenset({Scope.READ}))
    require_scope(reader, None)
    require_scope(reader, Scope.READ)
    for scope in set(Scope) - {Scope.READ}:
        with pytest.raises(MissingScope, match=f"`{scope}`"):
            require_scope(reader, scope)
        require_scope(ANYONE, scope)


def test_an_operator_must_be_allowed_to_see_all_projects() -> None:
    """What an operator sees is about all of them."""
    operator = Principal("ana", frozenset({Scope.ADMIN}))
    assert is_operator(operator)
    assert is_operator(ANYONE)
    limited = replace(operator, projects=OURS)
    assert not is_operator(limited)
    with pytest.raises(Forbidden, match="all projects"):
        require_scope(limited, Scope.ADMIN)


def test_a_new_credential_must_be_of_the_same_subject_for_the_same_projects() -> None:
    """It must allow to read; everything else may differ."""
    old = Principal("ana", frozenset({Scope.READ}), OURS, expires=1.0, credential="a")
    require_renewal(old, Principal("ana", frozenset(Scope), OURS, expires=2.0, credential="b"))
    for other in (
        replace(old, subject="bob"),
        replace(old, projects=None),
        replace(old, projects=OURS | {"theirs"}),
        replace(old, projects=frozenset({"ours"})),
        replace(old, scopes=frozenset(Scope) - {Scope.READ}),
    ):
        with pytest.raises(Forbidden):
            require_renewal(old, other)


# -- reading ------------------------------------------------------------------------------------


def test_a_view_of_limited_projects_is_one_with_a_filter() -> None:
    """It is equal to the view of everyone who asks for these projects, so it is rendered once."""
    restricted = restrict(View(), OURS)
    assert restricted == parse_query("project=ours&project=caf%C3%A9").view
    assert restrict(View(), frozenset(sorted(OURS))) == restricted
    assert restrict(View(), None) == View()
    asked = parse_query("project=ours&strategy=s").view
    assert restrict(asked, OURS) is asked


def test_another_form_of_a_name_is_the_same_project() -> None:
    """Names are compared in their stored form."""
    asked = parse_query("project=cafe%CC%81").view
    assert restrict(asked, OURS) is asked


@pytest.mark.parametrize(
    "query", ["project=theirs", "project=ours&project=theirs", "project=other"]
)
def test_another_project_is_refused_whether_it_exists_or_not(query: str) -> None:
    """`other` has the decisions of all projects over the limit, so it is nobody's own."""
    for projects in (OURS, OURS | {"other"}):
        with pytest.raises(Forbidden) as caught:
            restrict(parse_query(query).view, projects)
        assert str(caught.value) == "project: the credential does not allow this project"


@pytest.mark.parametrize("projects", [frozenset(), frozenset({"other"})])
def test_without_a_project_everything_is_refused(projects: frozenset[str]) -> None:
    """An empty list of projects is not all of them."""
    with pytest.raises(Forbidden):
        restrict(View(), projects)
    with pytest.raises(Forbidden):
        rules_for(Rules(), projects)


def test_a_history_is_limited_as_a_view_is() -> None:
    """Everything else in the query stays."""
    query = parse_history("points=7&group_by=model")
    found = restrict_history(query, OURS)
    assert found == replace(query, filters=restrict(query.filters, OURS))
    assert restrict_history(query, None) is query
    with pytest.raises(Forbidden):
        restrict_history(parse_history("project=theirs"), OURS)


def test_equal_requests_of_equal_projects_share_a_session() -> None:
    """The sessions of other projects are others."""
    session = open_session(b"window=1h", projects=OURS)
    assert open_session(b"window=1h", projects=frozenset(sorted(OURS))) is session
    assert session.subscription.view.project == OURS
    assert open_session(b"window=1h").subscription.view.project is None


# -- writing ------------------------------------------------------------------------------------


def record(projects: frozenset[str] | None, **fields: Any) -> DecisionRecord | str:
    """Return a decision as stored, or why it is rejected."""
    sent = json.dumps({"strategy": "s", "provider": "p", **fields}).encode()
    batch = DecisionBatch(pieces(sent, lines=False), rules_for(Rules(), projects), NOW)
    while not batch.validate():
        pass
    return batch.decisions[0] if batch.decisions else batch.rejected[0].error


def test_a_producer_writes_to_its_own_projects_only() -> None:
    """A rejection does not say whether the other project exists."""
    allowed = record(OURS, project="ours")
    assert isinstance(allowed, DecisionRecord)
    assert (allowed.project, allowed.owner) == ("ours", "ours")
    for name in ("theirs", "default", "other", "Ours"):
        why = record(OURS | {"other"}, project=name)
        assert why == "project: the credential does not allow this project"
    combined = record(OURS, project="cafe\u0301")
    assert isinstance(combined, DecisionRecord)
    assert combined.project == "caf\u00e9"


@pytest.mark.parametrize("project", [None, "", "\u202e", 5])
def test_the_only_project_is_that_of_decisions_without_one(project: object) -> None:
    """A project that cannot be used is none. With several projects, it must be given."""
    one = record(frozenset({"ours"}), project=project)
    assert isinstance(one, DecisionRecord)
    assert (one.project, one.owner) == ("ours", "ours")
    assert record(OURS, project=project) == (
        "project: is required, because the credential allows several"
    )
    free = record(None, project=project)
    assert isinstance(free, DecisionRecord)
    assert free.project == "default"


def test_a_project_that_is_rejected_does_not_reject_the_others() -> None:
    """Each decision of a batch is judged alone."""
    sent = [{"strategy": "s", "provider": "p", "project": name} for name in ("theirs", "ours")]
    rules = rules_for(Rules(), OURS)
    batch = DecisionBatch(pieces(json.dumps(sent).encode(), lines=False), rules, NOW)
    while not batch.validate():
        pass
    assert [one.project for one in batch.decisions] == ["ours"]
    assert [one.index for one in batch.rejected] == [0]
    with pytest.raises(Invalid):
        rules.normalise(next(iter(next(iter(pieces(json.dumps(sent).encode(), lines=False))))), NOW)


# -- credentials in requests --------------------------------------------------------------------

TOKEN = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln-_+/=="
SAFE = urlsafe_b64encode(TOKEN.encode()).rstrip(b"=")
BEARER = b"routecast.bearer." + SAFE


def test_a_credential_is_found_in_the_field_or_in_a_subprotocol() -> None:
    """The name of the scheme may be in any case (RFC 9110, 11.1)."""
    for scheme in ("Bearer", "bearer", "BEARER", "Bearer  "):
        assert find_credential(f"{scheme} {TOKEN}".encode()) == TOKEN
    assert find_credential(None, [BEARER]) == TOKEN
    assert find_credential(None) is None
    padded = b"routecast.bearer." + urlsafe_b64encode(b"four")  # some clients keep the padding off
    assert find_credential(None, [padded.rstrip(b"=")]) == "four"


@pytest.mark.parametrize(
    "field",
    [b"", b"Bearer", b"Bearer ", b"Basic czNj", b"czNj", b"Bearer czNj czNj", b"Bearer czNj\xe9"],
)
def test_a_malformed_field_is_refused_without_its_content(field: bytes) -> None:
    """It counts as a credential that is not valid."""
    with pytest.raises(BadCredential) as caught:
        find_credential(field)
    assert caught.value.invalid
    assert "czNj" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"!", b"a", b"YQ==", b"w6k", b"YSBi", b"AAAA"])
def test_a_malformed_subprotocol_is_refused(content: bytes) -> None:
    """Of base64url, and then of the characters of a token, nothing else is taken."""
    with pytest.raises(BadCredential):
        find_credential(None, [b"routecast.bearer." + content])


def test_several_credentials_are_refused() -> None:
    """It would be unclear which one counts (RFC 6750, 2)."""
    for authorization, bearers in ((b"Bearer a", [BEARER]), (None, [BEARER, BEARER])):
        with pytest.raises(BadHead):
            find_credential(authorization, bearers)


@pytest.mark.parametrize(
    ("given", "kept", "found"),
    [
        (b"", b"", []),
        (b"routecast.v1.json", b"routecast.v1.json", []),
        (b"a ,b", b"a ,b", []),
        (b"routecast.v1.json, " + BEARER, b"routecast.v1.json", [BEARER]),
        (BEARER + b",routecast.v1.json,x", b"routecast.v1.json, x", [BEARER]),
        (BEARER, b"", [BEARER]),
        (b"x routecast.bearer.a b, y", b"y", [b"x routecast.bearer.a b"]),
    ],
)
def test_credentials_are_taken_out_of_the_subprotocols(
    given: bytes, kept: bytes, found: list[bytes]
) -> None:
    """What is left is what the server may remember and answer."""
    assert split_bearers(given) == (kept, found)


@pytest.mark.parametrize(
    "query",
    [
        b"token=a",
        b"access_token=a",
        b"key=a",
        b"api_key=a",
        b"window=1h&token=a",
        b"TOKEN=a",
        b"t%6Fken=a",
        b"api%5Fkey=a&window=1h",
        b"+token=a",
        b"token",
    ],
)
def test_a_credential_in_a_url_is_refused_without_its_value(query: bytes) -> None:
    """The name may be written in any way that servers understand."""
    with pytest.raises(BadParameter) as caught:
        read_query(query)
    assert caught.value.parameter in ("token", "access_token", "key", "api_key")
    assert "Authorization" in str(caught.value)


@pytest.mark.parametrize("query", [b"", b"window=1h", b"keys=1&tokens=2", b"x=token", b"=&&=token"])
def test_other_parameters_pass(query: bytes) -> None:
    """The route reads them."""
    assert read_query(query) is None


def test_very_many_subprotocols_are_not_read() -> None:
    """They are one credential that is not valid, and nothing of them is remembered."""
    few = b"," * (MAX_SUBPROTOCOLS - 2) + b"," + BEARER
    assert split_bearers(few)[1] == [BEARER]
    many = b"," + few
    assert split_bearers(many) == (b"", [many])
    with pytest.raises(BadCredential):
        find_credential(None, [many])


def test_very_many_cookies_are_not_read(clock: HeldClock) -> None:
    """Anybody can send them."""
    limit = RecordLimit(ClientLimit.SESSIONS, 0, 1)
    sessions = Sessions(MemoryRecords(clock), lambda _: None, clock, limit)
    access = Access(sessions=sessions)

    def found(*lines: bytes) -> object:
        fields = {b"cookie": lines}
        return access.added_in(fields, remote="", secure=False, must_prove=False)

    ours = SESSION_COOKIE.encode() + b"=x"
    assert found(b"a=1;" * (MAX_COOKIES - 1) + ours) == CookieIn("x")
    for lines in ([b";" * MAX_COOKIES + ours], [b";" * (MAX_COOKIES - 1), b";", ours]):
        with pytest.raises(BadHead, match="cookies"):
            found(*lines)


def test_a_query_of_very_many_parameters_is_not_read() -> None:
    """Each takes a microsecond, of everyone's time, and anybody can send thousands."""
    assert read_query(b"&".join([b"a=1"] * 1_000)) is None
    with pytest.raises(BadParameter) as caught:
        read_query(b"&" * 1_000)
    assert caught.value.parameter == "query"


@pytest.mark.parametrize("name", [b"ticket", b"TICKET", b"%74icket", b"tick%45t", b"+ticket"])
def test_a_ticket_is_taken_out_in_each_spelling_in_which_it_counts(name: bytes) -> None:
    """No error and no log has it."""
    query = b"window=1h&" + name + b"=abc"
    assert read_query(query, takes_ticket=True) == "abc"
    assert without_ticket(query) == b"window=1h"


def test_the_subprotocols_of_a_plain_request_are_no_credential() -> None:
    """Only an upgrade has any; there are never two ways at once."""
    headers = [(b"sec-websocket-protocol", BEARER)]
    scope = {"type": "http", "path": "/", "query_string": b"", "headers": headers}
    access = Access()
    assert access.credential_of(scope) is None
    assert access.credential_of({**scope, "type": "websocket"}) == TOKEN


@pytest.mark.parametrize(
    ("path", "listed"),
    [
        *((path, path) for _, path in SCOPE_OF_ROUTE if "{" not in path),
        ("/dashboard/client/routecast.js", "/dashboard/{path:path}"),
        ("/dashboard", "/dashboard"),
        ("/dashboardx", "/dashboardx"),
        ("/v1/history\n", "/v1/history\n"),  # the router ignores a line end there
        ("/v1/history/", "/v1/history/"),
        ("//v1/history", "//v1/history"),
        ("/V1/history", "/V1/history"),
    ],
)
def test_only_exact_paths_are_listed(path: str, listed: str) -> None:
    """Another spelling of a path is not in the table, so it is not passed on."""
    assert listed_path(path) == listed
