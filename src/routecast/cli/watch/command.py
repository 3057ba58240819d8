"""`routecast watch`: show the dashboard's numbers in a terminal, live."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Annotated, Any, Final, Literal

import msgspec
import typer
from rich.console import Console

from routecast.cli.credential import api_key
from routecast.cli.showing import run_until_left
from routecast.cli.terminal import BAD_USAGE, FAILED, command_name, fail, say
from routecast.cli.watch.app import WATCHED_FIELDS, show_live, status
from routecast.cli.watch.options import Choice
from routecast.cli.watch.screen import Screen
from routecast.client import BadRequest, Health, Metrics, Refused, State, connect
from routecast.client.url import DEFAULT_SERVER, Server
from routecast.core.texts import shown
from routecast.errors import BadParameter
from routecast.protocol import MAX_INTERVAL, MIN_INTERVAL

# The time to wait for the first numbers, and between two checks whether they can come, in seconds.
_LOOK: Final = 0.05
_TRIES: Final = 200

Window = Literal["all", "5m", "1h", "24h", "7d"]
NamesOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Show only these; repeatable.")
]


def watch(
    server: Annotated[
        str, typer.Option(metavar="URL", help="The server to watch.")
    ] = DEFAULT_SERVER,
    interval: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=MIN_INTERVAL,
            max=MAX_INTERVAL,
            help="Seconds between two updates.",
        ),
    ] = 1.0,
    window: Annotated[Window, typer.Option(help="The time up to now that counts.")] = "all",
    strategy: NamesOption = None,
    provider: NamesOption = None,
    model: NamesOption = None,
    project: NamesOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print one update and exit.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print each change as one line of JSON.")
    ] = False,
) -> None:
    """Show a server's metrics in the terminal, live.

    Keys change window, filter and interval: ? lists them, q leaves.
    If the output is not a terminal, it prints one update and exits, as with --once.
    If the server needs a token or an API key, set ROUTECAST_API_KEY.

    Example: routecast watch --window 5m --provider gemini --provider claude
    """
    try:
        target = Server.parse(server, "--server")
    except BadParameter as error:
        fail(error, BAD_USAGE)
    # The client's warnings are shown on the screen.
    logging.getLogger("routecast.client").addHandler(logging.NullHandler())
    names = [tuple(given or ()) for given in (strategy, provider, model, project)]
    choice = Choice(window, interval, *names)
    token = api_key()
    console = Console(highlight=False)
    if json:
        raise typer.Exit(_run(_print_json(target, token, choice, once=once)))
    if once or not console.is_terminal:
        raise typer.Exit(_run(_print_once(target, token, choice, console)))
    raise typer.Exit(_run(show_live(target, token, choice, console)))


async def _print_once(target: Server, token: str | None, choice: Choice, console: Console) -> None:
    metrics, health = await _first(target, token, choice)
    console.print(Screen(str(target), choice.words, status(health, known=True), metrics))


async def _print_json(target: Server, token: str | None, choice: Choice, *, once: bool) -> None:
    if once:
        metrics, _ = await _first(target, token, choice)
        typer.echo(_line(metrics))
        return
    async with connect(target.url, token=token, on_change=_print_health) as client:
        async for metrics in await client.subscribe(fields=WATCHED_FIELDS, **choice.asked):
            typer.echo(_line(metrics))


def _line(metrics: Metrics) -> str:
    # Names stored by an old server may contain control characters.
    return shown(msgspec.json.encode({**metrics.data, "timestamp": metrics.timestamp}).decode())


def _print_health(health: Health) -> None:
    if health.retry_in is not None:
        words = f"{health.trouble}; trying again in {health.retry_in:.1f} s"
        say(Console(stderr=True), words, "yellow")


async def _first(target: Server, token: str | None, choice: Choice) -> tuple[Metrics, Health]:
    """Return the first metrics; exit if the first attempt brings none."""
    async with connect(target.url, token=token) as client:
        feed = await client.subscribe(fields=WATCHED_FIELDS, **choice.asked)
        first = asyncio.ensure_future(anext(feed))
        try:
            for _ in range(_TRIES):
                await asyncio.wait([first], timeout=_LOOK)
                if first.done():
                    return first.result(), feed.health
                health = feed.health
                if health.state is State.RECONNECTING:
                    serve = f"{command_name()} serve"
                    fail(f"cannot reach {target}: {health.trouble}. Is it running ({serve})?")
                if health.trouble:
                    fail(f"the server answers “{health.trouble}”")
            fail(f"{target} is connected, but receives nothing")
        finally:
            first.cancel()  # or asyncio would report an exception that was never retrieved


def _run(showing: Coroutine[Any, Any, None]) -> int:
    """Run until the end, Ctrl-C, a closed pipe or SIGTERM; then restore the terminal."""
    try:
        return run_until_left(showing)
    except (BadRequest, Refused) as error:
        bad_usage = isinstance(error, BadRequest)
        fail(f"the server refused the stream: {error}", BAD_USAGE if bad_usage else FAILED)
    except (msgspec.ValidationError, ArithmeticError, RecursionError) as error:
        # ArithmeticError: numbers that are larger than any of Routecast's.
        fail(f"the server's messages are not Routecast's: {error}")
