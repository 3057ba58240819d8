"""The store for many nodes: PostgreSQL through asyncpg.

A commit writes its decisions and its delta, and takes the next position last of all, under a row
lock: so the order of commits is the order of positions, and until that lock nodes commit beside
one another. Deltas are folded into the rollups many at a time, by whichever node gets to it: the
rollups and the deltas not folded yet are the sums, together and at any moment.
`docs/decisions/0001-ids-on-partitions.md` tells how decisions are kept.
"""

from routecast.adapters.store.postgres.backup import PostgresBackups
from routecast.adapters.store.postgres.store import PostgresStore

__all__ = ["PostgresBackups", "PostgresStore"]
