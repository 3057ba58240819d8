"""Fixtures of all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Edge, Server


@pytest.fixture(scope="session")
def edge() -> Edge:
    """How WebSockets are served. Tests of streams run with both, by a fixture in their place."""
    return "lean"


@pytest.fixture
def server(tmp_path: Path, edge: Edge) -> Iterator[Server]:
    """A running server with an empty database."""
    with Server(tmp_path, edge=edge) as running:
        yield running
