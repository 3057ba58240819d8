"""`routecast projects`: delete a project with all that it has."""

from typing import Annotated

import typer
from rich.console import Console

from routecast.adapters.clock import SystemClock
from routecast.cli.database import DatabaseOption, run_on_database
from routecast.cli.terminal import BAD_USAGE, FAILED, fail
from routecast.core.access import ALL_PROJECTS
from routecast.core.cardinality import OTHER
from routecast.core.texts import shown, spelling
from routecast.ports import Database, DeletedProject
from routecast.server.config import load_settings


def delete(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A project, as `names list` shows it.")
    ],
    database: DatabaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a project: its decisions, numbers, history and API keys.

    Keys for this project alone are revoked; keys for several lose it. It is one
    transaction: decisions sent meanwhile wait, or are answered with 503, to be
    sent again. Running servers show the change after at most 10 seconds.

    Decisions that are sent later with this project count again: revoke the
    tokens of its producers first. Backups still have the project.

    Example: routecast projects delete trial
    """
    now = SystemClock().now()

    async def change(store: Database) -> tuple[str, DeletedProject]:
        project, what = await _found(store, name)
        if not yes and not _confirmed(f"Delete {what}?"):
            raise typer.Exit(FAILED)
        with Console(stderr=True).status(f"Deleting {what}"):
            return project, await store.delete_project(project, now)

    url = load_settings(database_url=database).database_url
    project, gone = run_on_database(url, change)
    revoked = sum(key.revoked == now for key in gone.keys)
    typer.echo(
        f"Project `{shown(project)}` is deleted: {gone.decisions:,} stored decisions. "
        f"{revoked:,} keys are revoked; {len(gone.keys) - revoked:,} others are not for it any "
        "more."
    )


async def _found(store: Database, name: str) -> tuple[str, str]:
    """Return a project in the database, and what it has, for a question; exit if it is unknown."""
    if name in (OTHER, ALL_PROJECTS):
        fail(f"project `{name}`: it stands for several projects; give the name of one", BAD_USAGE)
    known = {one.name: one.count for one in await store.names() if one.part == "project"}
    by_look = {shown(one): one for one in known}
    project = next((one for one in (name, by_look.get(name)) if one in known), None)
    project = spelling(name) if project is None else project
    keys = (await store.access()).keys.values()
    its = [key for key in keys if key.projects is not None and project in key.projects]
    if project not in known and not its and not await store.has_decisions(project):
        fail(
            f"project {shown(name)!r}: no decision and no key has this name; see `routecast names "
            "list --part project`",
            BAD_USAGE,
        )
    what = f"{known.get(project, 0):,} decisions of project `{shown(project)}`"
    return project, f"{what}, and its part in {len(its):,} keys"


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(f"{question} This cannot be undone.")
    except typer.Abort:
        fail("no answer, so nothing was changed; --yes does it without asking", BAD_USAGE)
