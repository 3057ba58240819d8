"""Decisions: checking the values that were sent, and turning them into integers."""

import json
from decimal import ROUND_HALF_EVEN, Decimal
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routecast.core.decision import UNKNOWN_BAND, DecisionRecord, Rules
from routecast.core.decode import decode
from routecast.core.decode_fields import BrokenDecision, Flaw
from routecast.core.numbers import scaled
from routecast.errors import Invalid
from routecast.protocol import MAX_ID, MAX_MODEL, MAX_NAME, DecisionIn
from tests.support.decisions import DAY, NOW, SECOND, keep

LEAST = '{"strategy":"hybrid","provider":"gemini"%s}'


def read_one(fields: str = "", *, rules: Rules | None = None) -> DecisionRecord:
    """Read one decision from a body, with its two required fields."""
    (item,) = decode((LEAST % fields).encode(), lines=False)
    assert not isinstance(item, BrokenDecision), item.error
    return (rules or Rules()).normalise(item, NOW)


def refusal(fields: str = "") -> str:
    """Return why a decision with these fields is rejected."""
    return refusal_of((LEAST % fields).encode())


def refusal_of(body: bytes) -> str:
    (item,) = decode(body, lines=False)
    if isinstance(item, BrokenDecision):
        return item.error
    with pytest.raises(Invalid) as refused:
        Rules().normalise(item, NOW)
    return str(refused.value)


# -- every field --------------------------------------------------------------------------------


