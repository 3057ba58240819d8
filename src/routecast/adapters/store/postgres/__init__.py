"""The store for many nodes: PostgreSQL through asyncpg.

A commit writes its decisions and its delta, and takes the next position last, under a row lock. So
the order of commits is the order of positions, and up to that lock nodes commit at the same time.
Deltas are folded into the rollups later, many at a time, by the node that holds the lock for it.
The sums are, at any moment, the rollups and the deltas that are not folded yet.
`docs/decisions/0001-ids-on-partitions.md` says how decisions are stored.
"""

from routecast.adapters.store.postgres.backup import PostgresBackups
from routecast.adapters.store.postgres.store import PostgresStore

__all__ = ["PostgresBackups", "PostgresStore"]
