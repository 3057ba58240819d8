"""Decisions: reading bodies, telling good from bad, and turning the good into integers."""

import json
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routecast.core.decision import UNKNOWN_BAND, Decision, Rules
from routecast.core.decode import decode
from routecast.core.exact import Broken
from routecast.core.numbers import scaled
from routecast.errors import Invalid
from routecast.protocol import DecisionIn
from tests.support.decisions import DAY, NOW, SECOND, keep

LEAST = '{"strategy":"hybrid","provider":"gemini"%s}'


def read_one(fields: str = "", *, rules: Rules | None = None) -> Decision:
    """Take one decision in, as it stands in a body beside its two required fields."""
    (item,) = decode((LEAST % fields).encode(), lines=False)
    assert not isinstance(item, Broken), item.error
    return (rules or Rules()).normalise(item, NOW)


def refusal(fields: str = "") -> str:
    """Return why a decision with these fields is refused."""
    return refusal_of((LEAST % fields).encode())


def refusal_of(body: bytes) -> str:
    (item,) = decode(body, lines=False)
    if isinstance(item, Broken):
        return item.error
    with pytest.raises(Invalid) as refused:
        Rules().normalise(item, NOW)
    return str(refused.value)


# -- every field --------------------------------------------------------------------------------


def test_least_decision_leaves_unknown_what_was_not_sent() -> None:
    """Two fields are enough; the rest has its default, or is None: never zero."""
    one = read_one()
    assert one.id
    assert one._replace(id="") == Decision(
        id="",
        project="default",
        strategy="hybrid",
        provider="gemini",
        model="",
        band=UNKNOWN_BAND,
        status="success",
        decided=NOW,
        confidence=None,
        cost=None,
        latency=None,
        input_tokens=None,
        output_tokens=None,
        fallback=False,
        reason=None,
        owner="default",
    )


def test_every_field_is_kept_in_its_integer_unit() -> None:
    """Millionths, nano-dollars, microseconds, and texts as they came."""
    body = {
        "strategy": "s" * 64,
        "provider": "Gemini ☂",
        "model": "m" * 128,
        "id": "i" * 128,
        "timestamp": "2026-01-31T12:34:56.789123+00:00",
        "confidence": 0.871234,
        "cost": 0.002345678,
        "latency_ms": 123.456,
        "input_tokens": 1_000_000_000,
        "output_tokens": 0,
        "status": "error",
        "fallback": True,
        "reason": "r" * 500,
        "project": "search",
    }
    (item,) = decode(json.dumps(body).encode(), lines=False)
    assert not isinstance(item, Broken)
    assert Rules().normalise(item, NOW) == Decision(
        id="i" * 128,
        project="search",
        strategy="s" * 64,
        provider="Gemini ☂",
        model="m" * 128,
        band="high",
        status="error",
        decided=1_769_862_896_789_123,
        confidence=871_234,
        cost=2_345_678,
        latency=123_456,
        input_tokens=1_000_000_000,
        output_tokens=0,
        fallback=True,
        reason="r" * 500,
        owner="search",
        cost_sent=True,
    )


@pytest.mark.parametrize("name", DecisionIn.__struct_fields__[2:])
def test_null_is_as_good_as_absent(name: str) -> None:
    """An optional field may be null."""
    assert read_one(f',"{name}":null')._replace(id="") == read_one()._replace(id="")


@pytest.mark.parametrize("name", ["model", "reason"])
def test_empty_text_is_as_good_as_absent(name: str) -> None:
    """Nothing was named, nothing was said."""
    assert read_one(f',"{name}":""')._replace(id="") == read_one()._replace(id="")


def test_unknown_fields_are_ignored() -> None:
    """Whatever they are called and hold: lone surrogates, deep nesting, endless digits."""
    odd = ',"x":"\\ud800","\\ud800":1,"nested":' + "[" * 100 + "]" * 100 + ',"n":' + "9" * 5000
    assert read_one(odd)._replace(id="") == read_one()._replace(id="")


@pytest.mark.parametrize(
    ("confidence", "band", "kept"),
    [
        ("1", "high", 1_000_000),
        ("0.8", "high", 800_000),
        ("0.7999999", "medium", 800_000),
        ("0.5", "medium", 500_000),
        ("0.49", "low", 490_000),
        ("0", "low", 0),
        ('"high"', "high", None),
        ('"medium"', "medium", None),
        ('"low"', "low", None),
        ("null", "none", None),
    ],
)
def test_confidence_has_a_band_and_only_numbers_a_value(
    confidence: str, band: str, kept: int | None
) -> None:
    """A word counts in the distribution and in no average; a number's band goes by its digits."""
    one = read_one(f',"confidence":{confidence}')
    assert (one.band, one.confidence) == (band, kept)


def test_bands_are_configurable() -> None:
    """Their lower ends are settings."""
    rules = Rules(high=0.9, medium=0.3)
    bands = [read_one(f',"confidence":{c}', rules=rules).band for c in (0.9, 0.89, 0.3, 0.29)]
    assert bands == ["high", "medium", "medium", "low"]


