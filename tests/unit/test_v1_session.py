"""The session of routecast.v1: each message has one outcome, and errors name the wrong field."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.access import Principal, restrict
from routecast.core.client_limits import LimitModes
from routecast.core.message import ENCODINGS, JSON, MSGPACK, Encoding
from routecast.core.v1_session import (
    MINUTE_SECONDS,
    CloseConnection,
    MessageLimits,
    QueryHistory,
    RenewCredential,
    StartSubscription,
    StopSubscription,
    V1Session,
    renewal_refusal,
)
from routecast.core.view import parse_query
from routecast.errors import BadCredential, Forbidden, Unavailable
from routecast.protocol import FIELDS, WINDOWS, CloseCode, ErrorOut, Pong, Position
from tests.support.wire import GOLDEN

ASKED: list[dict[str, Any]] = [
    case["message"] for case in GOLDEN.values() if case["direction"] == "client"
]


def session(encoding: Encoding = JSON) -> V1Session:
    return V1Session(encoding, 7.0)


def told(message: Any, to: V1Session | None = None, now: float = 100.0) -> Any:
    to = to or session()
    return to.receive(to.encoding.encode(message) if to.encoding.binary else text(message), now)


def text(message: Any) -> str:
    return json.dumps(message, ensure_ascii=False)


# -- what is understood -------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_a_subscription_is_what_a_query_would_ask_for(encoding: Encoding) -> None:
    """A message and a query string give the same view; the interval is the connection's."""
    asked = {
        "type": "subscribe",
        "id": "main",
        "fields": ["cost", "total_decisions", "cost"],
        "filter": {"strategy": ["a", "b"], "model": ["m"]},
        "window": "1h",
        "position": {"epoch": "e", "seq": 4},
    }
    query = "fields=cost,total_decisions&strategy=a&strategy=b&model=m&window=1h&interval=7"
    outcome = told(asked, session(encoding))
    assert outcome == StartSubscription("main", parse_query(query), Position("e", 4))
    assert told({**asked, "id": "x", "interval": 7}, session(encoding)) == StartSubscription(
        "x", parse_query(query), Position("e", 4)
    )


def test_null_means_absent() -> None:
    """Every optional field may be null."""
    names = ("fields", "filter", "window", "interval", "position")
    asked = {"type": "subscribe", "id": "main", **dict.fromkeys(names)}
    assert told(asked) == told({"type": "subscribe", "id": "main"})


def test_ids_come_and_go() -> None:
    """A used id is refused, an unsubscribed one is free, and an unknown one is an error."""
    one = session()
    assert isinstance(told({"type": "subscribe", "id": "a"}, one), StartSubscription)
    assert told({"type": "subscribe", "id": "a"}, one).code == "id_in_use"
    assert told({"type": "ack", "id": "a", "seq": 4}, one) is None
    assert told({"type": "unsubscribe", "id": "a"}, one) == StopSubscription("a")
    assert told({"type": "unsubscribe", "id": "a"}, one).code == "unknown_id"
    assert told({"type": "ack", "id": "a", "seq": 4}, one).code == "unknown_id"
    assert isinstance(told({"type": "subscribe", "id": "a"}, one), StartSubscription)
    assert told({"type": "ping", "id": "a"}, one) == Pong("a")


def test_a_message_a_half_second() -> None:
    """120 messages may come at any time within a minute; then a new minute begins."""
    one = session()
    for minute in range(3):
        for number in range(120):
            assert isinstance(
                told({"type": "ping", "id": "p"}, one, minute * MINUTE_SECONDS + number / 2), Pong
            )
    assert told({"type": "ping", "id": "p"}, one, 2 * MINUTE_SECONDS + 59) == CloseConnection(
        CloseCode.TOO_MANY_MESSAGES
    )


# -- what is not --------------------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)

# By field: whether a value is good. What is not must be refused with the field's name.
_names = {"strategy", "provider", "model", "band", "status"}


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_integer(value: Any) -> bool:
    # A float that is whole is an integer in JSON.
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )


