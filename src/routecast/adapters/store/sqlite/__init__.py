"""The embedded store: SQLite through apsw, one writer thread, readers beside it.

A commit writes its decisions, its delta and the position. Deltas are folded into the rollups many
at a time, by a later commit: the rollups and the deltas not folded yet are the sums, together and
at any moment.
"""

from routecast.adapters.store.sqlite.backup import SqliteBackups
from routecast.adapters.store.sqlite.store import SqliteStore

__all__ = ["SqliteBackups", "SqliteStore"]