@pytest.mark.parametrize(
    ("stamp", "decided"),
    [
        ('"2026-01-31T12:34:56.789123Z"', 1_769_862_896_789_123),
        ('"2026-01-31T14:34:56+02:00"', 1_769_862_896_000_000),
        ("1769862896", 1_769_862_896_000_000),
        ("1769862896.789123", 1_769_862_896_789_123),
        ("0", 0),
        (f"{(NOW + DAY) / SECOND}", NOW + DAY),
    ],
)
def test_timestamps_are_rfc3339_or_unix_seconds(stamp: str, decided: int) -> None:
    """Both to the microsecond, up to a day ahead."""
    assert read_one(f',"timestamp":{stamp}').decided == decided


def test_priced_only_where_cost_is_absent_and_model_and_tokens_are_known() -> None:
    """A cost that was sent stands, be it zero; with a piece missing it stays unknown."""
    asked = []

    def price(*about: Any) -> int:
        asked.append(about)
        return 42

    rules = Rules(price=price)
    tokens = ',"input_tokens":10,"output_tokens":5'
    assert read_one(',"model":"flash"' + tokens, rules=rules).cost == 42
    assert read_one(',"model":"flash","cost":0' + tokens, rules=rules).cost == 0
    assert read_one(tokens, rules=rules).cost is None
    assert read_one(',"model":"flash","input_tokens":10', rules=rules).cost is None
    assert asked == [("gemini", "flash", 10, 5, NOW)]


def test_ids_that_the_server_makes_never_meet() -> None:
    """Each decision without an id gets its own, also across restarts."""
    ids = [
        d.id for rules in (Rules(), Rules()) for d in keep([json.loads(LEAST % "")] * 3, NOW, rules)
    ]
    assert len(set(ids)) == 6


# -- bad fields ---------------------------------------------------------------------------------

NOT_CONFIDENCE = 'confidence: must be a number from 0 to 1, or "high", "medium" or "low"'
NOT_TIME = "timestamp: must be an RFC 3339 time such as 2026-01-31T12:34:56Z, or Unix seconds"
TOO_LATE = "timestamp: must be at most 24 hours in the future"
NOT_TEXT = "must not hold NUL or a lone surrogate"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (',"cost":-0.01', "cost: must be 0 or more"),
        (',"cost":9000.01', "cost: must be at most 9,000"),
        (',"cost":1e400', "cost: must be at most 9,000"),
        (',"cost":"1"', "cost: must be a number, not a string"),
        (',"confidence":1.5', NOT_CONFIDENCE),
        (',"confidence":-0.1', NOT_CONFIDENCE),
        (',"confidence":true', NOT_CONFIDENCE),
        (',"confidence":"sure"', NOT_CONFIDENCE),
        (',"confidence":"\\ud800"', NOT_CONFIDENCE),
        (',"latency_ms":-1', "latency_ms: must be 0 or more"),
        (',"latency_ms":604800000.1', "latency_ms: must be at most 604,800,000"),
        (',"latency_ms":[1]', "latency_ms: must be a number, not an array"),
        (',"input_tokens":1.5', "input_tokens: must be a whole number"),
        (',"input_tokens":-1', "input_tokens: must be 0 or more"),
        (',"input_tokens":true', "input_tokens: must be a whole number, not a boolean"),
        (',"output_tokens":1000000001', "output_tokens: must be at most 1,000,000,000"),
        (f',"output_tokens":{"9" * 30}', "output_tokens: must be at most 1,000,000,000"),
        (f',"output_tokens":{"9" * 5000}', "output_tokens: must be at most 1,000,000,000"),
        (',"status":"failed"', 'status: must be "success" or "error"'),
        (',"status":"\\udfff"', 'status: must be "success" or "error"'),
        (',"fallback":1', "fallback: must be true or false, not a number"),
        (',"model":{}', "model: must be a string, not an object"),
        (f',"model":"{"m" * 129}"', "model: must be at most 128 characters"),
        (f',"id":"{"i" * 129}"', "id: must be at most 128 characters"),
        (',"id":""', "id: must not be empty"),
        (',"id":7', "id: must be a string, not a number"),
        (',"project":""', "project: must not be empty"),
        (f',"project":"{"p" * 65}"', "project: must be at most 64 characters"),
        (f',"reason":"{"r" * 501}"', "reason: must be at most 500 characters"),
        (',"timestamp":"yesterday"', NOT_TIME),
        (',"timestamp":"2026-01-31"', NOT_TIME),
        (',"timestamp":true', NOT_TIME),
        (',"timestamp":"\\ud800"', NOT_TIME),
        (
            ',"timestamp":"2026-01-31T12:34:56"',
            "timestamp: must say its offset, such as Z or +00:00",
        ),
        (',"timestamp":"1969-12-31T23:59:59.999999Z"', "timestamp: must not be before 1970"),
        (',"timestamp":-0.000001', "timestamp: must not be before 1970"),
        (',"timestamp":"2027-01-31T12:34:56Z"', TOO_LATE),
        (f',"timestamp":{NOW // 1000}', TOO_LATE + " (Unix time is read in seconds)"),
        (',"timestamp":1e400', TOO_LATE + " (Unix time is read in seconds)"),
        (',"strategy":"a\\u0000b"', "strategy: must not contain a control character (U+0000)"),
        (',"provider":"\\ud800"', "provider: must not contain a lone surrogate (U+D800)"),
        (',"model":"\\udc00\\ud800"', "model: must not contain a lone surrogate (U+DC00)"),
        (',"id":"\\u0000"', "id: must not contain a control character (U+0000)"),
        (',"project":"\\ud800x"', "project: must not contain a lone surrogate (U+D800)"),
        (',"reason":"\\ud800"', f"reason: {NOT_TEXT}"),
    ],
)
def test_bad_field_is_named_with_its_rule(fields: str, error: str) -> None:
    """The error is the field, then what it must be."""
    assert refusal(fields) == error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"provider":"p"}', "strategy: is required"),
        (b'{"strategy":"s"}', "provider: is required"),
        (b'{"strategy":null,"provider":"p"}', "strategy: must be a string, not null"),
        (b'{"strategy":"","provider":"p"}', "strategy: must not be empty"),
        (
            b'{"strategy":"' + b"s" * 65 + b'","provider":"p"}',
            "strategy: must be at most 64 characters",
        ),
        (b"[[]]", "expected an object, got an array"),
        (b"[null]", "expected an object, got null"),
        (b"[1.5]", "expected an object, got a number"),
        (b"[false]", "expected an object, got a boolean"),
        (b'["x"]', "expected an object, got a string"),
    ],
)
def test_decision_without_what_it_needs_is_refused(body: bytes, error: str) -> None:
    """The required two, and that it is an object at all."""
    assert refusal_of(body) == error


