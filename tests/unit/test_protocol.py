"""The wire contract: names, limits and texts in `protocol.py`."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.protocol import (
    DEFAULT_FIELDS,
    FIELDS,
    MAX_COST,
    MAX_LATENCY_MS,
    MAX_TOKENS,
    Components,
    FieldWarning,
    Position,
    Receipt,
    Rejection,
    WarningCode,
    rfc3339,
)
from tests.support.oracle import ALL_FIELDS, stamped
from tests.support.oracle import DEFAULT_FIELDS as CONTRACT_FIELDS

ROOT = Path(__file__).parents[2]


def test_fields_and_their_order_are_those_of_the_contract() -> None:
    """Default fields come first."""
    assert (DEFAULT_FIELDS, FIELDS) == (CONTRACT_FIELDS, ALL_FIELDS)


@given(st.integers(0, 253_402_300_799_999_999))
def test_time_is_written_with_six_decimals(moment: int) -> None:
    """This holds up to the end of the year 9999."""
    assert rfc3339(moment) == stamped({}, moment)["timestamp"]
    assert len(rfc3339(moment)) == 32


def test_receipt_leaves_out_unknown_ids() -> None:
    """The text is that of the contract."""
    rejected = [Rejection(7, "provider: is required", "x"), Rejection(8, "strategy: is required")]
    warning = FieldWarning(2, "cost", WarningCode.NEGATIVE, "must be 0 or more")
    receipt = Receipt(996, 1, rejected, 2, Position("e", 4711), 3, [warning], 1)
    text = (
        b'{"accepted":996,"duplicates":1,"rejected":['
        b'{"index":7,"error":"provider: is required","id":"x"},'
        b'{"index":8,"error":"strategy: is required"}],'
        b'"rejected_count":2,"position":{"epoch":"e","seq":4711},"conflicts":3,'
        b'"warnings":[{"index":2,"field":"cost","code":"negative","message":"must be 0 or more"}],'
        b'"warnings_count":1}'
    )
    assert msgspec.json.encode(receipt) == text
    assert msgspec.json.decode(text, type=Receipt) == receipt


def test_receipt_of_an_earlier_server_is_read() -> None:
    """It has no conflicts and no warnings."""
    text = (
        b'{"accepted":1,"duplicates":2,"rejected":[],"rejected_count":0,'
        b'"position":{"epoch":"e","seq":1}}'
    )
    assert msgspec.json.decode(text, type=Receipt) == Receipt(1, 2, [], 0, Position("e", 1))


@pytest.mark.parametrize("place", ["docs/protocol.md", "src/routecast/dashboard/page_view.js"])
@pytest.mark.parametrize("name", Components.__struct_fields__)
def test_health_of_an_engine_has_the_same_words_everywhere(place: str, name: str) -> None:
    """The protocol page and the dashboard have the words of the code."""
    pattern = rf"^( \* @property .* {name}|\| .*`components\.{name}`.*)$"
    (found,) = re.finditer(pattern, (ROOT / place).read_text(), re.MULTILINE)
    said = set(re.findall(r"[\"`](ok|off|failing|corrupt|down|degraded)[\"`]", found[0]))
    assert said == set(get_args(get_type_hints(Components)[name]))


@pytest.mark.parametrize(
    ("largest", "decisions"),
    [
        (MAX_COST * 10**9, 10**6),
        (MAX_LATENCY_MS * 10**3, 15 * 10**6),
        (MAX_TOKENS, 9 * 10**9),
    ],
)
def test_limits_keep_sums_in_64_bits(largest: float, decisions: int) -> None:
    """A sum has room for the stated number of decisions at the limit."""
    assert largest * decisions < 2**63
