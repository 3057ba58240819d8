"""Names and ids: which characters are refused or allowed, and the one stored form of each."""

import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.decision import DecisionRecord, Rules
from routecast.core.decode import decode
from routecast.core.decode_fields import BrokenDecision, Flaw
from routecast.core.rollup import Key
from routecast.core.texts import (
    check_text,
    digest,
    is_allowed,
    is_simple,
    kept_name,
    shown,
    spelling,
)
from routecast.core.view import make_view, parse_query
from routecast.errors import Invalid
from routecast.protocol import Filters
from tests.support.decisions import NOW

FIELDS = ("strategy", "provider", "model", "project", "id")

BIDI = [*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]
CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
INVISIBLE = [*"\u200b\u2060\u2061\u00ad\u180e\ufeff\ufff9\u2028\u2029"]
ALLOWED = [
    "gpt-4o",
    "a b",
    "Ärger ☂",
    "👩‍💻",  # joined by U+200D
    "❤️",  # with a variation selector
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # a flag, with tags
    "می‌خواهم",  # Persian, with U+200C
    "नमस्ते",
    "שלום",
    "\u0600١",  # a sign before a number
    "\U000105c0",  # not assigned in every Unicode that Python may know
]
BLANK = [" ", "\u00a0", "\u3000 ", "\u3164", "\u2800", "\u0301", "\ufe0f"]


def read(flaws: list[Flaw] | None = None, /, **fields: str) -> DecisionRecord:
    """Return one decision as a server reads it."""
    (item,) = decode(json.dumps({"strategy": "s", "provider": "p", **fields}).encode(), lines=False)
    assert not isinstance(item, BrokenDecision), item
    return Rules().normalise(item, NOW, flaws)


def assert_not_kept(field: str, text: str, rule: str) -> None:
    """Assert that a required name is refused, an id hashed, and another field left out."""
    if field in ("strategy", "provider"):
        with pytest.raises(Invalid, match=f"^{field}: {rule}"):
            read(**{field: text})
        return
    flaws: list[Flaw] = []
    kept = read(flaws, **{field: text})
    (flaw,) = flaws
    if field == "id":
        assert (flaw.field, flaw.code, kept.id) == ("id", "hashed", digest(text))
    else:
        assert (flaw.field, flaw.code) == (field, "bad_character")
        assert re.match(rule, flaw.message)
        assert kept._replace(id="") == read()._replace(id="")


@pytest.mark.parametrize("field", FIELDS)
def test_names_and_ids_have_no_invisible_or_control_characters(field: str) -> None:
    """Bidirectional controls are refused, too; the error has the field and the code point."""
    for character in (*BIDI, *CONTROLS, *INVISIBLE):
        for text in (f"a{character}b", character, f"{character}a", f"a{character}"):
            assert_not_kept(field, text, rf".*U\+{ord(character):04X}")
            assert not is_allowed(text)


@pytest.mark.parametrize("field", FIELDS)
def test_names_and_ids_have_a_visible_character(field: str) -> None:
    """Spaces, fillers, and marks without a letter below them are no name."""
    for text in BLANK:
        assert_not_kept(field, text, "must contain a visible character$")
    for text in ("\u200d", "a\u200d", "\u200ca"):
        assert_not_kept(field, text, "must not begin or end with a joiner")


@pytest.mark.parametrize("text", ALLOWED)
def test_every_script_and_emoji_is_allowed(text: str) -> None:
    """Names are stored in normal form C."""
    for field in FIELDS:
        kept = getattr(read(**{field: text}), field)
        assert kept == unicodedata.normalize("NFC", text)
    assert shown(text) == text


def test_spellings_of_a_name_are_stored_as_one() -> None:
    """Names are stored in normal form C; ids and reasons are stored unchanged."""
    composed, apart = "Ä", "A\u0308"
    for field in ("strategy", "provider", "model", "project"):
        assert getattr(read(**{field: apart}), field) == composed
    assert read(project=apart).owner == composed
    assert read(id=apart).id == apart
    assert read(reason=apart).reason == apart


def test_reason_is_free_text() -> None:
    """Lines, tabs and direction marks are allowed in texts of people and models."""
    assert read(reason="a\n\tb\u200f").reason == "a\n\tb\u200f"
    for bad in ("\0", "\ud800"):
        flaws: list[Flaw] = []
        assert read(flaws, reason=bad).reason is None
        assert [flaw.code for flaw in flaws] == ["bad_character"]


def test_name_that_grows_over_its_limit_is_cut() -> None:
    """Some characters become several in normal form C."""
    assert read(strategy="\u0958" * 32).strategy == "\u0915\u093c" * 32
    cut = read(strategy="\u0958" * 33).strategy
    assert len(cut) == 64
    assert cut.startswith("\u0915\u093c" * 25)


def test_filters_find_a_name_in_any_spelling() -> None:
    """They find the stored spelling, and one that an earlier version may have stored."""
    asked = parse_query("model=A%CC%88").view
    assert make_view(None, Filters(model=["A\u0308"]), None) == asked
    for kept in ("Ä", "A\u0308"):
        assert asked.matches(Key("p", "s", "v", kept, "none", "success"))


@given(st.text())
def test_a_stored_name_is_valid_and_final(text: str) -> None:
    """It is allowed itself, has no other spelling, and is shown unchanged."""
    try:
        kept, _ = kept_name("model", text, 16)
    except Invalid:
        assert not is_allowed(text)
        return
    assert len(kept) <= 16
    assert not kept or is_allowed(kept)
    assert kept_name("model", kept, 16) == (kept, False)
    assert kept == spelling(kept)
    assert shown(kept) == kept
    assert not any(unicodedata.category(one) in ("Cc", "Cs") for one in kept)


VISIBLE = st.text(st.characters(categories=["L", "N"]), min_size=1)


@given(VISIBLE, VISIBLE, st.sampled_from([0, 17, 1020, 1024, 3000]))
def test_long_names_stay_distinct(first: str, second: str, more: int) -> None:
    """They may begin alike, and have any length."""
    names = [text + "y" * more for text in (first, second)]
    names += [text + "x" for text in names] + [first + "y" * more + second]
    kept = {kept_name("model", name, 16)[0] for name in names}
    assert len(kept) == len(set(map(spelling, names)))


def test_only_the_beginning_of_a_huge_name_is_checked() -> None:
    """A body may have a name of 16 MiB, and characters are checked one by one."""
    kept = read(strategy="\u0e01" * 2_000 + "\0").strategy
    assert len(kept) == 64
    assert kept == read(strategy="\u0e01" * 2_000 + "\0").strategy
    assert kept != read(strategy="\u0e01" * 2_000).strategy
    assert read(strategy="a" * 1023 + "\u200d" + "b" * 10).strategy.startswith("aaa")
    with pytest.raises(Invalid):
        read(strategy="a" * 100 + "\0" + "b" * 2_000)


@given(st.text(st.characters(max_codepoint=0x2FF)))
def test_quick_check_accepts_nothing_that_the_full_one_refuses(text: str) -> None:
    """Simple texts need only the quick check."""
    if is_simple((text, "p")):
        check_text("model", text)
        assert spelling(text) == text


@given(st.text())
def test_escaped_text_is_the_same_string_of_json(text: str) -> None:
    """No control character for terminals stays, and no character is lost."""
    written = json.dumps(text, ensure_ascii=False)
    assert json.loads(shown(written)) == text
    assert not set(shown(written)) & {*BIDI, *CONTROLS}
