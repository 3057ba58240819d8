"""Decoding: bytes become decisions as sent, or reasons for rejection."""

import json
import time
from contextlib import nullcontext
from fractions import Fraction
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routecast.core.decision import DecisionRecord, Rules
from routecast.core.decode import DECISIONS_PER_SLICE, INVALID_LINES, decode, pieces
from routecast.core.decode_fields import BrokenDecision, ExactDecision, Flaw, needs_care
from routecast.errors import BadBody, TooLarge
from routecast.protocol import WarningCode
from tests.support.decisions import NOW

LEAST = '{"strategy":"hybrid","provider":"gemini"%s}'


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "not JSON at line 1 column 1: Expecting value"),
        (b"hello", "not JSON at line 1 column 1: Expecting value"),
        (b"null", "expected an object or an array, got null"),
        (b'"x"', "expected an object or an array, got a string"),
        (b"7", "expected an object or an array, got a number"),
        (
            b'[{"strategy":"s",\n "provider"',
            "not JSON at line 2 column 12: Expecting ':' delimiter",
        ),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b'[{"strategy":"\xc3"}]', "not UTF-8 at byte 14"),
        (b"NaN", "expected an object or an array, got a number"),
        (
            (LEAST % ',"cost":NaN,').encode(),
            "not JSON at line 1 column 53: Expecting property name enclosed in double quotes",
        ),
        ((LEAST % ',"cost":nan').encode(), "not JSON at line 1 column 49: Expecting value"),
        (
            (LEAST % ',"cost":NaN1').encode(),
            "not JSON at line 1 column 52: Expecting ',' delimiter",
        ),
        (
            "[{},{}]".format(LEAST % ',"cost":NaN', LEAST % ',"cost":+NaN').encode(),
            "not JSON at line 1 column 103: Expecting value",
        ),
        (b"[" * 100_000, "not usable JSON: nested too deeply"),
        (
            (LEAST % (',"x":' + "[" * 100_000 + "]" * 100_000)).encode(),
            "not usable JSON: nested too deeply",
        ),
    ],
)
def test_body_that_is_not_json_is_refused_whole(body: bytes, error: str) -> None:
    """No decision of it is read; the error says what is wrong and where."""
    with pytest.raises(BadBody) as refused:
        decode(body, lines=False)
    assert str(refused.value) == error


@given(cut=st.integers(0, 10**6))
def test_body_cut_anywhere_is_refused_whole(cut: int) -> None:
    """No prefix of an array is read as a shorter array."""
    body = json.dumps([json.loads(LEAST % ',"cost":0.5,"id":"ü"')] * 3, ensure_ascii=False).encode()
    with pytest.raises(BadBody):
        decode(body[: cut % len(body)], lines=False)


def test_lines_sent_as_json_get_a_hint() -> None:
    """The error suggests the content type of NDJSON."""
    with pytest.raises(BadBody, match="send Content-Type: application/x-ndjson"):
        decode(f"{LEAST % ''}\n{LEAST % ''}".encode(), lines=False)


def test_byte_order_mark_and_blank_space_are_ignored() -> None:
    """Editors and Windows add them."""
    bom = b"\xef\xbb\xbf"
    assert len(decode(bom + b" \n" + (LEAST % "").encode(), lines=False)) == 1
    lines = f"\r\n{LEAST % ''}\r\n\r\n{LEAST % ''}\r\n".encode()
    assert len(decode(lines, lines=True)) == 2
    assert len(decode(bom + lines, lines=True)) == 2


def test_empty_array_is_no_decisions() -> None:
    """An empty array is no error."""
    assert list(decode(b"[]", lines=False)) == []


def test_broken_line_does_not_spoil_the_others() -> None:
    """The error has the number of the line in the body, counting blank lines."""
    deep = "[" * 100_000
    bad = LEAST % ',"cost":nan'
    body = "\n".join([LEAST % "", "", '{"strategy":', deep, bad, LEAST % ',"cost":NaN'])
    items = decode(body.encode(), lines=True)
    assert [item.error if isinstance(item, BrokenDecision) else None for item in items] == [
        None,
        "not JSON at line 3 column 13: Expecting value",
        "not usable JSON: nested too deeply",
        "not JSON at line 5 column 49: Expecting value",
        None,
    ]


