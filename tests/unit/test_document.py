"""Encoded documents: made once, with a timestamp for each tick."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.document import encode_document, error_document, finish
from routecast.protocol import Position, Source
from tests.support.decisions import NOW
from tests.support.oracle import stamped

POSITION = Position("e", 7)

values = (
    st.integers() | st.floats(0, 1) | st.none() | st.text(st.characters(exclude_categories=["Cs"]))
)
documents = st.dictionaries(
    st.sampled_from("abcd"), values | st.dictionaries(st.text('ä"\\{}'), values)
)


@given(documents, st.integers(0, 4 * 10**15), st.sampled_from(Source))
def test_stamped_document_is_json_with_its_timestamp_last(
    document: dict[str, Any], now: int, source: Source
) -> None:
    """The timestamp is RFC 3339 in UTC with six decimals."""
    frame = finish(encode_document(document), now, source, POSITION)
    read = json.loads(frame.body)
    assert read == stamped(document, now)
    assert list(read) == [*document, "timestamp"]
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", read["timestamp"], re.ASCII
    )
    assert frame.source is source


def test_same_document_is_stamped_again_without_a_change() -> None:
    """One encoding can be used for many ticks."""
    unterminated = encode_document({"total_decisions": 150})
    first, second = (finish(unterminated, now, Source.LIVE, POSITION) for now in (NOW, NOW + 1))
    assert first.body == b'{"total_decisions":150,"timestamp":"2026-01-31T12:34:56.789123+00:00"}'
    assert second.body == b'{"total_decisions":150,"timestamp":"2026-01-31T12:34:56.789124+00:00"}'


@pytest.mark.parametrize("now", [0, 10**6, NOW // 10**6 * 10**6])
def test_whole_seconds_keep_their_decimals(now: int) -> None:
    """Timestamps have a fixed width."""
    assert b".000000+00:00" in finish(encode_document({}), now, Source.LIVE, POSITION).body


def test_error_document_is_that_of_the_contract() -> None:
    """It says that no source could answer, and has no source."""
    frame = error_document(NOW)
    assert frame.body == (
        b'{"error":"Failed to fetch metrics","timestamp":"2026-01-31T12:34:56.789123+00:00"}'
    )
    assert frame.source is None