def _is_filter(value: Any) -> bool:
    return isinstance(value, dict) and all(
        values is None
        or (
            isinstance(values, list)
            and 1 <= len(values) <= 100
            and all(_is_text(v, 128) for v in values)
        )
        for name, values in value.items()
        if name in ("strategy", "provider", "model", "project")
    )


def _is_position(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("epoch"), str)
        and _is_integer(value.get("seq"))
    )


GOOD = {
    "id": lambda value: _is_text(value, 64),
    "fields": lambda value: (
        isinstance(value, list) and len(value) > 0 and set(value) <= set(FIELDS)
    ),
    "filter": _is_filter,
    "window": lambda value: value in WINDOWS,
    "interval": lambda value: _is_number(value, 0.1, 60),
    "position": _is_position,
    "seq": lambda value: _is_integer(value) and value >= 0,
    "token": lambda value: _is_text(value, 16_384),
    "points": lambda value: _is_integer(value) and 1 <= value <= 2_000,
    "group_by": lambda value: value in _names,
    "from": lambda _: False,  # nothing that is drawn is a time
    "to": lambda _: False,
    "follow": lambda value: isinstance(value, bool),
}
REQUIRED = {"id", "seq", "token"}
INTEGERS = {"seq", "position"}


def is_good(name: str, value: Any) -> bool:
    """Return whether a field may have a value."""
    number = value.get("seq") if isinstance(value, dict) else value
    if name in INTEGERS and isinstance(number, float):
        return False  # 1.0 is a float in both encodings
    if value is None:
        return name not in REQUIRED
    try:
        return bool(GOOD[name](value))
    except TypeError:  # what cannot be hashed is no name
        return False


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
@pytest.mark.parametrize("seq", [1.0, 0.5, -1, "1", True])
def test_a_seq_is_an_integer(encoding: Encoding, seq: Any) -> None:
    """A float is no seq, also if it is whole."""
    one = session(encoding)
    one.ids["main"] = 1
    sent = encoding.encode({"type": "ack", "id": "main", "seq": seq})
    outcome = one.receive(sent if encoding.binary else sent.decode(), 100.0)
    assert isinstance(outcome, ErrorOut)
    assert outcome.message.startswith("seq: ")


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
@given(data=st.data())
def test_whatever_is_wrong_in_a_field_it_is_named(encoding: Encoding, data: st.DataObject) -> None:
    """Any value in any field is accepted if it is good; else the error names the field."""
    message = data.draw(st.sampled_from(ASKED))
    name = data.draw(st.sampled_from([name for name in message if name in GOOD]))
    value = data.draw(anything)
    try:
        encoded = (
            msgspec.msgpack.encode({**message, name: value})
            if encoding.binary
            else text({**message, name: value})
        )
        if not encoding.binary:
            json.loads(encoded, parse_constant=_refuse)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError):
        return  # nobody can send it
    one = session(encoding)
    for known in ("main", "h1"):
        one.ids[known] = 1
    if message["type"] == "subscribe":
        one.ids.clear()
    outcome = one.receive(encoded, 100.0)
    if is_good(name, value):
        assert not (isinstance(outcome, ErrorOut) and outcome.code == "bad_request"), outcome
    else:
        assert isinstance(outcome, ErrorOut)
        assert outcome.message.split(": ")[0].split(".")[0] == name
        assert outcome.retryable is False


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


@given(st.data())
def test_a_missing_field_is_named(data: st.DataObject) -> None:
    """The error names a missing required field."""
    message = data.draw(st.sampled_from(ASKED))
    name = data.draw(st.sampled_from([name for name in message if name in REQUIRED]))
    outcome = told({key: value for key, value in message.items() if key != name})
    assert isinstance(outcome, ErrorOut)
    assert outcome.message == f"{name}: is required"


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
@given(message=st.text() | st.binary() | anything.map(lambda value: repr(value)))
def test_whatever_comes_has_an_outcome(encoding: Encoding, message: str | bytes) -> None:
    """Any bytes and any text give an answer or a close, and no exception."""
    if isinstance(message, str):
        message = message.encode("utf-8", "replace").decode()
    outcome = session(encoding).receive(message, 100.0)
    assert isinstance(outcome, ErrorOut | CloseConnection | StartSubscription)


