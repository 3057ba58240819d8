"""The interactive screen of `routecast watch`: live numbers and key presses."""

import asyncio
import math
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from rich.console import Console
from rich.live import Live

from routecast.cli.watch import format as fmt
from routecast.cli.watch.keyboard import END, keyboard
from routecast.cli.watch.options import Choice
from routecast.cli.watch.rate_history import RateHistory
from routecast.cli.watch.screen import Screen, StatusLine
from routecast.client import Client, Health, Metrics, Source, State, Subscription, connect
from routecast.client.url import Server

WATCHED_FIELDS: Final = (
    "total_decisions",
    "avg_confidence",
    "strategy_performance",
    "confidence_distribution",
    "provider_usage",
    "cost",
    "latency_ms",
    "errors",
    "rate",
)
_REDRAW: Final = 0.5
# A user often presses a key several times, so a choice is requested only after this time, in
# seconds.
_SETTLED: Final = 0.3


async def show_live(target: Server, token: str | None, choice: Choice, console: Console) -> None:
    """Show the screen until the user leaves. Raises what `Subscription` raises."""
    async with connect(target.url, token=token) as client:
        await Watcher(target, client, choice, console).run()


def status(health: Health, *, known: bool) -> StatusLine:
    """Return the state of the connection and, if the numbers are not fresh, their age."""
    old = "" if health.age is None or not known else f", numbers {fmt.age(health.age)} old"
    match health.state:
        case State.CONNECTED if health.source in (Source.CACHE, Source.DATABASE):
            return StatusLine(f"live, from the {health.source}", "green", fresh=True)
        case State.CONNECTED:
            return StatusLine("live", "green", fresh=True)
        case State.STALE:
            return StatusLine(f"stale: {health.trouble}{old}", "red", fresh=False)
        case State.RECONNECTING if health.retry_in:
            left = max(1, math.ceil(health.retry_in))
            return StatusLine(
                f"reconnecting in {left} s: {health.trouble}{old}", "yellow", fresh=False
            )
        case State.RECONNECTING:
            return StatusLine(f"reconnecting: {health.trouble}{old}", "yellow", fresh=False)
    return StatusLine(str(health.state), "yellow", fresh=False)


class Watcher:
    """One screen on one client; a new choice is a new subscription on it."""

    def __init__(self, target: Server, client: Client, choice: Choice, console: Console) -> None:
        self._target = target
        self._client = client
        self._console = console
        self._choice = self._followed = choice
        self._chosen_at = -math.inf
        self._known: dict[str, Sequence[str]] = {}
        self._metrics: Metrics | None = None
        self._history = RateHistory(choice.window, choice.interval)
        self._changed = asyncio.Event()
        self._keys = self._help = self._left = self._suspended = False

    async def run(self) -> None:
        """Show numbers and handle key presses until the user leaves."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTSTP, self._suspend)
        feed, reader = await self._follow()
        try:
            while not self._left:
                live = Live(console=self._console, screen=True, auto_refresh=False)
                with live, keyboard(self._press) as self._keys:
                    while not (self._left or self._suspended):
                        if self._settled:
                            await feed.close()
                            await reader
                            feed, reader = await self._follow()
                        self._draw(live, feed.health)
                        await self._wait_for_changes(reader)
                if self._suspended:
                    # The terminal belongs to the shell until this process is continued.
                    os.kill(os.getpid(), signal.SIGSTOP)
                    self._suspended = False
        finally:
            reader.cancel()

    async def _follow(self) -> tuple[Subscription, asyncio.Task[None]]:
        if self._choice != self._followed:
            self._history = RateHistory(self._choice.window, self._choice.interval)
        self._followed = self._choice
        feed = await self._client.subscribe(fields=WATCHED_FIELDS, **self._choice.asked)
        return feed, asyncio.create_task(self._read(feed))

    async def _read(self, feed: Subscription) -> None:
        async for metrics in feed:
            self._metrics = metrics
            self._history.arrived(metrics)
            for part, names in (
                ("strategy", metrics.strategy_performance),
                ("provider", metrics.provider_usage),
            ):
                if part not in self._followed.filters:  # else these are not all
                    self._known[part] = tuple(names)
            self._changed.set()

    async def _wait_for_changes(self, reader: asyncio.Task[None]) -> None:
        """Wait for numbers or a key, at most until ages and countdowns must be redrawn."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), _REDRAW)
        self._changed.clear()
        if reader.done():
            reader.result()

    def _draw(self, live: Live, health: Health) -> None:
        shown = status(health, known=self._metrics is not None)
        self._history.passed(fresh=shown.fresh)
        live.update(
            Screen(
                title=str(self._target),
                asked=self._choice.words,
                status=shown,
                metrics=self._metrics,
                history=self._history,
                keys=self._choice if self._keys else None,
                help=self._help,
            ),
            refresh=True,
        )

    @property
    def _settled(self) -> bool:
        """Whether there is a new choice that has not changed for _SETTLED seconds."""
        rest = time.monotonic() - self._chosen_at
        return self._choice != self._followed and rest >= _SETTLED

    def _press(self, key: str) -> None:
        if key in ("q", "Q", END):
            self._left = True
        elif key in ("?", "h"):
            self._help = not self._help
        else:
            choice = self._choice.pressed(key, self._known)
            if choice != self._choice:
                self._choice, self._chosen_at = choice, time.monotonic()
        self._changed.set()

    def _suspend(self) -> None:
        self._suspended = True
        self._changed.set()
