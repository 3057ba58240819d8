"""`routecast verify`: recount a database, and print what differs."""

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from routecast.ports import COMPARING, COUNTING, Checked, Difference, Store
from routecast.server.config import load_settings

MAX_FINDINGS_SHOWN = 50


def verify(
    database: Annotated[
        str | None,
        typer.Option(
            help="The database to check (ROUTECAST_DATABASE_URL); a server may run on it.",
            show_default="sqlite:///routecast.db",
        ),
    ] = None,
) -> None:
    """Check the database, recount the rollups from the decisions, print differences.

    First the database engine checks its own files, if it can. Faults that verify cannot detect are
    listed at the end.

    Exits with 0 if there are no differences, 1 if there are some or if the database cannot be read
    now, and 2 if there is no database of Routecast.
    """
    from routecast.server.databases import open_store  # slow to import

    store = open_store(load_settings(database_url=database).database_url, create=False)
    differences = asyncio.run(_verify(store))
    raise typer.Exit(1 if differences else 0)


async def _verify(store: Store) -> int:
    out, progress_out = Console(), Console(stderr=True)
    differences = 0
    decisions: int | None = None  # not known yet
    await store.open()
    try:
        with Progress(
            console=progress_out, transient=True, disable=not progress_out.is_terminal
        ) as progress:
            task = progress.add_task("starting", total=None)
            async for found in store.verify():
                if isinstance(found, Checked):
                    if found.stage in (COUNTING, COMPARING):
                        decisions = found.of
                    progress.update(
                        task, description=found.stage, completed=found.done, total=found.of or 1
                    )
                    continue
                differences += 1
                if differences <= MAX_FINDINGS_SHOWN:
                    _show(out, found)
    finally:
        await store.close()
    if differences > MAX_FINDINGS_SHOWN:
        out.print(f"… and {differences - MAX_FINDINGS_SHOWN} more")
    counted = None if decisions is None else f"{decisions:,} decisions"
    if differences:
        over = f" over {counted}" if counted else ""
        out.print(f"{differences} differences{over}", style="bold red")
    else:
        out.print(f"Rollups equal a recount of {counted or 'the decisions'}.", style="green")
    if store.unverifiable:
        out.print("It cannot detect:", style="dim")
        for what in store.unverifiable:
            out.print(f"- {what}", style="dim", markup=False)
    return differences


def _show(out: Console, found: Difference) -> None:
    out.print(f"{found.what}\n  expected {found.expected}\n  found    {found.found}", markup=False)