@pytest.mark.parametrize(
    "message",
    ["[" * 60_000, '{"type":"ping","id":"p","x":' + "[" * 30_000 + "]" * 30_000 + "}"],
    ids=["open", "closed"],
)
def test_nesting_has_an_end(message: str) -> None:
    """A message that is nested too deeply is invalid."""
    assert session().receive(message, 100.0).code == "not_protocol"


def test_an_error_has_the_id_of_what_it_answers() -> None:
    """An error has the message's id if that is known and valid."""
    assert told({"type": "subscribe", "id": "a", "window": 3}).id == "a"
    assert told({"type": "subscribe", "id": 5}).id is msgspec.UNSET
    assert told({"type": "subscribe", "id": "x" * 65}).id is msgspec.UNSET


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400])
def test_an_id_that_is_an_impossible_number_is_a_wrong_id(number: str) -> None:
    """The message still counts as one of the protocol."""
    refused = session().receive(f'{{"type":"subscribe","id":{number}}}', 100.0)
    assert isinstance(refused, ErrorOut)
    assert (refused.code, refused.id) == ("bad_request", msgspec.UNSET)
    assert refused.message == "id: number out of range"


def test_a_time_out_of_range_is_refused_with_the_rule() -> None:
    """A MessagePack time may be later than the last year that Python knows."""
    far = msgspec.msgpack.Ext(-1, bytes(4) + (2**62).to_bytes(8))
    refused = told({"type": "history", "id": "h", "to": far}, session(MSGPACK))
    assert refused.id == "h"
    assert refused.message == "to: must be RFC 3339 with an offset, such as 2026-01-31T12:34:56Z"


def test_subscriptions_of_a_connection_are_limited_in_bytes() -> None:
    """The limit is of bytes in UTF-8, and not of characters."""
    one = session()
    names = [f"{number:02}" + "💣" * 126 for number in range(50)]
    asked = [
        {"type": "subscribe", "id": f"{number}", "filter": {"model": names}} for number in range(3)
    ]
    size = len(text(asked[0]).encode())
    assert 2 * size <= 65_536 < 3 * size
    assert 3 * len(text(asked[0])) < 65_536
    assert [isinstance(told(each, one), StartSubscription) for each in asked] == [True, True, False]
    assert told(asked[2], one).code == "too_many"
    assert told(
        {**asked[0], "id": "x", "filter": {"model": names * 2, "provider": names}}
    ) == CloseConnection(CloseCode.TOO_BIG)


def test_both_encodings_have_the_same_outcomes() -> None:
    """This holds for all golden messages of clients."""
    for message in ASKED:
        one, other = session(JSON), session(MSGPACK)
        for each in (one, other):
            each.ids["known"] = 1
        assert told(message, one) == told(message, other)


