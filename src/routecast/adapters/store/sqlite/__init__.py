"""The embedded store: SQLite through apsw, with one writer thread, and readers on other threads.

A commit writes its decisions, its delta and the position. Later commits fold deltas into the
rollups, many at a time. The sums are, at any moment, the rollups and the deltas that are not folded
yet.
"""

from routecast.adapters.store.sqlite.backup import SqliteBackups
from routecast.adapters.store.sqlite.store import SqliteStore

__all__ = ["SqliteBackups", "SqliteStore"]