NOT_FINITE = ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize("form", ["one", "array", "lines", "large"])
@given(
    value=st.sampled_from(NOT_FINITE),
    text=st.sampled_from([*NOT_FINITE, '\\"NaN', ":NaN,", "\\ud800 NaN", "[ ]"]),
    spaces=st.sampled_from(["", " ", "\t"]),
)
def test_a_value_that_is_no_number_costs_only_its_field(
    form: str, value: str, text: str, spaces: str
) -> None:
    """NaN and infinities, which Python writes into JSON, cost only their field."""
    bad = LEAST % f',"x":"{text}","cost":{spaces}{value}{spaces},"x":[{value}],"id":"a NaN b"'
    many = [bad, LEAST % "", *([LEAST % f',"x":"{"NaN," * 30_000}"'] if form == "large" else ())]
    if form == "one":
        items = decode(bad.encode(), lines=False)
    elif form == "lines":
        items = decode("\n".join(many).encode(), lines=True)
    else:
        items = decode(f"[{','.join(many)}]".encode(), lines=False)
    for place, item in enumerate(items):
        assert not isinstance(item, BrokenDecision)
        flaws: list[Flaw] = []
        kept = Rules().normalise(item, NOW, flaws)
        assert kept.cost is None
        assert [flaw[:2] for flaw in flaws] == ([] if place else [("cost", "not_finite")])
        assert place or kept.id == "a NaN b"
    assert len(items) == (1 if form == "one" else len(many))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "no decision in the request body"),
        (b"\n \n", "no decision in the request body"),
        (b"a,b\n1,2\n", "no line is JSON; the first: not JSON at line 1 column 1: Expecting value"),
        (b"\x80\n", "not UTF-8 at byte 0"),
    ],
)
def test_lines_of_which_none_is_json_are_refused_whole(body: bytes, error: str) -> None:
    """A body without any JSON line is no NDJSON."""
    with pytest.raises(BadBody) as refused:
        decode(body, lines=True)
    assert str(refused.value) == error


@pytest.mark.parametrize("one", [LEAST % "", "{}", "7"], ids=["good", "bad", "ugly"])
@pytest.mark.parametrize("lines", [False, True], ids=["array", "lines"])
def test_batch_has_a_limit(one: str, lines: bool) -> None:
    """50,000 decisions are accepted; for more, the error says how many there were."""

    def body(count: int) -> bytes:
        return (
            "\n".join([one] * count).encode() if lines else f"[{','.join([one] * count)}]".encode()
        )

    assert len(decode(body(50_000), lines=lines)) == 50_000
    with pytest.raises(TooLarge, match=r"^50,001 decisions in one request; at most 50,000$"):
        decode(body(50_001), lines=lines)


@pytest.mark.parametrize(
    ("body", "lines"),
    [(b"[" + b"0," * 2_000_001 + b"0]", False), (b"{}\n" * 100_001, True)],
    ids=["values", "lines"],
)
def test_body_of_far_too_many_values_is_refused_unread(body: bytes, lines: bool) -> None:
    """Such a body is refused however small each value is."""
    with pytest.raises(TooLarge, match=r"^far more values than 50,000 decisions have$"):
        decode(body, lines=lines)


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode), st.booleans())
def test_no_bytes_at_all_break_the_reader(body: bytes, lines: bool) -> None:
    """Any bytes are read or refused, and raise nothing else."""
    try:
        items = decode(body, lines=lines)
    except BadBody:
        return
    assert all(isinstance(item, BrokenDecision) or item.strategy for item in items)


# -- with the digits that were sent -------------------------------------------------------------


def normal(fields: str) -> DecisionRecord:
    """Read one decision with these fields, in an array and as a line; assert that both agree."""
    found = []
    for body, lines in ((f"[{LEAST % fields}]", False), (LEAST % fields, True)):
        (item,) = decode(body.encode(), lines=lines)
        assert not isinstance(item, BrokenDecision), item.error
        found.append(Rules(ids=iter("x")).normalise(item, NOW))
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("confidence", "band"),
    [
        ("0.79999999999999999999", "medium"),
        ("0.79999999999999999", "medium"),
        ("0.80000000000000000000", "high"),
        ("0.80000000000000000001", "high"),
        ("8.0000000000000000000e-1", "high"),
        ("0.4999999999999999999999", "low"),
        ("79999999999999999999e-20", "medium"),
    ],
)
def test_all_digits_choose_the_band(confidence: str, band: str) -> None:
    """Digits that a float does not have count, too."""
    assert normal(f',"confidence":{confidence}').band == band


@given(
    st.sampled_from(["cost", "latency_ms"]),
    st.integers(0, 9000),
    st.text("0123456789", min_size=1, max_size=30),
)
def test_amounts_are_exact(name: str, whole: int, fraction: str) -> None:
    """Amounts are rounded half to even from all digits."""
    text = f"{whole}.{fraction}" if whole < 9000 else "9000"
    kept, scale = ("cost", 10**9) if name == "cost" else ("latency", 1000)
    assert getattr(normal(f',"{name}":{text}'), kept) == round(Fraction(text) * scale)


