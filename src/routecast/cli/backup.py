"""`routecast backup`: copy a database to a file while servers use it."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress

from routecast.cli.terminal import BAD_USAGE, fail, plain, unwind_on_sigterm
from routecast.ports import Checked
from routecast.protocol import Position
from routecast.server.config import load_settings

T = TypeVar("T")


def backup(
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The file to write; its folder must exist.")
    ],
    database: Annotated[
        str | None,
        typer.Option(
            help="The database (ROUTECAST_DATABASE_URL); servers may run on it.",
            show_default="sqlite:///routecast.db",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace TARGET if it exists.")] = False,
) -> None:
    """Copy a database to a file, as of one moment, while servers use it.

    The copy is read back and checked. TARGET appears when all of it is on disk.
    If anything fails, there is no such file, or the old one is still there.
    `routecast restore` puts it back; `routecast verify` checks its sums.

    Example: routecast backup /backup/routecast.db
    """
    from routecast.server.databases import open_backups  # slow to import

    backups = open_backups(load_settings(database_url=database).database_url)
    if target.is_dir():
        fail(f"{target} is a folder: name a file in it", BAD_USAGE)
    if backups.holds(target):
        fail(f"{target} is a file of the database itself: name another file", BAD_USAGE)
    if target.exists() and not force:
        fail(f"{target} exists: name another file, or add --force to replace it", BAD_USAGE)
    if not target.parent.is_dir():
        fail(f"{target.parent} is not a folder: make it first", BAD_USAGE)
    with _written_whole(target) as unnamed:
        done = run_with_progress(lambda on_progress: backups.backup(unnamed, on_progress))
    typer.echo(
        f"Backed up {done.decisions:,} decisions ({size_text(done.size)}) to {plain(target)}: "
        f"{position_text(done.position)}."
    )


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary path; the file gets its own name when the body has written all of it."""
    unnamed = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        yield unnamed
        os.replace(unnamed, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        for left in unnamed.parent.glob(f"{_literal(unnamed.name)}*"):
            left.unlink(missing_ok=True)


def size_text(size: int) -> str:
    """Return a number of bytes as a message shows it: 812 bytes, 12.3 MB."""
    if size < 1_000:
        return f"{size} bytes"
    shown, units = size / 1_000, iter(("kB", "MB", "GB"))
    unit = next(units)
    while shown >= 999.95 and (larger := next(units, None)):
        shown, unit = shown / 1_000, larger
    return f"{shown:,.1f} {unit}"


def position_text(position: Position) -> str:
    """Return a position as a message shows it."""
    return f"epoch {position.epoch}, seq {position.seq:,}"


def _literal(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def run_with_progress(
    work: Callable[[Callable[[Checked], None]], Coroutine[Any, Any, T]],
) -> T:
    """Run work that reports its progress, and show that on standard error."""
    unwind_on_sigterm()
    out = Console(stderr=True)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("opening", total=None)

        def on_progress(at: Checked) -> None:
            progress.update(task, description=at.stage, completed=at.done, total=at.of or 1)

        return asyncio.run(work(on_progress))
