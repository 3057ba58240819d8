"""Decode: from bytes to decisions as sent, and what is wrong with the others."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.decode import decode
from routecast.core.exact import Broken
from routecast.errors import BadBody, TooLarge

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
        ((LEAST % ',"cost":NaN').encode(), "not JSON: NaN is not a JSON number"),
        ((LEAST % ',"cost":-Infinity').encode(), "not JSON: -Infinity is not a JSON number"),
        (b"[" * 100_000, "not usable JSON: nested too deeply"),
        (
            (LEAST % (',"x":' + "[" * 100_000 + "]" * 100_000)).encode(),
            "not usable JSON: nested too deeply",
        ),
    ],
)
def test_body_that_is_not_json_is_refused_whole(body: bytes, error: str) -> None:
    """Nothing of it is kept; the error says what and where."""
    with pytest.raises(BadBody) as refused:
        decode(body, lines=False)
    assert str(refused.value) == error


@given(cut=st.integers(0, 10**6))
def test_body_cut_anywhere_is_refused_whole(cut: int) -> None:
    """No prefix of an array of decisions passes for a shorter one."""
    body = json.dumps([json.loads(LEAST % ',"cost":0.5,"id":"ü"')] * 3, ensure_ascii=False).encode()
    with pytest.raises(BadBody):
        decode(body[: cut % len(body)], lines=False)


def test_lines_sent_as_json_get_a_hint() -> None:
    """Somebody forgot the content type."""
    with pytest.raises(BadBody, match="send Content-Type: application/x-ndjson"):
        decode(f"{LEAST % ''}\n{LEAST % ''}".encode(), lines=False)


def test_byte_order_mark_and_blank_space_are_no_harm() -> None:
    """As editors and Windows leave them."""
    bom = b"\xef\xbb\xbf"
    assert len(decode(bom + b" \n" + (LEAST % "").encode(), lines=False)) == 1
    lines = f"\r\n{LEAST % ''}\r\n\r\n{LEAST % ''}\r\n".encode()
    assert len(decode(lines, lines=True)) == 2
    assert len(decode(bom + lines, lines=True)) == 2


def test_empty_array_is_no_decisions() -> None:
    """Nothing sent is nothing wrong."""
    assert list(decode(b"[]", lines=False)) == []


def test_broken_line_does_not_spoil_the_others() -> None:
    """NDJSON is read line by line; an error tells the line in the body, blank ones counted."""
    deep = "[" * 100_000
    body = "\n".join([LEAST % "", "", '{"strategy":', deep, LEAST % ',"cost":NaN', LEAST % ""])
    items = decode(body.encode(), lines=True)
    assert [item.error if isinstance(item, Broken) else None for item in items] == [
        None,
        "not JSON at line 3 column 13: Expecting value",
        "not usable JSON: nested too deeply",
        "not JSON: NaN is not a JSON number",
        None,
    ]


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
    """Then it is not NDJSON at all."""
    with pytest.raises(BadBody) as refused:
        decode(body, lines=True)
    assert str(refused.value) == error


@pytest.mark.parametrize("one", [LEAST % "", "{}", "7"], ids=["good", "bad", "ugly"])
@pytest.mark.parametrize("lines", [False, True], ids=["array", "lines"])
def test_batch_has_a_limit(one: str, lines: bool) -> None:
    """50,000 decisions are taken; one more is too many, and it is said how many there were."""

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
    """However small each of them is."""
    with pytest.raises(TooLarge, match=r"^far more values than 50,000 decisions have$"):
        decode(body, lines=lines)


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode), st.booleans())
def test_no_bytes_at_all_break_the_reader(body: bytes, lines: bool) -> None:
    """Whatever comes, it is read or refused; nothing else is raised."""
    try:
        items = decode(body, lines=lines)
    except BadBody:
        return
    assert all(isinstance(item, Broken) or item.strategy for item in items)
