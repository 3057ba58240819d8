"""`routecast serve`: run the server."""

from typing import Annotated

import typer

from routecast.server.config import load_settings


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            help="Where decisions are kept (ROUTECAST_DATABASE_URL).",
            show_default="sqlite:///routecast.db",
        ),
    ] = None,
    redis: Annotated[
        str | None, typer.Option(help="Redis URL, for many nodes (ROUTECAST_REDIS_URL).")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            help="all; or stream, which takes no decisions and needs no database.",
            show_default="all",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Worker processes that share the port; more than 1 requires PostgreSQL and Redis.",
            show_default="1",
        ),
    ] = None,
    fd: Annotated[
        int | None, typer.Option(help="Listen on this file descriptor, not on a port.")
    ] = None,
    interval: Annotated[
        float | None, typer.Option(help="Seconds between frames, 0.1 to 60.", show_default="5")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", show_default="info")
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            help="text; or json, with one object per line and the audit log.", show_default="text"
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure",
            help="Accept connections from other machines without authentication, and credentials "
            "over plain HTTP.",
        ),
    ] = None,
) -> None:
    """Receive decisions and stream metrics.

    Each option is also an environment variable, such as ROUTECAST_PORT; the option wins. More
    settings, such as retention and limits, are environment variables only: see docs/settings.md.
    """
    # Importing the server takes longer than other commands take to run.
    from routecast.server.run import run

    settings = load_settings(
        host=host,
        port=port,
        database_url=database,
        redis_url=redis,
        role=role,
        workers=workers,
        fd=fd,
        interval=interval,
        log_level=log_level,
        log_format=log_format,
        insecure=insecure,
    )
    raise typer.Exit(run(settings))
