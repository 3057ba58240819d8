"""`routecast watch`: the dashboard's numbers in a terminal, as they move."""

import asyncio
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from routecast.cli import figures
from routecast.cli.panels import Screen, Status
from routecast.cli.stream import Connecting, Event, Frame, Refused, Silent, Waiting, follow
from routecast.cli.terminal import BAD_USAGE, FAILED, TERMINATED, command_name, fail, say
from routecast.client.address import DEFAULT_SERVER, Server
from routecast.errors import BadParameter
from routecast.protocol import DEFAULT_FIELDS, MAX_INTERVAL, MIN_INTERVAL

_FIELDS: Final = (*DEFAULT_FIELDS, "cost", "latency_ms", "errors", "rate")
_FIRST_DECISION: Final = """  --json '{"strategy":"hybrid","provider":"gemini"}'"""
_REDRAW: Final = 0.5
# Closer than this, a difference of totals is mostly noise.
_SHORTEST_STEP: Final = 0.5

Window = Literal["all", "5m", "1h", "24h", "7d"]
Names = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these; repeatable.")]


def watch(
    server: Annotated[
        str, typer.Option(metavar="URL", help="The server to watch.")
    ] = DEFAULT_SERVER,
    interval: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=MIN_INTERVAL, max=MAX_INTERVAL, help="Between updates."
        ),
    ] = 1.0,
    window: Annotated[Window, typer.Option(help="How far back the numbers reach.")] = "all",
    strategy: Names = None,
    provider: Names = None,
    model: Names = None,
    project: Names = None,
    once: Annotated[bool, typer.Option("--once", help="Print one update and end.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print each update as one line of JSON.")
    ] = False,
) -> None:
    """Show a server's metrics in the terminal, live.

    Where output is not a terminal, it prints one update and ends, as with --once.
    Ctrl-C leaves.

    Example: routecast watch --window 5m --provider gemini --provider claude
    """
    try:
        target = Server.parse(server)
    except BadParameter as error:
        fail(error, BAD_USAGE)
    filters = [
        (name, value)
        for name, values in (
            ("strategy", strategy),
            ("provider", provider),
            ("model", model),
            ("project", project),
        )
        for value in values or ()
    ]
    query = [("fields", ",".join(_FIELDS)), ("interval", f"{interval:g}")]
    query += [("window", window)] if window != "all" else []
    events = follow(target.stream(query + filters), interval=interval, loopback=target.loopback)
    view = _View(target, interval, window, _asked(window, filters))
    console = Console(highlight=False)
    if json:
        raise typer.Exit(_run(_print_json(events, target, once=once)))
    if once or not console.is_terminal:
        raise typer.Exit(_run(_print_once(events, view, console)))
    raise typer.Exit(_run(_show_live(events, view, console)))


def _asked(window: str, filters: Sequence[tuple[str, str]]) -> str:
    """Say in words what part of all decisions is asked for; nothing where it is all."""
    words = [] if window == "all" else [f"the last {window}"]
    return ", ".join(words + [f"{name} {value}" for name, value in filters])