def test_the_smallest_decision_has_unknown_fields() -> None:
    """Two fields are enough; the others have their default, or are None and never 0."""
    one = read_one()
    assert one.id
    assert one._replace(id="") == DecisionRecord(
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
    """Numbers are millionths, nano-dollars and microseconds; texts are unchanged."""
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
    assert not isinstance(item, BrokenDecision)
    assert Rules().normalise(item, NOW) == DecisionRecord(
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
    """Every optional field may be null."""
    assert read_one(f',"{name}":null')._replace(id="") == read_one()._replace(id="")


@pytest.mark.parametrize("name", ["model", "reason"])
def test_empty_text_is_as_good_as_absent(name: str) -> None:
    """An empty optional text counts as absent."""
    assert read_one(f',"{name}":""')._replace(id="") == read_one()._replace(id="")


def test_unknown_fields_are_ignored() -> None:
    """They may have any name and content: lone surrogates, deep nesting, endless digits."""
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
    """A word counts in its band and in no average; all digits of a number choose its band."""
    one = read_one(f',"confidence":{confidence}')
    assert (one.band, one.confidence) == (band, kept)


def test_bands_are_configurable() -> None:
    """Settings have their lower limits."""
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
    """Both count to the microsecond, up to a day ahead."""
    assert read_one(f',"timestamp":{stamp}').decided == decided


def test_priced_only_where_cost_is_absent_and_model_and_tokens_are_known() -> None:
    """A sent cost stays, also 0; without model or tokens the cost is unknown."""
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
    assert read_one(',"model":"flash","cached_tokens":4.0' + tokens, rules=rules).cost == 42
    assert asked == [("gemini", "flash", 10, 0, 5, NOW), ("gemini", "flash", 10, 4, 5, NOW)]


def test_ids_that_the_server_makes_never_meet() -> None:
    """Each decision without an id gets its own, also across restarts."""
    ids = [
        d.id for rules in (Rules(), Rules()) for d in keep([json.loads(LEAST % "")] * 3, NOW, rules)
    ]
    assert len(set(ids)) == 6


# -- bad fields ---------------------------------------------------------------------------------

NOT_CONFIDENCE = 'must be a number from 0 to 1, or "high", "medium" or "low"'
NOT_TIME = "timestamp: must be an RFC 3339 time such as 2026-01-31T12:34:56Z, or Unix seconds"
AHEAD = "is more than 24 hours ahead of the server's clock"
NOT_STATUS = 'must be "success" or "error"; it counts as "success"'
NOT_CONTAIN = "must not contain"


def warned(
    fields: str, rules: Rules | None = None
) -> tuple[DecisionRecord, list[tuple[str, str, str]]]:
    """Read one decision; return it and its warnings."""
    (item,) = decode((LEAST % fields).encode(), lines=False)
    assert not isinstance(item, BrokenDecision), item.error
    flaws: list[Flaw] = []
    one = (rules or Rules()).normalise(item, NOW, flaws)
    return one, [(flaw.field, flaw.code.value, flaw.message) for flaw in flaws]


@pytest.mark.parametrize(
    ("field", "value", "code", "message"),
    [
        ("cost", "-0.01", "negative", "must be 0 or more"),
        ("cost", "-1", "negative", "must be 0 or more"),
        ("cost", "-1e-12", "negative", "must be 0 or more"),
        ("cost", "9000.01", "too_large", "must be at most 9,000"),
        ("cost", "1e400", "too_large", "must be at most 9,000"),
        ("cost", '"1"', "wrong_type", "must be a number, not a string"),
        ("cost", "NaN", "not_finite", "must be a number, not NaN or an infinity"),
        ("cost", "Infinity", "not_finite", "must be a number, not NaN or an infinity"),
        ("latency_ms", "-Infinity", "not_finite", "must be a number, not NaN or an infinity"),
        ("confidence", "1.5", "too_large", NOT_CONFIDENCE),
        ("confidence", "1.0000000002", "too_large", NOT_CONFIDENCE),
        ("confidence", "1.00000000000000000001", "too_large", NOT_CONFIDENCE),
        ("confidence", "-0.1", "negative", NOT_CONFIDENCE),
        ("confidence", "true", "wrong_type", NOT_CONFIDENCE),
        ("confidence", "NaN", "not_finite", NOT_CONFIDENCE),
        ("confidence", '"sure"', "unknown_value", NOT_CONFIDENCE),
        ("confidence", '"\\ud800"', "unknown_value", NOT_CONFIDENCE),
        ("latency_ms", "-1", "negative", "must be 0 or more"),
        ("latency_ms", "604800000.1", "too_large", "must be at most 604,800,000"),
        ("latency_ms", "[1]", "wrong_type", "must be a number, not an array"),
        ("input_tokens", "1.5", "not_whole", "must be a whole number"),
        ("input_tokens", "-1", "negative", "must be 0 or more"),
        ("input_tokens", "true", "wrong_type", "must be a whole number, not a boolean"),
        ("output_tokens", "1000000001", "too_large", "must be at most 1,000,000,000"),
        ("output_tokens", "9" * 30, "too_large", "must be at most 1,000,000,000"),
        ("output_tokens", "9" * 5000, "too_large", "must be at most 1,000,000,000"),
        ("cached_tokens", "0.5", "not_whole", "must be a whole number"),
        ("status", '"failed"', "unknown_value", NOT_STATUS),
        ("status", "500", "wrong_type", NOT_STATUS),
        ("status", '"\\udfff"', "unknown_value", NOT_STATUS),
        ("fallback", "1", "wrong_type", "must be true or false, not a number"),
        ("model", "{}", "wrong_type", "must be a string, not an object"),
        ("model", "NaN", "not_finite", "must be a string, not NaN or an infinity"),
        ("model", '"\\udc00\\ud800"', "bad_character", f"{NOT_CONTAIN} a lone surrogate (U+DC00)"),
        ("id", '""', "empty", "must not be empty"),
        ("id", "7.5", "wrong_type", "must be a string, not a number"),
        ("id", "false", "wrong_type", "must be a string, not a boolean"),
        ("project", '""', "empty", "must not be empty"),
        ("project", '"\\ud800x"', "bad_character", f"{NOT_CONTAIN} a lone surrogate (U+D800)"),
        ("reason", '"\\ud800"', "bad_character", f"{NOT_CONTAIN} NUL or a lone surrogate"),
        ("reason", "5", "wrong_type", "must be a string, not a number"),
    ],
)
def test_bad_optional_field_costs_only_itself(
    field: str, value: str, code: str, message: str
) -> None:
    """The decision counts as if the field had not been sent, and the warning says why."""
    one, warnings = warned(f',"{field}":{value}')
    assert one._replace(id="") == read_one()._replace(id="")
    assert warnings == [(field, code, message)]


@pytest.mark.parametrize("field", ["strategy", "provider", "project", "model"])
def test_long_names_are_cut_and_two_stay_two(field: str) -> None:
    """A long name becomes its beginning and a hash of all of it, each time the same."""
    longest = MAX_MODEL if field == "model" else MAX_NAME
    names: list[str] = []
    told: set[tuple[str, str]] = set()
    for end in ("a", "b", "b"):
        body = {"strategy": "s", "provider": "p", field: "é" * longest + end}
        (item,) = decode(json.dumps(body).encode(), lines=False)
        assert not isinstance(item, BrokenDecision)
        flaws: list[Flaw] = []
        names.append(getattr(Rules().normalise(item, NOW, flaws), field))
        told.update((flaw.field, flaw.code) for flaw in flaws)
    first, second, third = names
    assert first != second == third
    assert len(first) == longest
    assert first.startswith("é" * (longest - 13) + "~")
    assert told == {(field, "truncated")}


@pytest.mark.parametrize(
    "identity", ["i" * 129, "a" * 10_000, "line\nbreak", "\u202e", "\u200b", "\ud800"]
)
def test_an_id_that_cannot_be_kept_is_kept_as_its_hash(identity: str) -> None:
    """The hash is the same each time, and another id has another hash."""
    one, warnings = warned(f',"id":{json.dumps(identity)}')
    assert one.id == sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    assert [warning[:2] for warning in warnings] == [("id", "hashed")]
    assert warned(f',"id":{json.dumps(identity + "x")}')[0].id != one.id


@pytest.mark.parametrize(("value", "kept"), [("0", "0"), ("4711", "4711"), ("-5.0", "-5")])
def test_a_whole_number_as_id_is_kept_as_its_digits(value: str, kept: str) -> None:
    """Such a decision counts once when it is sent again."""
    one, warnings = warned(f',"id":{value}')
    assert one.id == kept
    assert [warning[:2] for warning in warnings] == [("id", "converted")]


def test_a_long_reason_is_cut() -> None:
    """Its beginning is stored."""
    one, warnings = warned(f',"reason":"{"r" * 501}"')
    assert one.reason == "r" * 500
    assert [warning[:2] for warning in warnings] == [("reason", "truncated")]


def test_several_bad_fields_are_reported_each() -> None:
    """The good fields of the decision are stored."""
    one, warnings = warned(',"cost":-1,"latency_ms":-2,"confidence":0.9,"id":"d1","model":5')
    assert (one.id, one.cost, one.latency, one.confidence) == ("d1", None, None, 900_000)
    assert sorted(field for field, _, _ in warnings) == ["cost", "latency_ms", "model"]


@pytest.mark.parametrize("bad", ['"cost":-1', '"cached_tokens":11', '"cached_tokens":"x"'])
def test_no_price_where_it_would_be_a_guess(bad: str) -> None:
    """A decision with an unusable cost or unusable tokens has no cost."""
    tokens = ',"model":"flash","input_tokens":10,"output_tokens":5,'
    rules = Rules(price=lambda *_: 42)
    one, warnings = warned(tokens + bad, rules)
    assert (one.cost, one.input_tokens) == (None, 10)
    assert len(warnings) == 1
    assert warned(tokens + '"latency_ms":-1', rules)[0].cost == 42


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (',"timestamp":"yesterday"', NOT_TIME),
        (',"timestamp":"2026-01-31"', NOT_TIME),
        (',"timestamp":true', NOT_TIME),
        (',"timestamp":NaN', NOT_TIME),
        (',"timestamp":"\\ud800"', NOT_TIME),
        (
            ',"timestamp":"2026-01-31T12:34:56"',
            "timestamp: must say its offset, such as Z or +00:00",
        ),
        (',"timestamp":"1969-12-31T23:59:59.999999Z"', "timestamp: must not be before 1970"),
        (',"timestamp":-0.000001', "timestamp: must not be before 1970"),
        (',"strategy":"a\\u0000b"', f"strategy: {NOT_CONTAIN} a control character (U+0000)"),
        (',"strategy":7', "strategy: must be a string, not a number"),
        (',"provider":NaN', "provider: must be a string, not NaN or an infinity"),
        (',"provider":"\\ud800"', f"provider: {NOT_CONTAIN} a lone surrogate (U+D800)"),
        (',"cost":-1,"provider":""', "provider: must not be empty"),
    ],
)
def test_a_missing_field_is_refused_with_its_rule(fields: str, error: str) -> None:
    """A decision without a usable strategy, provider or time is rejected with the rule."""
    assert refusal(fields) == error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"provider":"p"}', "strategy: is required"),
        (b'{"strategy":"s"}', "provider: is required"),
        (b'{"strategy":null,"provider":"p"}', "strategy: must be a string, not null"),
        (b'{"strategy":"","provider":"p"}', "strategy: must not be empty"),
        (b"[[]]", "expected an object, got an array"),
        (b"[null]", "expected an object, got null"),
        (b"[1.5]", "expected an object, got a number"),
        (b"[false]", "expected an object, got a boolean"),
        (b'["x"]', "expected an object, got a string"),
    ],
)
def test_decision_without_what_it_needs_is_refused(body: bytes, error: str) -> None:
    """It must be an object with the two required fields."""
    assert refusal_of(body) == error


