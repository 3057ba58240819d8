"""Folding in the background: it begins when enough is not folded, on one node at a time."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from routecast.adapters.store.postgres.commit import Written
from routecast.adapters.store.postgres.connection import DatabaseSession, transaction, value
from routecast.adapters.store.postgres.deltas import last_commit
from routecast.adapters.store.postgres.folding import fold_some
from routecast.adapters.store.postgres.rollups import lock_rollups
from routecast.errors import Unavailable
from routecast.ports import DELTAS_KEPT

log = logging.getLogger(__name__)

# Deltas are folded after this number of commits, or of cells, or after this time, in seconds.
POSTGRES_FOLD_COMMITS: Final = 128
POSTGRES_FOLD_CELLS: Final = 8_000
FOLD_SECONDS: Final = 5.0
# If this number of commits is not folded, a commit folds first, so that the number of unfolded
# deltas has a bound. Before a large commit, POSTGRES_FOLD_CELLS is such a limit, too.
MOST_UNFOLDED_COMMITS: Final = 1_000


class RollupCompactor:
    """Folds commits in the background. `sessions` provides a session."""

    def __init__(
        self, sessions: Callable[[], AbstractAsyncContextManager[DatabaseSession]]
    ) -> None:
        self._sessions = sessions
        self._seq = 0  # of the last commit of this node
        self._folded = 0  # the rollups have at least the commits up to this seq
        self._cells = 0  # of this node's commits since a node last folded
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def make_room(self, *, large: bool) -> None:
        """If too much is not folded for a commit, fold and wait for it. Raises Unavailable."""
        if large and self._task is not None:
            await asyncio.wait([self._task])
        too_many = large and self._cells >= POSTGRES_FOLD_CELLS
        if too_many or self._seq - self._folded >= MOST_UNFOLDED_COMMITS:
            await self._fold(wait=True)

    def added(self, written: Written) -> None:
        """Record a commit."""
        delta = written.commit.delta
        if delta is None:
            return
        self._seq = delta.position.seq
        if written.folded > self._folded:
            self._folded, self._cells = written.folded, 0
        self._cells += len(delta.cells)
        if self._seq - self._folded >= POSTGRES_FOLD_COMMITS or self._cells >= POSTGRES_FOLD_CELLS:
            self._begin()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FOLD_SECONDS, self._begin)

    async def close(self) -> None:
        """Finish running work."""
        self._stop_timer()
        if self._task is not None:
            await self._task

    def _begin(self) -> None:
        self._stop_timer()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="fold")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _run(self) -> None:
        try:
            await self._fold(wait=False)
        except Unavailable as error:
            log.debug("Folding will be tried again: %s", error)
        except Exception:  # must not fail `close`; a later commit begins again
            log.exception("Folding failed; commits will be refused when too much is not folded")

    async def _fold(self, *, wait: bool) -> None:
        """Fold all present commits, in transactions of a bounded size."""
        cells = self._cells
        async with self._sessions() as session:
            folded, until = 0, await last_commit(session)
            while folded < until:
                async with transaction(session):
                    if wait:
                        await lock_rollups(session)
                    elif not await value(session, "try_lock_rollups"):
                        return  # another node is folding
                    folded = await fold_some(session, DELTAS_KEPT, until)
                self._folded = folded
        self._cells = max(0, self._cells - cells)
