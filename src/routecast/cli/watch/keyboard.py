"""Reading single key presses from a terminal, whose settings are restored at the end."""

import asyncio
import os
import re
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# Escape sequences of arrows and function keys: their letters are not key presses.
_SEQUENCE: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)
END: Final = "\x04"  # as Ctrl-D: no more keys will come


@contextmanager
def keyboard(press: Callable[[str], None]) -> Iterator[bool]:
    """Report each key press within the context; gives whether there is a keyboard.

    Needs a running event loop. Ctrl-C stays a signal. At the end, also by an exception, the
    terminal gets its settings back.
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
        # Discard unread keys, so that the shell does not get them.
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