@pytest.mark.parametrize(
    ("cost", "nanos"),
    [
        ("0.1234567885", 123_456_788),  # half to even
        ("0.12345678850000000000", 123_456_788),
        ("0.12345678850000000001", 123_456_789),
        ("0.12345678849999999999", 123_456_788),
        ("0.1234567895", 123_456_790),
        ("0.12345678949999999999", 123_456_789),
        ("8999.12345678950000001", 8_999_123_456_790),
        ("0.12345678912345678", 123_456_789),
    ],
)
def test_all_digits_decide_a_tie(cost: str, nanos: int) -> None:
    """A float does not show on which side of the tie such a number is."""
    assert normal(f',"cost":{cost}').cost == nanos


def test_all_digits_count_for_limits() -> None:
    """A number is over its limit however little it exceeds it."""
    for name, most in (("cost", 9_000), ("latency_ms", 604_800_000)):
        text = LEAST % f',"{name}":{most}.00000000000000000001'
        for body, lines in ((f"[{text}]", False), (text, True)):
            (item,) = decode(body.encode(), lines=lines)
            assert isinstance(item, ExactDecision)
            message = f"must be at most {most:,}"
            assert item.flaws == (Flaw(name, WarningCode.TOO_LARGE, message),)


@given(st.uuids(), st.integers(0, 10**20))
def test_ids_that_look_like_numbers_cost_nothing(one: UUID, number: int) -> None:
    """msgspec reads the numbers beside any id of digits."""
    for identity in (one, one.hex, number, f"1e-{number}"):
        text = LEAST % f',"id":"{identity}","cost": 0.001'
        assert not needs_care(text.encode())


@pytest.mark.parametrize(
    ("stamp", "decided"),
    [
        ('"2016-12-31T23:59:60Z"', 1_483_228_799_999_999),
        ('"2017-01-01T00:59:60.5+01:00"', 1_483_228_799_999_999),
        ('"2026-01-31T12:34:56.9999999Z"', 1_769_862_896_999_999),
        ('"2026-01-31t12:34:56.789123999999z"', NOW),
        ('"2026-01-31 12:34:56.7891239Z"', NOW),
        ('"2026-01-31T12:34:56.\\u0039999999Z"', 1_769_862_896_999_999),
        ("1769862896.9999999", 1_769_862_896_999_999),
        ("1769862896.7891239999999", NOW),
        ("1.7698628967891239e9", NOW),
    ],
)
def test_times_stay_in_their_microsecond(stamp: str, decided: int) -> None:
    """They also stay in their minute."""
    assert normal(f',"timestamp":{stamp}').decided == decided


@given(st.integers(0, 10**9), st.sampled_from(["{}.0", "{}.000", "{}e0", "{}.0e0", "{}"]))
@example(1234, "{}0e-1")  # of 0 that would not be JSON
def test_tokens_may_be_written_as_floats(count: int, form: str) -> None:
    """Data frames with gaps and some languages write them as floats."""
    assert normal(f',"input_tokens":{form.format(count)}').input_tokens == count


@pytest.mark.parametrize("tokens", ["374.5", "1e-1", "374.00000000000000000001"])
def test_half_a_token_is_unknown(tokens: str) -> None:
    """Any fraction makes the number unusable."""
    (item,) = decode((LEAST % f',"input_tokens":{tokens}').encode(), lines=False)
    assert not isinstance(item, BrokenDecision)
    flaws: list[Flaw] = []
    assert Rules().normalise(item, NOW, flaws).input_tokens is None
    assert flaws == [Flaw("input_tokens", WarningCode.NOT_WHOLE, "must be a whole number")]


# -- at no other's cost -------------------------------------------------------------------------

DEEP = ',"z":' + "[" * 2000 + "]" * 2000
BAD = {
    "deep": (LEAST % DEEP, "not usable JSON: nested too deeply"),
    "type": ('{"strategy":1,"provider":"p"}', "strategy: must be a string, not a number"),
    "absent": ('{"strategy":"s","x":NaN}', "provider: is required"),
    "surrogate": (
        '{"strategy":"\\ud800","provider":[]}',
        "provider: must be a string, not an array",
    ),
    "scalar": ("7", "expected an object, got a number"),
}
# Good ones that are read in different ways; commas and brackets where none is meant.
ODD = [
    LEAST % "",
    LEAST % ',"x":"},{","y":[{},{"a":[1,2]}]',
    LEAST % ',"x":"\\ud800","y":"]},{"',
    LEAST % ',"cost":0.12345678901234567890',
    LEAST % ',"cost":"1","latency_ms":NaN,"x":"NaN"',
    LEAST % ',"cost":1e999,"status":"\\ud800"',
    LEAST % ',"timestamp":"2016-12-31T23:59:60Z"',
    LEAST % f',"x":"{"},{" * 25_000}"',
    LEAST % f',"x":[{"{}," * 25_000}1]',
]


