"""Work on a database that servers may be running on."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer

from routecast.ports import Database

T = TypeVar("T")

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        help="The database (ROUTECAST_DATABASE_URL); servers may run on it.",
        show_default="sqlite:///routecast.db",
    ),
]


def run_on_database(
    url: str, work: Callable[[Database], Coroutine[Any, Any, T]], *, create: bool = False
) -> T:
    """Open a database for some work, and return its result. Raises BadDatabase, Unavailable.

    With `create`, make the database if there is none.
    """
    from routecast.server.databases import create_database, open_store  # slow to import

    async def run() -> T:
        if create:
            await create_database(url)
        store = open_store(url, create=False)
        try:
            await store.open()
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())