def test_surrogate_pair_is_a_character() -> None:
    """Only lone surrogates are forbidden."""
    assert read_one(',"reason":"\\ud83d\\ude00"').reason == "😀"


def test_good_and_bad_keep_their_places_and_ids() -> None:
    """A rejection has the index in the batch, and the id if there is one."""
    bad = LEAST % ',"timestamp":true,"id":"mine"'
    worse = LEAST % ',"timestamp":true,"id":"\\ud800"'
    nameless = LEAST % f',"timestamp":true,"id":"{"i" * 129}"'
    body = f"[{LEAST % ''},{bad},{LEAST % ''},{worse},{nameless},7]"
    items = decode(body.encode(), lines=False)
    assert [isinstance(item, BrokenDecision) for item in items] == [
        False,
        True,
        False,
        True,
        True,
        True,
    ]
    assert [item.id for item in items if isinstance(item, BrokenDecision)] == [
        "mine",
        None,
        None,
        None,
    ]


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
    fields=st.dictionaries(
        st.sampled_from(DecisionIn.__struct_fields__), json_values, min_size=1, max_size=4
    )
)
def test_any_values_cost_only_their_fields(fields: dict[str, Any]) -> None:
    """A field with any value is stored or named, and the other fields are not affected."""
    body = {"strategy": "s", "provider": "p", **fields}
    (item,) = decode(json.dumps(body).encode(), lines=False)
    flaws: list[Flaw] = []
    try:
        error = item.error if isinstance(item, BrokenDecision) else ""
        one = None if isinstance(item, BrokenDecision) else Rules().normalise(item, NOW, flaws)
    except Invalid as invalid:
        one, error = None, str(invalid)
    if one is None:
        assert error.partition(": ")[0] in fields.keys() & {"strategy", "provider", "timestamp"}
        return
    assert "\0" not in "".join(str(part) for part in one)
    assert "".join(str(part) for part in one).encode()
    told = {flaw.field for flaw in flaws}
    assert told <= fields.keys()
    kept = ("wrong_type", "not_finite", "negative", "too_large", "not_whole", "unknown_value")
    gone = {flaw.field for flaw in flaws if flaw.code in (*kept, "empty", "bad_character")}
    rest = {name: value for name, value in body.items() if name not in gone}
    (same,) = decode(json.dumps(rest).encode(), lines=False)
    assert not isinstance(same, BrokenDecision)
    other = Rules().normalise(same, NOW)
    assert one._replace(id="") == other._replace(id="")
    for decision in (one, other):
        assert len(decision.strategy) <= MAX_NAME >= len(decision.project)
        assert len(decision.model) <= MAX_MODEL
        assert 0 < len(decision.id) <= MAX_ID


