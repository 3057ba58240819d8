"""What ties log lines of a request together: ids of requests, and W3C trace context."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.request_trace import read_request_id, read_trace_id, trace_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-ff",
        f"cc-{TRACE}-{PARENT}-01-what-a-later-version-adds",
    ],
)
def test_a_trace_is_read(value: str) -> None:
    """Of a later version, only what every version has."""
    assert read_trace_id(value.encode()) == TRACE


@pytest.mark.parametrize(
    "value",
    [
        "",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-1",
        f" 00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
        f"cc-{TRACE}-{PARENT}-01.more",
    ],
)
def test_a_malformed_trace_is_not_used(value: str) -> None:
    """As W3C Trace Context asks for."""
    assert read_trace_id(value.encode()) is None


@given(st.binary(max_size=80))
def test_only_visible_characters_are_an_id(value: bytes) -> None:
    """Up to 64 of them."""
    expected = value if re.fullmatch(rb"[!-~]{1,64}", value) else None
    assert read_request_id(value) == expected


def test_fields_that_come_twice_are_not_used() -> None:
    """The request then has an id of ours."""
    headers = [(b"x-request-id", b"a"), (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())]
    trace = trace_of(headers, "192.0.2.1", "/health")
    assert (trace.request_id, trace.trace_id) == ("a", TRACE)
    trace = trace_of(headers * 2, "192.0.2.1", "/health")
    assert re.fullmatch(r"[0-9a-f]{16}", trace.request_id)
    assert trace.trace_id is None
