"""`routecast demo`: run a server with simulated traffic."""

import asyncio
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from rich.console import Console

from routecast.cli.credential import api_key
from routecast.cli.demo.simulator import Arrival, arrivals
from routecast.cli.terminal import command_name, say
from routecast.client.recorder import Recorder
from routecast.client.url import DEFAULT_SERVER
from routecast.errors import BadSettings
from routecast.server.config import load_settings

_PORTS_TRIED: Final = 100
# Arrivals within _DEMO_TICK seconds are recorded at the same time. The recorder waits _LINGER
# seconds for all of them, so that they share a request.
_DEMO_TICK: Final = 0.05
_LINGER: Final = 0.01
# After a longer stop, in seconds (a laptop asleep), the traffic continues from now and does not
# catch up.
_FORGIVEN: Final = 5.0


def demo(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port.", show_default="8000, or the next free one")
    ] = None,
    rate: Annotated[
        float,
        typer.Option(metavar="X", min=0.1, max=2000, help="Decisions per second, on average."),
    ] = 20.0,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed: the same number gives the same traffic.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where decisions are kept.",
            show_default="a temporary one, removed at the end",
        ),
    ] = None,
) -> None:
    """Serve with simulated traffic, to see what Routecast shows.

    Arrivals and sizes are like those of real LLM services.
    Every decision has the project "demo".
    """
    from routecast.server.run import run  # slow to import, and only serving needs it

    console = Console(highlight=False)
    with _database(database) as url:
        settings = load_settings(
            host=host, port=port, database_url=url, log_level="warning", notice="Simulated traffic"
        )
        if "port" not in settings.model_fields_set:
            free = _free_port(settings.host, settings.port)
            if free != settings.port:
                say(console, f"Port {settings.port} is in use; using {free}.", "yellow")
            settings = settings.model_copy(update={"port": free})

        async def on_started(address: str) -> None:
            _welcome(console, address, rate, temporary=database is None)
            await send(address, arrivals(seed, rate))

        code = run(settings, on_started=on_started)
    say(console, "\nStopped.")
    raise typer.Exit(code)


@contextmanager
def _database(url: str | None) -> Iterator[str]:
    """Yield a database's URL: the given one, or that of a temporary one, removed at the end."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="routecast-demo-") as folder:
        yield f"sqlite:///{folder}/demo.db"


def _free_port(host: str, first: int) -> int:
    """Return the first free port from `first` on, or `first` if all are in use."""
    from routecast.server.run import bind

    for port in range(first, min(first + _PORTS_TRIED, 65536)):
        try:
            bind(host, port).close()
        except BadSettings:
            continue
        return port
    return first


def _welcome(console: Console, address: str, rate: float, *, temporary: bool) -> None:
    watch = f"{command_name()} watch" + (
        "" if address == DEFAULT_SERVER else f" --server {address}"
    )
    lines = (
        ("", ""),
        (f"Routecast is running, with simulated traffic: {rate:g} decisions per second.", "bold"),
        ("", ""),
        (f"  in a browser   {address}/", "cyan"),
        (f"  in a terminal  {watch}", "cyan"),
        ("", ""),
        ("Ctrl-C stops it" + (" and removes its temporary database." if temporary else "."), ""),
    )
    for line, style in lines:
        say(console, line, style)


async def send(address: str, traffic: Iterator[Arrival]) -> None:
    """Record arrivals at a server when they are due, until cancelled."""
    # No warning about decisions that are lost when the server stops: they are simulated.
    logging.getLogger("routecast.client").setLevel(logging.ERROR)
    # The settings of the environment may turn authentication on.
    recorder = Recorder(address, linger=_LINGER, token=api_key())
    began = time.monotonic()
    try:
        for at, decision in traffic:
            ahead = began + at - time.monotonic()
            if ahead < -_FORGIVEN:
                began -= ahead
            elif ahead > 0:
                # Waiting at least a whole tick lets arrivals within it share a request.
                await asyncio.sleep(max(ahead, _DEMO_TICK))
            recorder.record(decision)
    finally:
        recorder.close(timeout=0)
