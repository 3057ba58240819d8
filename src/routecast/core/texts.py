"""Names and ids: the characters that they may contain, and their one stored form.

Names that look the same must be the same, and no name may disturb a terminal, a log or a page. So
control characters, line separators, bidirectional controls and invisible characters are refused,
and names are stored in Unicode's normal form C (UAX 15). Joiners are allowed between other
characters, because emoji and some scripts need them.

A name that is too long is cut, and a hash of the whole name is added, so that two long names stay
two.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Final
from unicodedata import category, normalize

from routecast.errors import Invalid

_JOINERS: Final = ("\u200c", "\u200d")
# Format characters that are part of something visible: signs before Arabic and other numbers, and
# the tags of flags such as Scotland's.
_FORMAT_CHARACTERS: Final = frozenset(
    [
        *_JOINERS,
        *"\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd",
        *map(chr, range(0xE0020, 0xE0080)),
    ]
)
_REFUSED_CATEGORIES: Final = frozenset(("Cc", "Cs", "Zl", "Zp"))
# Letters and symbols that are invisible.
_BLANK_CHARACTERS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_NOT_ALONE: Final = frozenset(("Cf", "Mn", "Mc", "Me", "Zs"))
# Hexadecimal digits of the hash at the end of a name that was cut: 48 bits.
_HASH_DIGITS: Final = 12
# Characters of a name that are checked one by one: a body may contain a name of 16 MiB.
_MOST_READ: Final = 1_024


def is_simple(texts: Iterable[str]) -> bool:
    """Whether texts are printable ASCII and not only spaces: a fast test that most texts pass."""
    texts = tuple(texts)
    whole = "".join(texts)
    return whole.isascii() and whole.isprintable() and not any(map(str.isspace, texts))


def check_text(field: str, text: str) -> None:
    """Raise Invalid, naming the field, if a name or id contains a forbidden character."""
    for character in text:
        if _is_refused(character):
            code = f"U+{ord(character):04X}"
            raise Invalid(f"{field}: must not contain {_what(character)} ({code})")
    if text.startswith(_JOINERS) or text.endswith(_JOINERS):
        raise Invalid(f"{field}: must not begin or end with a joiner (U+200C, U+200D)")
    if text and not any(map(_is_visible, text)):
        raise Invalid(f"{field}: must contain a visible character")


def is_allowed(text: str) -> bool:
    """Whether a text is a valid name or id."""
    try:
        check_text("", text)
    except Invalid:
        return False
    return True


def kept_name(field: str, text: str, longest: int) -> tuple[str, bool]:
    """Return the stored form of a name, of at most `longest` characters, and whether it was cut.

    Of a name that is too long, its beginning and a hash of the whole name are stored, as in
    `a-very-long-na~0f3a9c51d2e7`. Raises Invalid, naming the field, if it contains a forbidden
    character; of a very long name only the first _MOST_READ characters are checked.
    """
    read = text
    if len(text) > _MOST_READ:
        read = text[:_MOST_READ].rstrip("".join(_JOINERS))
    if not is_simple((read,)):
        check_text(field, read)
    name = spelling(read)
    if read is text and len(name) <= longest:
        return name, False
    whole = name if read is text else text
    return f"{name[: longest - _HASH_DIGITS - 1]}~{digest(whole)[:_HASH_DIGITS]}", True


def digest(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, as 64 hexadecimal digits."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def spelling(text: str) -> str:
    """Return the stored form of a name."""
    return text if text.isascii() else normalize("NFC", text)


def spellings(names: Iterable[str]) -> frozenset[str]:
    """Return the names to look for: as given, and in the stored form.

    Databases of earlier versions may contain names in another form.
    """
    given = frozenset(names)
    return given.union(map(spelling, given))


def shown(text: str) -> str:
    """Return a text for a terminal; characters that `check_text` refuses become `\\u202e`, etc.

    Names that were stored before this rule may contain such characters. Inside a JSON string, the
    result means the same string.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(character) if _is_refused(character) else character for character in text
    )


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _is_refused(character: str) -> bool:
    kind = category(character)
    return kind in _REFUSED_CATEGORIES or (kind == "Cf" and character not in _FORMAT_CHARACTERS)


def _what(character: str) -> str:
    kind = category(character)
    if kind == "Cs":
        return "a lone surrogate"
    return "an invisible or bidirectional character" if kind == "Cf" else "a control character"


def _is_visible(character: str) -> bool:
    return category(character) not in _NOT_ALONE and character not in _BLANK_CHARACTERS