ALL = [*ODD, *(body for body, _ in BAD.values())]


@given(st.lists(st.sampled_from(range(len(ALL))), max_size=12))
@pytest.mark.parametrize("form", ["array", "spaced", "lines"])
def test_a_bad_decision_costs_no_other(form: str, places: list[int]) -> None:
    """Each decision keeps its index, beside any other, and however the body is split."""
    sent, errors = [ALL[place] for place in places], dict(BAD.values())
    body = (
        "\n".join(sent)
        if form == "lines"
        else f"[{(' , ' if form == 'spaced' else ',').join(sent)}]"
    )
    known = [one for one in sent if one != BAD["deep"][0]]
    try:
        items = decode(body.encode(), lines=form == "lines")
    except BadBody:
        assert form == "lines"
        assert not known
        return
    found = [item.error if isinstance(item, BrokenDecision) else None for item in items]
    assert found == [errors.get(one) for one in sent]


@pytest.mark.parametrize(
    "body",
    [
        f"[{LEAST % ''},,{LEAST % ''}]",
        f"[{LEAST % ''},]",
        f"[{LEAST % ''}] ]",
        f"[{LEAST % ''}]]",
        f"[{LEAST % ''}",
        f"[1,{' ' * 70_000},2]",
        f"[{LEAST % DEEP},]",
        f"[{LEAST % DEEP}",
        f"[{LEAST % DEEP}}}]",
        f"[{LEAST % DEEP},{{]",
        f"[{','.join([LEAST % ''] * 3000)},x]",
        f"[{','.join([LEAST % ''] * 3000)}",
    ],
)
def test_a_broken_array_is_refused_as_a_whole(body: str) -> None:
    """A syntax error at any place refuses the whole array."""
    with pytest.raises(BadBody, match=r"^not (usable )?JSON"):
        decode(body.encode(), lines=False)


def test_a_syntax_error_has_its_position() -> None:
    """The error has line and column, also far into the body."""
    body = "[" + ",\n".join([LEAST % ""] * 5000) + ',\n{"strategy" 7}]'
    with pytest.raises(BadBody) as refused:
        decode(body.encode(), lines=False)
    assert str(refused.value) == "not JSON at line 5001 column 13: Expecting ':' delimiter"


def test_good_lines_are_found_behind_many_broken_ones() -> None:
    """A body is refused early only if no later line can be a decision."""
    body = b"x\n" * 3000 + (LEAST % "").encode()
    items = decode(body, lines=True)
    assert (len(items), isinstance(items[-1], BrokenDecision)) == (3001, False)
    read: list[int] = []
    with pytest.raises(BadBody, match="no line is JSON; the first: not JSON at line 1 column 1"):
        read.extend(len(piece) for piece in pieces(b"x\n" * 49_000, lines=True))
    assert sum(read) < 2 * INVALID_LINES


def array(item: str, count: int) -> str:
    return f"[{','.join([item] * count)}]"


HOSTILE = {
    "half-nested lines": ('{"a":[{"b":[\n' * 49_000, True),
    "numbers over every float": (array("1e999", 50_000), False),
    "denormal costs": (array(LEAST % ',"cost":5e-324', 5_000), False),
    "scalars": (array("0", 49_000), False),
    "lone surrogates": (array(LEAST % ',"x":"\\ud800"', 5_000), False),
    "deep ones": (array(LEAST % DEEP, 300), False),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_read_in_small_steps(name: str) -> None:
    """Other tasks have turns, because no step decodes more than one piece."""
    body, lines = HOSTILE[name]
    steps: list[int] = []
    with pytest.raises(BadBody) if lines else nullcontext():
        steps.extend(len(piece) for piece in pieces(body.encode(), lines=lines))
    assert max(steps) <= DECISIONS_PER_SLICE
    assert sum(steps) >= 300


def test_a_number_repeated_in_one_decision_is_skipped_not_read() -> None:
    """Reading a million slow numbers of one field would be one C call that blocks all tasks."""
    body = "{" + '"cost":5e-324,' * 100_000 + '"strategy":"s","provider":"p"}'
    used = time.thread_time()
    (item,) = decode(body.encode(), lines=False)
    assert time.thread_time() - used < 0.5  # it was 1 s; now it is some milliseconds
    assert not isinstance(item, BrokenDecision)
