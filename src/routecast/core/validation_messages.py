"""Error messages for invalid values: msgspec's messages in the words of the protocol."""

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
    """Return one of msgspec's rules as what a value must be.

    Remove the path of the field, at the end of msgspec's message, before the call.
    """
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
