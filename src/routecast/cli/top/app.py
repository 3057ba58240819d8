"""The interactive screen of `routecast top`: it asks every second, and handles key presses."""

import asyncio
import os
import signal
from contextlib import suppress
from typing import Final

from rich.console import Console
from rich.live import Live

from routecast.cli.top.choice import Shown
from routecast.cli.top.screen import TopScreen
from routecast.cli.top.source import AdminSource, NoAnswer, Observed
from routecast.cli.watch.keyboard import END, keyboard

# Seconds between two requests.
TOP_SECONDS: Final = 1.0


class Top:
    """One screen on one server."""

    def __init__(self, title: str, source: AdminSource, shown: Shown, console: Console) -> None:
        self._title = title
        self._source = source
        self._shown = shown
        self._console = console
        self._observed: Observed | None = None
        self._trouble = ""
        self._changed = asyncio.Event()
        self._asked_now = asyncio.Event()  # set to ask again without waiting
        self._keys = self._help = self._left = self._suspended = False

    async def run(self) -> None:
        """Show numbers and handle key presses until the user leaves.

        Raises NoAnswer if the server does not answer at first.
        """
        self._observed = await asyncio.to_thread(self._source.observe, self._shown)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTSTP, self._suspend)
        asking = asyncio.create_task(self._ask())
        try:
            while not self._left:
                live = Live(console=self._console, screen=True, auto_refresh=False)
                with live, keyboard(self._press) as self._keys:
                    while not (self._left or self._suspended):
                        live.update(self._screen(), refresh=True)
                        await self._changed.wait()
                        self._changed.clear()
                        if asking.done():
                            asking.result()
                if self._suspended:
                    # The terminal belongs to the shell until this process is continued.
                    os.kill(os.getpid(), signal.SIGSTOP)
                    self._suspended = False
        finally:
            asking.cancel()

    async def _ask(self) -> None:
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._asked_now.wait(), TOP_SECONDS)
                self._asked_now.clear()
                shown = self._shown
                try:
                    observed = await asyncio.to_thread(self._source.observe, shown)
                except NoAnswer as error:
                    self._trouble = str(error)
                else:
                    self._trouble = ""
                    if shown.closed == self._shown.closed:  # else the rows are of another kind
                        self._observed = observed
                self._changed.set()
        finally:
            self._changed.set()

    def _screen(self) -> TopScreen:
        return TopScreen(
            title=self._title,
            shown=self._shown,
            observed=self._observed,
            trouble=self._trouble,
            is_live=True,
            has_keys=self._keys,
            help=self._help,
        )

    def _press(self, key: str) -> None:
        if key in ("q", "Q", END):
            self._left = True
        elif key in ("?", "h"):
            self._help = not self._help
        else:
            shown = self._shown.pressed(key)
            if shown != self._shown:
                self._shown = shown
                self._asked_now.set()
        self._changed.set()

    def _suspend(self) -> None:
        self._suspended = True
        self._changed.set()
