"""Output to a terminal, and exit codes."""

import os
import shutil
import signal
import sys
import unicodedata
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130
TERMINATED = 143


def plain(text: object) -> str:
    """Return text from a file or a server without control characters or direction marks.

    A terminal obeys escape sequences in any text, so none may pass through.
    """
    return "".join(
        character if unicodedata.category(character)[0] != "C" else "\N{REPLACEMENT CHARACTER}"
        for character in str(text)
    )


def command_name() -> str:
    """Return how to call this command: by name, or by path if the name would not be found."""
    path = Path(sys.argv[0])
    if path.name != "routecast":
        return "python -m routecast"
    return "routecast" if shutil.which("routecast") else os.path.relpath(path)


def say(console: Console, message: object, style: str = "") -> None:
    """Print one untrusted line: no markup, no control characters, no cutting."""
    for line in str(message).split("\n"):
        console.print(Text(plain(line), style=style), soft_wrap=True)


def fail(message: object, code: int = FAILED) -> NoReturn:
    """Print an error on standard error and exit with `code`."""
    say(Console(stderr=True), f"routecast: {message}", "red")
    raise typer.Exit(code)


def unwind_on_sigterm() -> None:
    """On SIGTERM, exit through all context managers, so that a hidden cursor is shown again."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
