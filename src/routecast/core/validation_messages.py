"""Errors of values that were sent: msgspec's messages in the words of the contract."""

from typing import Final

_KINDS: Final = {
    "str": "a string",
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "datetime": "an RFC 3339 time",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_GIVEN: Final = {**_KINDS, "int": "a number", "bool": "a boolean"}


def kind(name: str) -> str:
    """Return the name of a type, as msgspec gives it, for people."""
    return _GIVEN.get(name, name)


def worded(rule: str) -> str:
    """Return one of msgspec's rules, without the place at its end, as what a value must be."""
    words = rule.split("`")
    if not rule.startswith("Expected") or len(words) < 2:
        return f"{rule[:1].lower()}{rule[1:].replace('`', '')}"
    bound = words[2].strip() if len(words) > 2 else ""
    limit = bound.split()[-1] if bound else ""
    if bound.startswith("of length >="):
        return "must not be empty"
    if bound.startswith("of length <="):
        return f"must be at most {limit} {'values' if words[1] == 'array' else 'characters'}"
    if bound.startswith(">="):
        return f"must be {float(limit):g} or more"
    if bound.startswith("<="):
        return f"must be at most {float(limit):,.0f}"
    kinds = [_KINDS.get(name, name) for name in words[1].split(" | ") if name != "null"]
    given = words[3] if len(words) > 3 else "float"
    got = "" if given == "float" else f", not {kind(given)}"
    return f"must be {' or '.join(kinds)}{got}"