@dataclass
class _View:
    """What is known of a stream and of its numbers, and how that looks now."""

    target: Server
    interval: float
    window: str
    asked: str
    event: Event = field(default_factory=lambda: Connecting(again=False))
    at: float = 0.0
    trouble: str = ""
    document: dict[str, Any] | None = None
    failure: str | None = None
    received: float = 0.0
    rates: deque[float | None] = field(default_factory=lambda: deque(maxlen=1000))
    last: tuple[float, int] = (-math.inf, 0)

    def take(self, event: Event) -> None:
        """Take note of what happened just now."""
        self.event, self.at = event, time.monotonic()
        if isinstance(event, Waiting):
            self.trouble = event.why
        if isinstance(event, Frame):
            document = msgspec.json.decode(event.text)
            self.failure = document.get("error")
            if self.failure is None:
                self.document, self.received = document, self.at
                self._move(document)

    def _move(self, document: dict[str, Any]) -> None:
        """Note the newest decisions per second; a silence, or a total that fell, is a gap."""
        if self.window != "all":
            # A window's total falls as decisions leave it, so it says nothing about arrivals.
            self.rates.append(document["rate"])
            return
        now, total = (
            datetime.fromisoformat(document["timestamp"]).timestamp(),
            document["total_decisions"],
        )
        then, before = self.last
        step = now - then
        if 0 <= step < _SHORTEST_STEP and total >= before:
            return
        self.last = (now, total)
        known = 0 < step <= 3 * self.interval + 1 and total >= before
        self.rates.append((total - before) / step if known else None)

    def status(self) -> Status:
        """Say how the connection is and, where the numbers are not fresh, how old they are."""
        old = ""
        if self.document:
            old = f", numbers {figures.age(time.monotonic() - self.received)} old"
        match self.event:
            case Frame() if self.failure is None:
                return Status("live", "green", fresh=True)
            case Frame():
                return Status(
                    f"stale: the server answers “{self.failure}”{old}", "red", fresh=False
                )
            case Silent():
                return Status(f"stale: connected, but nothing comes{old}", "red", fresh=False)
            case Connecting(again=False):
                return Status("connecting", "yellow", fresh=False)
            case Connecting():
                return Status(f"reconnecting: {self.trouble}{old}", "yellow", fresh=False)
            case Waiting(why, seconds):
                left = max(1, math.ceil(self.at + seconds - time.monotonic()))
                return Status(f"reconnecting in {left} s: {why}{old}", "yellow", fresh=False)
            case Refused(why):
                return Status(f"refused: {why}", "red", fresh=False)

    def screen(self, *, live: bool) -> Screen:
        """Return what to show now, on a screen of its own or as lines that scroll."""
        return Screen(
            title=self.target.url,
            asked=self.asked,
            status=self.status(),
            document=self.document,
            rates=list(self.rates) if live else [],
            seconds_apart=max(self.interval, _SHORTEST_STEP),
            first_decision=f"curl {self.target.http('/v1/decisions')} \\\n{_FIRST_DECISION}",
            foot="Ctrl-C leaves" if live else "",
            unbounded=not live,
        )


# -- three ways to show it --------------------------------------------------------------------


async def _show_live(events: AsyncGenerator[Event], view: _View, console: Console) -> int:
    changed = asyncio.Event()

    async def read() -> None:
        async with aclosing(events):
            async for event in events:
                view.take(event)
                changed.set()

    reader = asyncio.create_task(read())
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not reader.done():
                live.update(view.screen(live=True), refresh=True)
                changed.clear()
                # Even when nothing comes, ages and countdowns move on.
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), _REDRAW)
        await reader
    finally:
        reader.cancel()
    return _refused(view.event)


async def _print_once(events: AsyncGenerator[Event], view: _View, console: Console) -> int:
    frame = await _first_frame(events, view.target)
    view.take(frame)
    if view.failure is not None:
        fail(f"the server answers “{view.failure}”")
    console.print(view.screen(live=False))
    return 0


async def _print_json(events: AsyncGenerator[Event], target: Server, *, once: bool) -> int:
    if once:
        typer.echo((await _first_frame(events, target)).text)
        return 0
    event: Event | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Frame):
                typer.echo(event.text)
            elif isinstance(event, Waiting):
                words = f"{event.why}; trying again in {event.seconds:.1f} s"
                say(Console(stderr=True), words, "yellow")
    return _refused(event)


async def _first_frame(events: AsyncGenerator[Event], target: Server) -> Frame:
    """Return the first frame; where the first try brings none, end."""
    async with aclosing(events):
        async for event in events:
            match event:
                case Frame():
                    return event
                case Refused():
                    _refused(event)
                case Waiting(why):
                    serve = f"{command_name()} serve"
                    fail(f"cannot reach {target.url}: {why}. Is it running ({serve})?")
                case Silent():
                    fail(f"{target.url} is connected, but nothing comes")
    raise AssertionError("a stream of events has no other end")


def _refused(event: Event | None) -> int:
    why = event.why if isinstance(event, Refused) else "the stream ended"
    bad_usage = isinstance(event, Refused) and event.bad_request
    fail(f"the server refused the stream: {why}", BAD_USAGE if bad_usage else FAILED)


def _run(showing: Coroutine[Any, Any, int]) -> int:
    """Run until the end, Ctrl-C, a closed pipe or SIGTERM; the terminal is left as it was."""

    async def main() -> int:
        task = asyncio.current_task()
        assert task
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await showing

    try:
        return asyncio.run(main())
    except KeyboardInterrupt:
        return 0
    except asyncio.CancelledError:
        return TERMINATED
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
