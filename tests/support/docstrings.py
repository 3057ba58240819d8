"""The public names of `routecast.client`, and the sections of their docstrings."""

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from routecast import client

_HEADING = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Examples):")
_ENTRY = re.compile(r"    ([*\w.]+): (?=\S)")


def public_objects() -> Iterator[tuple[str, Any]]:
    """Yield each public class, function, method and property, with its name."""
    for name in client.__all__:
        found = getattr(client, name)
        if inspect.isclass(found):
            yield found.__name__, found  # `connect` is another name of `Client`
            for member, value in vars(found).items():
                if is_documented(member) and (isinstance(value, property) or callable_of(value)):
                    yield f"{found.__name__}.{member}", value
        elif callable(found):
            yield name, found


def is_documented(member: str) -> bool:
    """Whether a member of a class needs a docstring."""
    return not member.startswith("_") or member == "__anext__"


def callable_of(value: Any) -> Callable[..., Any] | None:
    """Return the function of a method or class method; None for other members."""
    function = getattr(value, "__func__", value)
    return function if inspect.isfunction(function) else None


def sections(docstring: str) -> dict[str, str]:
    """Return the text of each section by its heading; the text before them is under ""."""
    found = {"": ""}
    heading = ""
    for line in docstring.splitlines():
        if match := _HEADING.fullmatch(line):
            heading = match[1]
            assert heading not in found, f"{heading} is there twice"
            found[heading] = ""
        else:
            assert not line or line.startswith(" ") or not heading, f"text after a section: {line}"
            found[heading] += f"{line}\n"
    return found


def entries(section: str) -> dict[str, str]:
    """Return the text of each entry of a section by its name."""
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if match := _ENTRY.match(line):
            name = match[1]
            assert name not in found, f"{name} is there twice"
            found[name] = line[match.end() :]
        elif line:
            found[name] += f" {line.strip()}"
    return found


def run_example(name: str, docstring: str) -> None:
    """Run the examples of a docstring; fail unless they print what they say.

    They see the names of `routecast.client`, as after importing all of them.
    """
    example = doctest.DocTestParser().get_doctest(docstring, vars(client).copy(), name, None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
