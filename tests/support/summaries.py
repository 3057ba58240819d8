"""Summing up hours, as the service `summaries` does."""

from routecast.ports import Store


async def sum_up(store: Store, before: int, limit: int | None = None) -> int:
    """Sum up the oldest hours that ended before a moment; return their number."""
    hours = (await store.unsummed(before=before))[:limit]
    for hour in hours:
        await store.summarise(hour)
    return len(hours)
