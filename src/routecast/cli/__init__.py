"""`main`: the command `routecast`, with its subcommands by name."""

import sys
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from routecast.errors import BadSettings, RoutecastError

# The module and function of each command. A module is imported when its command runs: importing all
# of them would take a third of a server's start.
_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("serve", "serve"),
    "demo": ("demo.command", "demo"),
    "replay": ("replay.command", "replay"),
    "watch": ("watch.command", "watch"),
    "top": ("top.command", "top"),
    "bench": ("bench.command", "bench"),
    "verify": ("verify", "verify"),
    "backup": ("backup", "backup"),
    "restore": ("restore", "restore"),
}
_NAMES: Final[dict[str, tuple[str, str]]] = {
    "list": ("names", "list_names"),
    "fold": ("names", "fold"),
    "forget": ("names", "forget"),
}
_PROJECTS: Final[dict[str, tuple[str, str]]] = {
    "delete": ("projects", "delete"),
}
_KEYS: Final[dict[str, tuple[str, str]]] = {
    "create": ("keys", "create"),
    "list": ("keys", "list_keys"),
    "revoke": ("keys", "revoke"),
    "rotate": ("keys", "rotate"),
    "delete": ("keys", "delete"),
}
_TOKENS: Final[dict[str, tuple[str, str]]] = {
    "create": ("token", "create"),
    "revoke": ("revocations", "revoke"),
    "revocations": ("revocations", "list_revocations"),
    "allow": ("revocations", "allow"),
}


class _Command(TyperCommand):
    """A command whose help shows only the names of flags; typer would add `<bool>`."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_flags(super().get_params(ctx))


class _Group(TyperGroup):
    """Commands that are imported when they run; flags are shown as in `_Command`."""

    commands_in: dict[str, tuple[str, str]]

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_flags(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.commands_in, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands_in:
            return super().get_command(ctx, cmd_name)
        module, function = self.commands_in[cmd_name]
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name, cls=_Command)(
            getattr(import_module(f"routecast.cli.{module}"), function)
        )
        return typer.main.get_command(alone)


class _Commands(_Group):
    commands_in = _COMMANDS


class _Names(_Group):
    commands_in = _NAMES


class _Projects(_Group):
    commands_in = _PROJECTS


class _Keys(_Group):
    commands_in = _KEYS


class _Token(_Group):
    commands_in = _TOKENS


def _plain_flags(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="routecast",
    cls=_Commands,
    help="Live, exact metrics of LLM routing decisions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # slow to import

        typer.echo(f"routecast {version('routecast')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


_names = typer.Typer(
    cls=_Names,
    help="List the names in a database, and make room for others.",
    no_args_is_help=True,
)


@_names.callback()
def _names_options() -> None:
    pass


app.add_typer(_names, name="names")

_projects = typer.Typer(
    cls=_Projects,
    help="Delete a project with all that it has.",
    no_args_is_help=True,
)


@_projects.callback()
def _projects_options() -> None:
    pass


app.add_typer(_projects, name="projects")

_keys = typer.Typer(
    cls=_Keys,
    help="Create, list, rotate and revoke API keys.",
    no_args_is_help=True,
)


@_keys.callback()
def _keys_options() -> None:
    pass


app.add_typer(_keys, name="keys")

_token = typer.Typer(
    cls=_Token,
    help="Make tokens, for teams without an identity provider, and revoke tokens.",
    no_args_is_help=True,
)


@_token.callback()
def _token_options() -> None:
    pass


app.add_typer(_token, name="token")


def main() -> None:
    """Run the command; an expected error is one line and an exit code, never a traceback."""
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
