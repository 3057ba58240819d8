"""The docstrings of `routecast.client` say all that a caller must know, and agree with the code."""

import ast
import builtins
import dataclasses
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, is_typeddict

import msgspec
import pytest

from routecast import client
from routecast.client import DEFAULT_SERVER, RoutecastError
from routecast.core.history import GROUPS, HISTORY_FIELDS
from routecast.protocol import (
    DEFAULT_FIELDS,
    DEFAULT_INTERVAL,
    MAX_BATCH,
    MAX_COST,
    MAX_FILTER_VALUES,
    MAX_ID,
    MAX_INTERVAL,
    MAX_MODEL,
    MAX_NAME,
    MAX_POINTS,
    MAX_REASON,
    MAX_SUBSCRIPTIONS,
    MIN_INTERVAL,
    WINDOWS,
)
from tests.support.docstrings import (
    callable_of,
    entries,
    public_objects,
    run_example,
    sections,
)

ROOT = Path(__file__).parents[2]
OBJECTS: Final = dict(public_objects())
# The errors of each call that may fail. A loop over a `Client`'s feed raises those of `__anext__`.
REFUSALS: Final = {"BadRequest", "Refused", "Unauthenticated"}
RAISES: Final = {
    "Client": {"BadParameter"},
    "Client.history": {"RuntimeError"},
    "Client.subscribe": {"RuntimeError"},
    "Feed.__anext__": {*REFUSALS, "Unavailable", "StopAsyncIteration", "msgspec.ValidationError"},
    "Recorder": {"BadParameter", "ValueError"},
    "fetch_ticket": {"BadParameter", "Refused", "Unauthenticated", "Unavailable"},
    "stream": {"BadParameter", *REFUSALS},
    "stream_sync": {"BadParameter", *REFUSALS},
}

all_objects = pytest.mark.parametrize("name", OBJECTS)


def docstring(name: str) -> str:
    """Return an object's own docstring, without its indentation."""
    text = OBJECTS[name].__doc__
    assert text, f"{name} has no docstring"
    return inspect.cleandoc(text)


