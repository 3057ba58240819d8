"""The examples in the docstrings of `routecast.client`, run against a real server."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from routecast.client import DEFAULT_SERVER
from tests.support.docstrings import public_objects, run_example
from tests.support.server import Server

EXAMPLES: Final = {
    name: inspect.cleandoc(found.__doc__)
    for name, found in public_objects()
    if DEFAULT_SERVER in (found.__doc__ or "")
}
# The only decision of the server when an example begins.
DECISION: Final = {
    "strategy": "hybrid",
    "provider": "gemini",
    "model": "gemini-2.5-flash",
    "confidence": 0.87,
    "cost": 0.0023,
}


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The address of a server with one decision."""
    with Server(tmp_path) as server:
        server.post(DECISION)
        yield server.url


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str, url: str) -> None:
    """Its address is replaced by that of the server, and it is run as a doctest."""
    run_example(name, EXAMPLES[name].replace(DEFAULT_SERVER, url))


def test_the_examples_are_found() -> None:
    """Each way of reading and sending has one."""
    expected = {"Client", "Subscription", "HistoryFeed", "Recorder", "stream", "stream_sync"}
    assert expected <= EXAMPLES.keys()
