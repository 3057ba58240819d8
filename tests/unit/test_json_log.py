"""The log in JSON: any record is one line, and events are limited."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast import audit
from routecast.audit import MAX_REFUSALS, Refusals
from routecast.server.config import load_settings
from routecast.server.json_log import MAX_TEXT, JsonFormatter

TEXTS = st.text(st.characters(), max_size=40)  # with lone surrogates, too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def line_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the object of a record, which must be one line."""
    text = JsonFormatter().format(record)
    assert text.isascii()
    assert text.isprintable()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads(text, parse_constant=refuse)
    json.dumps(line, ensure_ascii=False).encode("utf-8")  # valid Unicode
    assert isinstance(line, dict)
    return line


@given(TEXTS, st.tuples() | st.tuples(VALUES) | st.tuples(VALUES, VALUES), TEXTS, VALUES)
def test_any_record_is_one_line(text: str, args: tuple[Any, ...], name: str, value: Any) -> None:
    """Also if its arguments do not fit its text."""
    record = logging.LogRecord(name, logging.INFO, "file.py", 1, text, args, None)
    record.__dict__.update(audit.marked("refuse", why=value))
    line = line_of(record)
    assert line["level"] == "info"
    assert line["event"] == "refuse"
    assert line["time"].endswith("+00:00")


def test_a_traceback_is_one_field() -> None:
    """With the exceptions that caused it."""
    try:
        try:
            raise ValueError("first\nsecond")
        except ValueError as cause:
            raise RuntimeError("later") from cause
    except RuntimeError:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    line = line_of(record)
    assert line["message"] == "failed"
    assert "first\nsecond" in line["traceback"]
    assert "RuntimeError: later" in line["traceback"]


def test_long_texts_are_cut() -> None:
    """They would be split or dropped later."""
    record = logging.LogRecord("a", logging.INFO, "f", 1, "x" * 100_000, (), None)
    assert len(line_of(record)["message"]) == MAX_TEXT + 1


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(audit.fields_of(record))


@pytest.fixture
def lines() -> Iterator[_Lines]:
    """What is logged while someone listens."""
    handler, before = _Lines(), audit.log.level
    audit.log.addHandler(handler)
    audit.listen()
    yield handler
    audit.log.setLevel(before)
    audit.log.removeHandler(handler)


def test_nobody_listens_at_first(caplog: pytest.LogCaptureFixture) -> None:
    """At any level of other lines."""
    with caplog.at_level(logging.DEBUG):
        assert not audit.listens()
        audit.record("connect", "connected")
        Refusals(lambda *_: None).add("401", "no credential")
    assert not caplog.records


def test_refusals_are_limited_by_cause(lines: _Lines) -> None:
    """The number of those that were left out is logged."""
    waiting: list[Any] = []
    refusals = Refusals(lambda _, action: waiting.append(action))
    for _ in range(MAX_REFUSALS + 7):
        refusals.add("401", "no credential")
    refusals.add("403", "no scope")
    assert len(lines.events) == MAX_REFUSALS + 1
    assert lines.events[-1]["why"] == "no scope"
    assert len(waiting) == 1
    waiting.pop()()
    assert lines.events[-1] == {"event": "refuse", "why": "401", "left_out": 7}
    refusals.add("401", "no credential")
    assert lines.events[-1]["why"] == "no credential"
    waiting.pop()()
    assert "left_out" not in lines.events[-1]


def test_settings_are_shown_without_secrets() -> None:
    """Passwords in URLs are hidden, and so is a private key that was set by mistake."""
    secret = "canary-of-this-test"
    settings = load_settings(
        jwt_secret=f"{secret} and more than 32 bytes",
        jwt_public_key=f"-----BEGIN PRIVATE KEY-----\n{secret}",
        database_url=f"postgresql://user:{secret}@host/name?password={secret}",
        redis_url=f"redis://:{secret}@host:6379/0",
        jwks_url=f"https://user:{secret}@login.example/keys?key={secret}",
        allowed_origins="https://b.example,https://a.example",
    )
    shown = settings.shown()
    assert secret not in json.dumps(shown)
    assert shown["jwt_secret"] == "***"
    assert shown["port"] == settings.port
    assert shown["allowed_origins"] == ["https://a.example", "https://b.example"]
