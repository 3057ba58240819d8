"""Background work of one node at a time: retention and summaries.

Retention deletes old decisions and minutes; totals and hours stay, and so does what `verify` needs
to check them. Summaries sum up hours that are over, so that history is cheaper to read. A failure
ends neither: the work that failed is postponed, and the rest is done.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from routecast.core.clock_check import ClockCheck
from routecast.core.decision import DAY, MINUTE
from routecast.errors import Unavailable
from routecast.ports import Clock, Cluster, Store
from routecast.services.supervisor import Supervisor

log = logging.getLogger(__name__)

# Rows deleted in one transaction: few enough that a commit waits for milliseconds at most.
PRUNE_BATCH: Final = 2_000
# Retention checks for old data every PRUNE_INTERVAL seconds.
PRUNE_INTERVAL: Final = 600.0
# If the first check of the clock fails, it is repeated after this time, in seconds. It must come
# early: decisions that were received before this process began can show whether the clock is right,
# and later ones cannot.
AGAIN_SECONDS: Final = 0.2
# Hours that are over are summed up every SUMMARISE_INTERVAL seconds.
SUMMARISE_INTERVAL: Final = 60.0
# An hour is summed up this long after its end, in microseconds: most late decisions have come then.
GRACE_PERIOD: Final = 5 * MINUTE
# An hour that could not be summed up is tried again after this time, in seconds.
ASIDE_SECONDS: Final = 600.0
# The pause after each piece of work, in seconds: requests that wait for the writer come first.
RETENTION_REST_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Retention:
    """How many days decisions (since receipt) and minute rollups are kept."""

    decision_days: float = 30
    minute_days: float = 90


@dataclass(frozen=True, slots=True)
class Due:
    """Decisions (by receipt) and minutes before these moments are deleted; in microseconds."""

    decisions: int
    minutes: int


def due(now: int, keep: Retention) -> Due:
    """Return the moments before which data need not be kept any more."""
    return Due(int(now - keep.decision_days * DAY), int(now - keep.minute_days * DAY))


async def prune(store: Store, drop: Due) -> int:
    """Delete what is due; return the number of rows."""
    return await _prune(store, drop.decisions, 0) + await _prune(store, 0, drop.minutes)


async def _prune(store: Store, decisions_before: int, minutes_before: int) -> int:
    total = 0
    while dropped := await store.prune(
        decisions_before=decisions_before, minutes_before=minutes_before, limit=PRUNE_BATCH
    ):
        total += dropped
        await asyncio.sleep(RETENTION_REST_SECONDS)
    return total


def elapsed_seconds() -> float:
    """Return the seconds since the machine started, including those in which it was suspended."""
    # Only Linux has this clock. Other systems may not count suspended time.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def run_retention(
    store: Store,
    cluster: Cluster,
    clock: Clock,
    keep: Retention,
    supervisor: Supervisor,
    elapsed: Callable[[], float] = elapsed_seconds,
) -> None:
    """Prune every PRUNE_INTERVAL, on one of the nodes. Never ends; failed work is tried again.

    `elapsed` returns the seconds since an arbitrary moment, even if the clock is set.
    """
    clock_check = ClockCheck()
    while True:
        try:
            drop = await _trusted(store, clock.now(), int(elapsed() * 10**6), keep, clock_check)
            if drop is not None and await _is_ours(cluster, "retention", PRUNE_INTERVAL - 1):
                await _retain(store, drop, supervisor)
        except Unavailable as error:
            log.warning("Retention will be tried again: %s", error)
        except Exception as error:
            supervisor.failed("retention", error)
        await asyncio.sleep(PRUNE_INTERVAL if clock_check.has_checked else AGAIN_SECONDS)


async def _trusted(
    store: Store, now: int, elapsed: int, keep: Retention, clock_check: ClockCheck
) -> Due | None:
    """Return what may be deleted by this clock; None if nothing may."""
    span = await store.span()
    reason = clock_check.check(now, elapsed, span)
    if reason is not None:
        log.warning(
            "The clock may be wrong: %s. For a day, retention drops no minutes, and decisions in "
            "small parts only",
            reason,
        )
        return None
    drop, kept = due(now, keep), int(keep.minute_days * DAY)
    return Due(
        clock_check.limit_decisions(drop.decisions, elapsed, span),
        clock_check.limit_minutes(drop.minutes, elapsed, span, kept),
    )


async def _retain(store: Store, drop: Due, supervisor: Supervisor) -> None:
    """Prune decisions and minutes; if one of the two fails, the other is still pruned."""
    dropped, failed = 0, False
    works = {"decisions": Due(drop.decisions, 0), "minutes": Due(0, drop.minutes)}
    for what, work in works.items():
        try:
            dropped += await prune(store, work)
        except Exception as error:
            await _raise_if_away(store, error)
            supervisor.failed("retention", error, f"old {what}")
            failed = True
    if dropped:
        log.info("Retention dropped %d rows", dropped)
    if not failed:
        supervisor.works("retention")


class Summaries:
    """Sums up hours. Run `run` as a task."""

    def __init__(
        self, store: Store, cluster: Cluster, clock: Clock, supervisor: Supervisor
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._supervisor = supervisor
        # The hours that failed, and when to try each again, on the monotonic clock. Hours that need
        # not be summed up any more are removed.
        self._aside: dict[int, float] = {}

    async def run(self) -> None:
        """Sum up hours regularly, on one of the nodes. Never ends; failures are tried again."""
        while True:
            try:
                if await _is_ours(self._cluster, "summaries", SUMMARISE_INTERVAL - 1):
                    await self.summarise()
            except Unavailable as error:
                log.warning("Summaries will be tried again: %s", error)
            except Exception as error:
                self._supervisor.failed("summaries", error)
            await asyncio.sleep(SUMMARISE_INTERVAL)

    async def summarise(self) -> int:
        """Sum up the hours that are over; return how many. Raises Unavailable."""
        done = 0
        hours = await self._store.unsummed(before=self._clock.now() - GRACE_PERIOD)
        aside = self._aside
        self._aside = {hour: aside[hour] for hour in hours if hour in aside}
        for hour in hours:
            if self._aside.get(hour, 0.0) > time.monotonic():
                continue
            done += await self._sum_up(hour)
            await asyncio.sleep(RETENTION_REST_SECONDS)
        if not self._aside:
            self._supervisor.works("summaries")
        return done

    async def _sum_up(self, hour: int) -> bool:
        try:
            await self._store.summarise(hour)
        except Exception as error:
            await _raise_if_away(self._store, error)
            which = f"the hour {datetime.fromtimestamp(hour, UTC):%Y-%m-%dT%H:%MZ}"
            self._supervisor.failed("summaries", error, which)
            self._aside[hour] = time.monotonic() + ASIDE_SECONDS
            return False
        self._aside.pop(hour, None)
        return True


async def _is_ours(cluster: Cluster, work: str, seconds: float) -> bool:
    """Whether this node does some work. True also if nodes cannot agree: it must be done."""
    try:
        return await cluster.claim(work, seconds)
    except Unavailable:
        return True


async def _raise_if_away(store: Store, error: Exception) -> None:
    """Raise Unavailable if the database is unavailable, and not only this piece of work failed."""
    if isinstance(error, Unavailable):
        await store.position()
