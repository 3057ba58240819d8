"""`routecast restore`: replace a database with a backup."""

from pathlib import Path
from typing import Annotated

import typer

from routecast.cli.backup import position_text, run_with_progress
from routecast.cli.terminal import BAD_USAGE, fail, plain
from routecast.server.config import load_settings


def restore(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The file that `routecast backup` wrote.")
    ],
    database: Annotated[
        str | None,
        typer.Option(
            help="The database to replace (ROUTECAST_DATABASE_URL); no program may use it.",
            show_default="sqlite:///routecast.db",
        ),
    ] = None,
) -> None:
    """Replace a database with a backup. Stop all servers first.

    The backup is checked before anything changes. The replaced database is kept
    under another name, which is printed. The restored database begins a new epoch, so
    nodes and clients drop the numbers they had; Redis need not be emptied. API keys
    and revocations are those of the backup: revoke again what was revoked since.

    Example: routecast restore /backup/routecast.db
    """
    from routecast.server.databases import open_backups  # slow to import

    backups = open_backups(load_settings(database_url=database).database_url)
    if not source.is_file():
        fail(f"{source} is not a file: name what `routecast backup` wrote", BAD_USAGE)
    done = run_with_progress(lambda on_progress: backups.restore(source, on_progress))
    kept = ""
    if done.kept is not None:
        kept = f" The replaced database is kept in {plain(done.kept)}; remove it when all is well."
    typer.echo(
        f"Restored {done.decisions:,} decisions from {plain(source)}: "
        f"{position_text(done.position)}.{kept}"
    )
