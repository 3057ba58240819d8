"""The command `routecast`."""

import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from routecast.cli.backup import backup
from routecast.cli.bench import bench
from routecast.cli.demo import demo
from routecast.cli.names import fold, forget, list_names
from routecast.cli.replay import replay
from routecast.cli.restore import restore
from routecast.cli.serve import serve
from routecast.cli.verify import verify
from routecast.cli.watch import watch
from routecast.errors import BadSettings, RoutecastError


class _Command(TyperCommand):
    """A command whose help shows a flag as its name alone; typer would add `<bool>`."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_flags(super().get_params(ctx))


class _Group(TyperGroup):
    """The same of the command itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_flags(super().get_params(ctx))


def _plain_flags(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="routecast",
    cls=_Group,
    help="Live, exact metrics of LLM routing decisions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"routecast {metadata.version('routecast')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    pass


for _command in (serve, demo, replay, watch, bench, verify, backup, restore):
    app.command(cls=_Command)(_command)


_names = typer.Typer(
    cls=_Group,
    help="List the names in a database, and make room for others.",
    no_args_is_help=True,
)
_names.command("list", cls=_Command)(list_names)
_names.command("fold", cls=_Command)(fold)
_names.command("forget", cls=_Command)(forget)
app.add_typer(_names, name="names")


def main() -> None:
    """Run the command; a foreseen error is one line and an exit code, never a traceback."""
    try:
        app()
    except BadSettings as error:
        typer.echo(f"routecast: {error}", err=True)
        sys.exit(2)
    except RoutecastError as error:
        typer.echo(f"routecast: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