def test_surrogate_pair_is_a_character() -> None:
    """Only lone surrogates are refused."""
    assert read_one(',"reason":"\\ud83d\\ude00"').reason == "😀"


def test_good_and_bad_keep_their_places_and_ids() -> None:
    """Partial acceptance: the index is the place sent; the id is told where it is one."""
    bad = LEAST % ',"cost":-1,"id":"mine"'
    worse = LEAST % ',"cost":-1,"id":"\\ud800"'
    nameless = LEAST % f',"cost":-1,"id":"{"i" * 129}"'
    body = f"[{LEAST % ''},{bad},{LEAST % ''},{worse},{nameless},7]"
    items = decode(body.encode(), lines=False)
    assert [isinstance(item, Broken) for item in items] == [False, True, False, True, True, True]
    assert [item.id for item in items if isinstance(item, Broken)] == ["mine", None, None, None]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    field=st.sampled_from(
        ["strategy", "provider", "model", "id", "timestamp", "confidence", "cost"]
    )
    | st.sampled_from(["latency_ms", "input_tokens", "status", "fallback", "reason", "project"]),
    value=json_values,
)
def test_any_value_in_any_field_is_kept_or_named(field: str, value: Any) -> None:
    """A refusal begins with the field's name; what is kept can be written as UTF-8."""
    body = json.dumps({"strategy": "s", "provider": "p", field: value}).encode()
    (item,) = decode(body, lines=False)
    try:
        error = item.error if isinstance(item, Broken) else None
        one = None if isinstance(item, Broken) else Rules().normalise(item, NOW)
    except Invalid as invalid:
        one, error = None, str(invalid)
    if one is None:
        assert error is not None
        assert error.startswith(f"{field}: ")
    else:
        assert "\0" not in "".join(str(part) for part in one)
        assert "".join(str(part) for part in one).encode()


# -- rounding -----------------------------------------------------------------------------------


def exactly(value: float, scale: int) -> int:
    return int((Decimal(repr(value)) * scale).to_integral_value(ROUND_HALF_EVEN))


@given(st.floats(0, 1e15), st.sampled_from([1000, 10**6, 10**9]))
@example(0.0000005, 10**6)
@example(0.0000015, 10**6)
@example(35184.3720885, 10**9)
@example(9000.0, 10**9)
def test_scaled_is_exact_on_any_number(value: float, scale: int) -> None:
    """It equals the decimal digits, rounded half to even."""
    assert scaled(value, scale) == exactly(value, scale)


@given(st.integers(0, 10**13), st.sampled_from([1000, 10**6, 10**9]))
def test_scaled_breaks_ties_to_even(halves: int, scale: int) -> None:
    """Also at numbers that lie in the middle, and right beside it."""
    middle = (halves + 0.5) / scale
    for value in (middle, middle * (1 + 2**-52), middle * (1 - 2**-52)):
        assert scaled(value, scale) == exactly(value, scale)