# -- rounding -----------------------------------------------------------------------------------


def exactly(value: float, scale: int) -> int:
    return int((Decimal(repr(value)) * scale).to_integral_value(ROUND_HALF_EVEN))


@given(st.floats(0, 1e15), st.sampled_from([1000, 10**6, 10**9]))
@example(0.0000005, 10**6)
@example(0.0000015, 10**6)
@example(35184.3720885, 10**9)
@example(9000.0, 10**9)
def test_scaled_is_exact_on_any_number(value: float, scale: int) -> None:
    """The result equals the decimal digits, rounded half to even."""
    assert scaled(value, scale) == exactly(value, scale)


@given(st.integers(0, 10**13), st.sampled_from([1000, 10**6, 10**9]))
def test_scaled_breaks_ties_to_even(halves: int, scale: int) -> None:
    """This holds for numbers in the middle, and for their neighbours."""
    middle = (halves + 0.5) / scale
    for value in (middle, middle * (1 + 2**-52), middle * (1 - 2**-52)):
        assert scaled(value, scale) == exactly(value, scale)


@pytest.mark.parametrize(
    ("stamp", "hint"),
    [
        ('"2027-01-31T12:34:56Z"', ""),
        (f"{NOW // 1000}", " (Unix time is read in seconds)"),
        ("1e400", " (Unix time is read in seconds)"),
    ],
)
def test_a_time_far_ahead_is_that_of_receipt(stamp: str, hint: str) -> None:
    """The decision is not lost if milliseconds are sent as seconds, or a clock is wrong."""
    one, flaws = warned(f',"timestamp":{stamp}')
    assert one.decided == NOW
    assert flaws == [("timestamp", "too_large", f"{AHEAD}{hint}: the time of receipt is kept")]