def signature(found: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters that a caller gives, under the names that `Args` has."""
    function = vars(found).get("__init__") if inspect.isclass(found) else callable_of(found)
    if function is None:
        return {}
    parameters = [*inspect.signature(function).parameters.values()][inspect.isclass(found) :]
    if parameters and parameters[0].name in ("self", "cls"):
        del parameters[0]
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return {f"{stars.get(each.kind, '')}{each.name}": each for each in parameters}


def fields(found: Any) -> list[str] | None:
    """Return the names of a data class's fields or an enum's members; None for other objects."""
    if is_typeddict(found):
        return list(found.__annotations__)
    if not inspect.isclass(found):
        return None
    if issubclass(found, Enum):
        return list(found.__members__)
    if issubclass(found, msgspec.Struct):
        return list(found.__struct_fields__)
    if dataclasses.is_dataclass(found):
        return [field.name for field in dataclasses.fields(found)]
    return None


def is_error(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, RoutecastError)


@all_objects
def test_a_docstring_begins_with_one_line(name: str) -> None:
    """The first line is a sentence; more text follows after an empty line."""
    first, *others = docstring(name).splitlines()
    assert first.endswith(".")
    assert not others or others[0] == ""


@all_objects
def test_every_argument_is_described(name: str) -> None:
    """`Args` has the parameters of the signature, in order, with their default numbers."""
    found = OBJECTS[name]
    if is_error(found) or fields(found) is not None:
        return
    expected = signature(found)
    described = entries(sections(docstring(name)).get("Args", ""))
    assert list(described) == list(expected)
    for argument, parameter in expected.items():
        default = parameter.default
        if isinstance(default, int | float) and not isinstance(default, bool):
            number = f"{default:,}" if isinstance(default, int) else f"{default:g}"
            assert f"default {number}" in described[argument], argument


@all_objects
def test_every_field_is_described(name: str) -> None:
    """`Attributes` has the fields of a data class, or the attributes of an error, in order."""
    found = OBJECTS[name]
    expected = fields(found)
    if is_error(found) and (given := signature(found)):
        error = found(*("x" for each in given.values() if each.kind is not each.KEYWORD_ONLY))
        expected = [argument for argument in given if hasattr(error, argument)]
        assert given.keys() - expected <= {"message"}  # the text of the error
    assert list(entries(sections(docstring(name)).get("Attributes", ""))) == (expected or [])


@all_objects
def test_every_result_is_described(name: str) -> None:
    """A function that returns or yields something says what, at its beginning or in a section."""
    function = callable_of(OBJECTS[name])
    if function is None or inspect.signature(function).return_annotation is None:
        return
    found = sections(docstring(name))
    assert {"Returns", "Yields"} & found.keys() or re.search(r"\breturn", found[""], re.IGNORECASE)


@all_objects
def test_every_error_is_described(name: str) -> None:
    """`Raises` has the errors of each call, which are public ones or those of a library."""
    raised = entries(sections(docstring(name)).get("Raises", ""))
    assert raised.keys() == RAISES.get(name, set())
    for error in raised:
        assert error in client.__all__ or hasattr(builtins, error) or error.startswith("msgspec.")


def test_every_public_error_is_raised_somewhere() -> None:
    """Each error of `routecast.client`, except the base of all, is in a `Raises`."""
    errors = {name for name in OBJECTS if is_error(OBJECTS[name])} - {"RoutecastError"}
    assert errors == set().union(*RAISES.values()) & errors


@all_objects
def test_what_does_something_has_an_example(name: str) -> None:
    """So has each function, and each class that is neither data nor an error."""
    found = OBJECTS[name]
    if "." not in name and not is_error(found) and fields(found) is None:
        assert ">>> " in sections(docstring(name)).get("Examples", "")


def without_server() -> list[str]:
    """Return the names whose examples do not connect to a server."""
    texts = {name: found.__doc__ or "" for name, found in OBJECTS.items()}
    return [name for name, text in texts.items() if ">>> " in text and DEFAULT_SERVER not in text]


@pytest.mark.parametrize("name", without_server())
def test_an_example_without_a_server_prints_what_it_says(name: str) -> None:
    """`tests/acceptance/test_client_docstrings.py` runs the others."""
    run_example(name, docstring(name))


def test_the_other_names_are_described() -> None:
    """A text follows the assignment of each public name that is no class or function of its own."""
    others = {name for name in client.__all__ if name not in OBJECTS}
    assert others == {"DEFAULT_SERVER", "connect"}
    described = set()
    for path in (ROOT / "src/routecast/client").glob("*.py"):
        body = ast.parse(path.read_text("utf-8")).body
        for node, after in pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                assert isinstance(node.target, ast.Name)
                described.add(node.target.id)
    assert others <= described


# -- what other modules define -------------------------------------------------------------------


def test_lists_of_names_are_complete() -> None:
    """They have each name that the protocol allows, and no other one."""
    view = entries(sections(docstring("Client.subscribe"))["Args"])
    assert quoted(view["window"]) == {*WINDOWS}
    assert client.Metrics.__struct_fields__[:5] == DEFAULT_FIELDS  # "the first five fields"
    history = entries(sections(docstring("Client.history"))["Args"])
    assert quoted(history["fields"]) == {*HISTORY_FIELDS}
    assert quoted(history["group_by"]) == {*GROUPS}


def quoted(text: str) -> set[str]:
    """Return the names between backticks."""
    return set(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize(
    ("name", "section", "entry", "limits"),
    [
        ("Client.subscribe", "Args", "interval", (MIN_INTERVAL, MAX_INTERVAL, DEFAULT_INTERVAL)),
        ("Client.subscribe", "Args", "strategy", (MAX_FILTER_VALUES,)),
        ("Client.history", "Args", "strategy", (MAX_FILTER_VALUES,)),
        ("Client.history", "Args", "points", (MAX_POINTS,)),
        ("Recorder", "Args", "batch", (MAX_BATCH,)),
        ("Decision", "Attributes", "strategy", (MAX_NAME,)),
        ("Decision", "Attributes", "provider", (MAX_NAME,)),
        ("Decision", "Attributes", "model", (MAX_MODEL,)),
        ("Decision", "Attributes", "id", (MAX_ID,)),
        ("Decision", "Attributes", "cost", (MAX_COST,)),
        ("Decision", "Attributes", "reason", (MAX_REASON,)),
        ("Decision", "Attributes", "project", (MAX_NAME,)),
    ],
)
def test_limits_are_those_of_the_protocol(
    name: str, section: str, entry: str, limits: tuple[float, ...]
) -> None:
    """An entry has the number of each limit."""
    text = entries(sections(docstring(name))[section])[entry]
    numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", text)
    assert {*limits} <= {float(number.replace(",", "")) for number in numbers}


def test_the_limit_of_subscriptions_is_that_of_the_protocol() -> None:
    assert (
        f" {MAX_SUBSCRIPTIONS} subscriptions" in sections(docstring("Client.subscribe"))["Returns"]
    )


# -- docs/client-python.md ------------------------------------------------------------------------


def arguments_of(heading: str) -> Iterator[tuple[str, str]]:
    """Yield the names and the second cell of the first table of arguments after a heading."""
    text = (ROOT / "docs/client-python.md").read_text("utf-8").partition(f"\n{heading}\n")[2]
    table = text.partition("\n| argument ")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        names, second = row.strip("|").split("|")[:2]
        for name in re.findall(r"`(\w+)`", names):
            yield name, second.strip()


def test_the_page_has_the_arguments_of_a_stream() -> None:
    """The table has each argument of `Client.subscribe`, the token and tickets."""
    listed = dict(arguments_of("## Reading metrics"))
    assert listed.keys() == {*signature(client.Client.subscribe), "token", "tickets"}


def test_the_page_has_the_arguments_of_a_recorder() -> None:
    """The table has each argument besides the address, with its default."""
    listed = dict(arguments_of("## Recording decisions"))
    expected = signature(client.Recorder)
    del expected["url"]
    assert listed.keys() == expected.keys()
    for name, default in listed.items():
        if default:
            assert float(default.replace(",", "")) == expected[name].default
