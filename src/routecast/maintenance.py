"""Maintenance: what one of the nodes does now and then, beside all that is asked for.

Retention: old decisions and minutes go; totals, hours and the proof of them stay. Summaries: hours
that are over are summed up, so that history costs less to read.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from routecast.core.decision import DAY, MINUTE
from routecast.errors import Unavailable
from routecast.ports import Clock, Cluster, Store

log = logging.getLogger(__name__)

# Rows dropped in one transaction: few enough that a commit waits for no more than milliseconds.
STEP: Final = 2_000
# Between two looks for what is too old, in seconds.
EVERY: Final = 600.0
# Hours summed up in one transaction, for the same reason.
HOURS: Final = 2
# Between two looks for hours that are over, in seconds.
SUMMARISE_EVERY: Final = 60.0
# An hour is left alone for so long after its end: most decisions that come late have come then.
LATE: Final = 5 * MINUTE


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many days decisions (since receipt) and minute rollups are kept."""

    decision_days: float = 30
    minute_days: float = 90


async def prune(store: Store, clock: Clock, keep: Retention) -> int:
    """Drop what is older than it is to be kept; return how many rows that were."""
    now, total = clock.now(), 0
    while True:
        dropped = await store.prune(
            decisions_before=int(now - keep.decision_days * DAY),
            minutes_before=int(now - keep.minute_days * DAY),
            limit=STEP,
        )
        total += dropped
        if not dropped:
            return total
        # Leave the writer to those who wait for an answer.
        await asyncio.sleep(0.01)


async def run_retention(store: Store, cluster: Cluster, clock: Clock, keep: Retention) -> None:
    """Prune now and then, one of the nodes. Never ends; a database that is away is tried again."""
    while True:
        try:
            ours = await cluster.claim("retention", EVERY - 1)
            dropped = await prune(store, clock, keep) if ours else 0
            if dropped:
                log.info("Retention dropped %d rows", dropped)
        except Unavailable as error:
            log.warning("Retention will be tried again: %s", error)
        await asyncio.sleep(EVERY)


async def summarise(store: Store, clock: Clock) -> int:
    """Sum up the hours that are over; return how many."""
    total = 0
    while summed := await store.summarise(before=clock.now() - LATE, limit=HOURS):
        total += summed
        await asyncio.sleep(0.01)
    return total


async def run_summaries(store: Store, cluster: Cluster, clock: Clock) -> None:
    """Sum hours up now and then, one of the nodes. Never ends."""
    while True:
        try:
            if await cluster.claim("summaries", SUMMARISE_EVERY - 1):
                await summarise(store, clock)
        except Unavailable as error:
            log.warning("Summaries will be tried again: %s", error)
        await asyncio.sleep(SUMMARISE_EVERY)
