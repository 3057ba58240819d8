"""Keys, one by one as they are pressed, and a terminal that is left as it was."""

import asyncio
import os
import re
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# What arrows and function keys send: nobody pressed the letters in it.
_SEQUENCE: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)
END: Final = "\x04"  # as Ctrl-D: no more keys will come


@contextmanager
def keyboard(press: Callable[[str], None]) -> Iterator[bool]:
    """Tell of each key until the end; yields whether there is a keyboard at all.

    Needs a running event loop. Ctrl-C stays a signal. However it ends, the terminal gets back the
    settings that it had.
    """
    if not sys.stdin.isatty():
        yield False
        return
    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()

    def read() -> None:
        data = os.read(terminal, 1024)
        if not data:
            loop.remove_reader(terminal)
        for key in _SEQUENCE.sub("", data.decode(errors="ignore")) if data else END:
            press(key)

    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield True
    finally:
        loop.remove_reader(terminal)
        # What was typed and not read is not for the shell.
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
