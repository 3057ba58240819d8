"""`routecast names`: list the names in a database, and make room for others."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from routecast.cli.database import DatabaseOption, run_on_database
from routecast.cli.terminal import BAD_USAGE, FAILED, fail
from routecast.core.cardinality import NAMED, OTHER
from routecast.core.texts import shown, spelling
from routecast.ports import Database, NameUse
from routecast.server.config import load_settings

NamePart = Literal["strategy", "provider", "model", "project"]
_PartArgument = Annotated[NamePart, typer.Argument(metavar="PART", help="The kind of the names.")]
_Given = Annotated[list[str], typer.Argument(metavar="NAME...", help="As `names list` shows them.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]

_SHOWN_AT_MOST = 5  # in an error


def list_names(
    part: Annotated[NamePart | None, typer.Option(help="Only names of this part.")] = None,
    database: DatabaseOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List names: how many decisions each has, and when it was first and last seen.

    Each part (strategy, provider, model, project) has room for
    ROUTECAST_MAX_NAMES names; further names count as `other`.
    """
    settings = load_settings(database_url=database)
    uses = run_on_database(settings.database_url, lambda store: store.names())
    parts = [part] if part else list(NAMED)
    uses = [one for one in uses if one.part in parts]
    if json:
        document = {"limit": settings.max_names, "names": list(map(_document, uses))}
        typer.echo(shown(msgspec.json.encode(document).decode()))
        return
    out = Console(highlight=False)
    for chosen in parts:
        _show(out, chosen, [one for one in uses if one.part == chosen], settings.max_names)


def fold(
    part: _PartArgument, names: _Given, database: DatabaseOption = None, yes: _Yes = False
) -> None:
    """Count names as `other`: their decisions so far, and all later ones.

    This makes room for new names. Totals stay the same, but the numbers of
    these names cannot be separated from `other` afterwards. It is one
    transaction: decisions sent meanwhile wait, or are answered with 503, to be
    sent again. Running servers show the change after at most 10 seconds.

    Example: routecast names fold model test-1 test-2
    """
    _change(part, names, database, remember=True, yes=yes)


def forget(
    part: _PartArgument, names: _Given, database: DatabaseOption = None, yes: _Yes = False
) -> None:
    """Count the decisions of names so far as `other`, but not later ones.

    As `names fold`, but later decisions with one of these names count under it
    again, if there is room. This also allows a folded name again. Decisions that
    were counted as `other` stay there.

    Example: routecast names forget project trial
    """
    _change(part, names, database, remember=False, yes=yes)


def _change(
    part: str, given: Sequence[str], database: str | None, *, remember: bool, yes: bool
) -> None:
    async def change(store: Database) -> str:
        chosen = _chosen(part, given, await store.names())
        if remember and all(one.folded and not one.count for one in chosen):
            fail(f"{_listing(chosen)}: folded already; `names forget` undoes it", BAD_USAGE)
        decisions = sum(one.count for one in chosen)
        what = f"{decisions:,} decisions of {part} {_listing(chosen)}"
        if not yes and not _confirmed(f"Count {what} as `{OTHER}`?"):
            raise typer.Exit(FAILED)
        with Console(stderr=True).status(f"Counting {decisions:,} decisions as `{OTHER}`"):
            await store.fold_names(part, [one.name for one in chosen], remember=remember)
        return what

    what = run_on_database(load_settings(database_url=database).database_url, change)
    after = "later ones, too" if remember else "later ones under their own name, if there is room"
    typer.echo(f"{what} count as `{OTHER}` now; {after}.")


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(f"{question} This cannot be undone.")
    except typer.Abort:
        fail("no answer, so nothing was changed; --yes does it without asking", BAD_USAGE)


def _chosen(part: str, given: Iterable[str], held: Iterable[NameUse]) -> list[NameUse]:
    """Return the names in the database that the arguments name; exit if one is unknown."""
    known = {one.name: one for one in held if one.part == part}
    by_look = {shown(name): name for name in known}
    chosen: dict[str, NameUse] = {}
    for name in given:
        found = next(
            (one for one in (name, spelling(name), by_look.get(name)) if one in known), None
        )
        if name == OTHER:
            fail(f"{part} `{OTHER}`: names are folded into it; give another name", BAD_USAGE)
        if found is None:
            _unknown(part, name, list(by_look))
        chosen[found] = known[found]
    return list(chosen.values())


def _unknown(part: str, name: str, known: Sequence[str]) -> NoReturn:
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"see `names list --part {part}`"
    fail(f"{part} {shown(name)!r}: no decision has this name; {hint}", BAD_USAGE)


def _listing(uses: Sequence[NameUse]) -> str:
    names = [f"`{shown(one.name)}`" for one in uses[:_SHOWN_AT_MOST]]
    more = len(uses) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _document(use: NameUse) -> dict[str, Any]:
    return {
        "part": use.part,
        "name": use.name,
        "decisions": use.count,
        "first_hour": _moment(use.first),
        "last_hour": _moment(use.last),
        "folded": use.folded,
    }


def _moment(second: int | None) -> str | None:
    if second is None:
        return None
    return datetime.fromtimestamp(second, UTC).isoformat().replace("+00:00", "Z")


def _show(out: Console, part: str, uses: Sequence[NameUse], limit: int) -> None:
    used = sum(one.count > 0 and one.name != OTHER for one in uses)
    table = Table(
        title=f"{part}: {used:,} of {limit:,} names", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("Name", overflow="fold")
    table.add_column("Decisions", justify="right", no_wrap=True)
    table.add_column("First seen", no_wrap=True)
    table.add_column("Last seen", no_wrap=True)
    for one in uses:
        name = shown(one.name) + (" (folded)" if one.folded else "")
        table.add_row(Text(name), f"{one.count:,}", _hour(one.first), _hour(one.last))
    out.print(table)
    out.print()


def _hour(second: int | None) -> str:
    return "" if second is None else f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d %H:00Z}"
