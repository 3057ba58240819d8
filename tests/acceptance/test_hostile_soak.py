"""A short attack with all hostile inputs at once: nothing breaks, leaks or is counted wrongly.

How fast the node stays is for `make hostile` to say, on a machine that has nothing else to do.
"""

from pathlib import Path

import pytest

from tests.hostile.soak import soak
from tests.support.postgres import Postgres

SECONDS = 15.0


@pytest.mark.timeout(600)
def test_a_node_on_sqlite_survives(tmp_path: Path) -> None:
    """All acknowledged decisions are counted, `verify` finds nothing, and no file stays open."""
    assert soak(tmp_path, SECONDS, tell=print).broken == []


@pytest.mark.timeout(600)
def test_a_node_on_postgresql_survives(tmp_path: Path, postgres: Postgres) -> None:
    """The same holds on a server that other nodes may share."""
    assert soak(tmp_path, SECONDS, database_url=postgres.create(), tell=print).broken == []