@pytest.mark.parametrize("encoding", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_times_and_numbers_are_read_as_everywhere(encoding: Encoding) -> None:
    """A leap second stays in its minute, extra digits are cut off, and 60.0 is 60."""
    asked = {
        "type": "history",
        "id": "h",
        "from": "2016-12-31T23:59:60Z",
        "to": "2026-01-31T12:34:56.9999999Z",
        "points": 60.0,
    }
    raw = (
        msgspec.json.encode(asked).decode()
        if not encoding.binary
        else msgspec.msgpack.encode(asked)
    )
    outcome = session(encoding).receive(raw, 100.0)
    assert isinstance(outcome, QueryHistory)
    assert outcome.query.start == 1_483_228_799_999_999
    assert outcome.query.end == 1_769_862_896_999_999
    assert outcome.query.points == 60


# -- whose connection it is ---------------------------------------------------------------------


def limited(*projects: str) -> V1Session:
    """Return the session of a client that may see some projects only."""
    return V1Session(JSON, 7.0, Principal("ana", projects=frozenset(projects)))


@pytest.mark.parametrize("asked", [{}, {"filter": {"project": ["ours"]}}])
def test_a_client_sees_nothing_but_its_projects(asked: dict[str, Any]) -> None:
    """The views of subscriptions and histories have a filter, whatever was asked for."""
    one = limited("ours")
    for kind in ("subscribe", "history"):
        outcome = told({"type": kind, "id": kind, **asked}, one)
        if isinstance(outcome, StartSubscription):
            view = outcome.subscription.view
        else:
            assert isinstance(outcome, QueryHistory)
            view = outcome.query.filters
        assert view == restrict(view, frozenset({"ours"}))
        assert view.project == {"ours"}


@pytest.mark.parametrize("kind", ["subscribe", "history"])
def test_another_project_is_forbidden(kind: str) -> None:
    """The id is free again, and the text says nothing of the project."""
    one = limited("ours")
    asked = {"type": kind, "id": "main", "filter": {"project": ["ours", "theirs"]}}
    outcome = told(asked, one)
    message = "project: the credential does not allow this project"
    assert outcome == ErrorOut(id="main", code="forbidden", message=message, retryable=False)
    assert not one.ids
    assert isinstance(told({"type": "subscribe", "id": "main"}, limited()), ErrorOut)


def test_a_refresh_is_for_connections_with_a_credential() -> None:
    """The token is in no text that is made of the outcome."""
    asked = {"type": "refresh", "token": "s3cret"}
    outcome = told(asked, limited("ours"))
    assert outcome == RenewCredential("s3cret")
    assert "s3cret" not in repr(outcome)
    assert told(asked).code == "not_supported"


def test_the_answer_to_a_token_that_does_not_help() -> None:
    """It says whether to try again."""
    bad = renewal_refusal(BadCredential("it has expired"))
    assert (bad.code, bad.message, bad.retryable) == ("bad_request", "token: it has expired", False)
    assert renewal_refusal(Forbidden("it is of another")).code == "bad_request"
    later = renewal_refusal(Unavailable("later"))
    assert (later.code, later.retryable) == ("unavailable", True)


# -- limits -------------------------------------------------------------------------------------


def with_limits(*dry_run: str, **limits: int) -> tuple[V1Session, list[tuple[str, str]]]:
    """Return a session with limits, and the list of its hits."""
    hits: list[tuple[str, str]] = []
    modes = LimitModes(dry_run, lambda limit, mode: hits.append((limit, mode)))
    return V1Session(JSON, 7.0, limits=MessageLimits(**limits, modes=modes)), hits


PING: dict[str, Any] = {"type": "ping", "id": "p"}
TOO_MUCH = CloseConnection(CloseCode.TOO_MANY_MESSAGES)


def test_messages_and_bytes_in_a_minute_have_limits() -> None:
    """Either closes the connection."""
    one, hits = with_limits(messages=3)
    assert [told(PING, one) == TOO_MUCH for _ in range(4)] == [False, False, False, True]
    two, more = with_limits(bytes=3 * len(text(PING)))
    assert [told(PING, two) == TOO_MUCH for _ in range(4)] == [False, False, False, True]
    assert told(PING, two, 100.0 + MINUTE_SECONDS) == Pong("p")
    assert (hits, more) == ([("messages", "enforced")], [("message_bytes", "enforced")])


def test_limits_in_dry_run_close_nothing() -> None:
    """Each message over them is a hit; the other limit holds."""
    one, hits = with_limits("messages", messages=3, bytes=10 * len(text(PING)))
    assert [told(PING, one) == TOO_MUCH for _ in range(11)] == [False] * 10 + [True]
    assert hits == [("messages", "dry_run")] * 8 + [("message_bytes", "enforced")]
