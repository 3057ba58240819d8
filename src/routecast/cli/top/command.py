"""`routecast top`: show a server's nodes and connections in a terminal."""

import asyncio
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console

from routecast.cli.credential import api_key
from routecast.cli.showing import run_until_left
from routecast.cli.terminal import BAD_USAGE, fail, say
from routecast.cli.top.app import TOP_SECONDS, Top
from routecast.cli.top.choice import Shown
from routecast.cli.top.screen import TopScreen
from routecast.cli.top.source import AdminSource, NoAnswer, Observed
from routecast.client.url import DEFAULT_SERVER, Server
from routecast.core.texts import shown as visible
from routecast.errors import BadParameter
from routecast.protocol import MAX_PAGE, ConnectionOrder

StreamProtocol = Literal["default", "routecast.v1.json", "routecast.v1.msgpack", "sse"]


def top(
    server: Annotated[str, typer.Option(metavar="URL", help="The server to ask.")] = DEFAULT_SERVER,
    sort: Annotated[ConnectionOrder, typer.Option(help="The order of connections.")] = "start",
    protocol: Annotated[
        StreamProtocol | None, typer.Option(help="Show only connections of this protocol.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="Show only connections of this subject.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Show only connections from this address.")
    ] = None,
    closed: Annotated[
        bool, typer.Option("--closed", help="Show the connections that were closed last.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_PAGE, help="The number of connections to ask for.")
    ] = 100,
    once: Annotated[bool, typer.Option("--once", help="Print the present state and exit.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the state of each second as one line of JSON.")
    ] = False,
) -> None:
    """Show the nodes and connections of a server in the terminal, live.

    Keys change the order and what is shown: ? lists them, q leaves.
    If the output is not a terminal, it prints the present state and exits, as with --once.
    With authentication, ROUTECAST_API_KEY needs the scope admin.

    Example: routecast top --sort bytes
    """
    try:
        target = Server.parse(server, "--server")
    except BadParameter as error:
        fail(error, BAD_USAGE)
    chosen = Shown(sort, protocol, subject, address, closed, limit)
    source, console = AdminSource(target, api_key()), Console(highlight=False)
    try:
        if json:
            code = run_until_left(_print_json(source, chosen, once=once))
        elif once or not console.is_terminal:
            code = run_until_left(_print_once(str(target), source, chosen, console))
        else:
            code = run_until_left(Top(str(target), source, chosen, console).run())
    except NoAnswer as error:
        fail(error)
    finally:
        source.close()
    raise typer.Exit(code)


async def _print_once(title: str, source: AdminSource, shown: Shown, console: Console) -> None:
    observed = await asyncio.to_thread(source.observe, shown)
    console.print(TopScreen(title, shown, observed))


async def _print_json(source: AdminSource, shown: Shown, *, once: bool) -> None:
    typer.echo(_line(await asyncio.to_thread(source.observe, shown)))
    while not once:
        await asyncio.sleep(TOP_SECONDS)
        try:
            typer.echo(_line(await asyncio.to_thread(source.observe, shown)))
        except NoAnswer as error:
            say(Console(stderr=True), error, "yellow")


def _line(observed: Observed) -> str:
    # A client may call itself anything.
    return visible(
        msgspec.json.encode({"nodes": observed.nodes, "connections": observed.page}).decode()
    )
