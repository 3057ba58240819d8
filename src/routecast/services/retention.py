"""Maintenance: what one of the nodes does now and then, beside all that is asked for.

Retention: old decisions and minutes go; totals, hours and the proof of them stay. Summaries: hours
that are over are summed up, so that history costs less to read. Neither ends for a failure: what
fails is put aside for a while, and the rest is done.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from routecast.core.caution import Caution
from routecast.core.decision import DAY, MINUTE
from routecast.errors import Unavailable
from routecast.ports import Clock, Cluster, Store
from routecast.services.supervisor import Supervisor

log = logging.getLogger(__name__)

# Rows dropped in one transaction: few enough that a commit waits for no more than milliseconds.
PRUNE_BATCH: Final = 2_000
# Between two looks for what is too old, in seconds.
PRUNE_INTERVAL: Final = 600.0
# A first look that fails is tried again after this time, in seconds: what was received before this
# process began is a witness of the clock, and what is received now is none.
AGAIN_SECONDS: Final = 0.2
# Between two looks for hours that are over, in seconds.
SUMMARISE_INTERVAL: Final = 60.0
# An hour is left alone for this time after its end: most decisions that come late have come then.
GRACE_PERIOD: Final = 5 * MINUTE
# An hour that could not be summed up is put aside for this time, in seconds.
ASIDE_SECONDS: Final = 600.0
# After each piece of work, in seconds: the writer is left to those who wait for an answer.
RETENTION_REST_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many days decisions (since receipt) and minute rollups are kept."""

    decision_days: float = 30
    minute_days: float = 90


@dataclass(frozen=True, slots=True)
class Due:
    """Before which moments decisions (by receipt) and minutes are to be dropped, microseconds."""

    decisions: int
    minutes: int


def due(now: int, keep: Retention) -> Due:
    """Return what is older than it is to be kept."""
    return Due(int(now - keep.decision_days * DAY), int(now - keep.minute_days * DAY))


async def prune(store: Store, drop: Due) -> int:
    """Drop what is due; return how many rows that were."""
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
    """Return the seconds since the machine started, while it was suspended included."""
    # Only Linux has this clock; others count on, or not, as they do.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def run_retention(
    store: Store,
    cluster: Cluster,
    clock: Clock,
    keep: Retention,
    supervisor: Supervisor,
    elapsed: Callable[[], float] = elapsed_seconds,
) -> None:
    """Prune now and then, one of the nodes. Never ends; what fails is tried again.

    `elapsed` returns the seconds that have passed since some moment, whatever the clock says.
    """
    caution = Caution()
    while True:
        try:
            drop = await _trusted(store, clock.now(), int(elapsed() * 10**6), keep, caution)
            if drop is not None and await _is_ours(cluster, "retention", PRUNE_INTERVAL - 1):
                await _retain(store, drop, supervisor)
        except Unavailable as error:
            log.warning("Retention will be tried again: %s", error)
        except Exception as error:
            supervisor.failed("retention", error)
        await asyncio.sleep(PRUNE_INTERVAL if caution.has_looked else AGAIN_SECONDS)


async def _trusted(
    store: Store, now: int, elapsed: int, keep: Retention, caution: Caution
) -> Due | None:
    """Return what may be dropped by this clock; None where that is nothing."""
    span = await store.span()
    doubt = caution.look(now, elapsed, span)
    if doubt is not None:
        log.warning(
            "The clock may be wrong: %s. For a day, retention drops no minutes, and decisions in "
            "small parts only",
            doubt,
        )
        return None
    drop, kept = due(now, keep), int(keep.minute_days * DAY)
    return Due(
        caution.limit_decisions(drop.decisions, elapsed, span),
        caution.limit_minutes(drop.minutes, elapsed, span, kept),
    )


async def _retain(store: Store, drop: Due, supervisor: Supervisor) -> None:
    """Prune decisions and minutes; where one of both fails, the other goes on."""
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
    """Sums hours up. Run `run` as a task."""

    def __init__(
        self, store: Store, cluster: Cluster, clock: Clock, supervisor: Supervisor
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._supervisor = supervisor
        # The hours that failed, and when to try them again, by the monotonic clock. There are no
        # more than hours with decisions; those that need it no longer are dropped.
        self._aside: dict[int, float] = {}

    async def run(self) -> None:
        """Sum hours up now and then, one of the nodes. Never ends; what fails is tried again."""
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
    """Whether this node does some work: also while nodes cannot agree, for it is to be done."""
    try:
        return await cluster.claim(work, seconds)
    except Unavailable:
        return True


async def _raise_if_away(store: Store, error: Exception) -> None:
    """Raise Unavailable where the whole database is away, and not one piece of work at fault."""
    if isinstance(error, Unavailable):
        await store.position()
