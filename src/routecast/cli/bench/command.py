"""`routecast bench`: open many streams to a server, and measure how it serves them."""

import asyncio
import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from websockets.exceptions import WebSocketException

from routecast.cli.bench.client import BenchClient, subscribe
from routecast.cli.credential import api_key
from routecast.cli.terminal import BAD_USAGE, FAILED, INTERRUPTED, fail, say, unwind_on_sigterm
from routecast.client.auth import bearer
from routecast.client.stream_errors import explained
from routecast.client.url import DEFAULT_SERVER, Server
from routecast.errors import BadParameter
from routecast.protocol import MAX_INTERVAL, MIN_INTERVAL
from routecast.server.rlimits import allow_open_files

# Enough to keep a server busy, few enough not to overflow the usual listen backlog of 128.
_HANDSHAKES_AT_ONCE: Final = 64
_OPEN_TIMEOUT: Final = 20.0
_GOODBYE: Final = 2.0
# Files this process has open beside its streams: the terminal, modules, the event loop.
_SPARE_FILES: Final = 64
_BUSY: Final = 0.8
_STAMP_KEY: Final = b'"timestamp":"'
_STAMP_LENGTH: Final = len("2026-01-31T12:34:56.789123+00:00")
_PERCENTILES: Final = (50, 95, 99)


def bench(
    server: Annotated[
        str, typer.Option(metavar="URL", help="The server to measure.")
    ] = DEFAULT_SERVER,
    connections: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="Streams open at once.")
    ] = 100,
    seconds: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, help="How long to listen once all are open."),
    ] = 10.0,
    interval: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=MIN_INTERVAL,
            max=MAX_INTERVAL,
            help="Seconds between two documents of a stream.",
        ),
    ] = 1.0,
    fields: Annotated[
        str, typer.Option(metavar="LIST", help="Fields to ask for, separated by commas.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Open many streams to a server and measure how it serves them.

    Latency is this machine's clock on receipt minus the document's timestamp:
    between two machines it includes the difference of their clocks.
    Exits with 1 if any stream failed.
    If the server needs a token or an API key, set ROUTECAST_API_KEY.

    Example: routecast bench --connections 1000 --seconds 30 --interval 0.5
    """
    try:
        target = Server.parse(server, "--server")
    except BadParameter as error:
        fail(error, BAD_USAGE)
    unwind_on_sigterm()
    _allow_open_files(connections + _SPARE_FILES)
    query = [("interval", f"{interval:g}")] + ([("fields", fields)] if fields else [])
    trial = Trial(target.stream(query), connections, seconds, interval, api_key())
    # Progress goes to standard error, so that the result alone can be redirected.
    with _BenchProgress(Console(stderr=True, highlight=False)) as progress:
        interrupted = _run(trial, progress)
    if json:
        typer.echo(msgspec.json.encode(trial.result()).decode())
    else:
        _show(Console(highlight=False), target, trial.result())
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(FAILED if trial.failures else 0)


def _allow_open_files(needed: int) -> None:
    """Raise this process's limit of open files as far as allowed; exit if that is too few."""
    allowed = allow_open_files(needed)
    if allowed < needed:
        fail(
            f"--connections: this shell allows {allowed:,} open files, and {needed:,} are needed. "
            f"Raise the limit (as root: ulimit -n {needed}), or ask for at most "
            f"{allowed - _SPARE_FILES:,} connections.",
            BAD_USAGE,
        )


def _run(trial: "Trial", progress: "_BenchProgress") -> bool:
    """Run the measurement; return whether Ctrl-C ended it early."""
    try:
        with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
            runner.run(trial.run(progress))
    except KeyboardInterrupt:
        return True
    return False


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _BenchProgress(Progress):
    """One bar that first counts streams and then seconds."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def phase(self, words: str, total: float) -> Callable[[float], None]:
        """Start a new phase; return the function that sets its progress."""
        for task in self.task_ids:
            self.remove_task(task)
        task = self.add_task(words, total=total)
        return lambda done: self.update(task, completed=done)


def _samples() -> "array[float]":
    return array("d")


@dataclass
class Trial:
    """Many streams to one URL, and their measurements; times are in milliseconds."""

    url: str
    connections: int
    seconds: float
    interval: float
    token: str | None = None
    connect: "array[float]" = field(default_factory=_samples)
    first_frame: "array[float]" = field(default_factory=_samples)
    latency: "array[float]" = field(default_factory=_samples)
    jitter: "array[float]" = field(default_factory=_samples)
    failures: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    received: int = 0
    error_documents: int = 0
    listened: float = 0.0
    busy: float = 0.0
    _streams: list[BenchClient] = field(default_factory=list)
    _lost: int = 0
    _listening: bool = False
    _stamp: bytes | None = None
    _stamped: float = 0.0

    async def run(self, progress: _BenchProgress) -> None:
        """Open the streams, listen, and close them again."""
        try:
            await self._open_all(progress.phase("opening streams", self.connections))
            if self._streams:
                await self._listen(progress.phase("listening, seconds", self.seconds))
        finally:
            self._listening = False
            await self._close_all()

    async def _open_all(self, on_progress: Callable[[float], None]) -> None:
        slots = asyncio.Semaphore(_HANDSHAKES_AT_ONCE)

        async def open_one() -> None:
            async with slots:
                await self._open()
            on_progress(len(self._streams) + self.failures.total())

        async with asyncio.TaskGroup() as group:
            for _ in range(self.connections):
                group.create_task(open_one())

    async def _open(self) -> None:
        try:
            authorization = None if self.token is None else bearer(self.token)
            stream = await subscribe(
                self.url, authorization, self._message, self._lose, _OPEN_TIMEOUT
            )
        except (OSError, WebSocketException) as error:
            self.failures[explained(error, self.token, self.url)] += 1
            return
        self._streams.append(stream)
        self.connect.append(1000 * (stream.opened_at - stream.began))

    async def _listen(self, on_progress: Callable[[float], None]) -> None:
        self._listening = True
        began, worked = time.monotonic(), time.process_time()
        try:
            while self.listened < self.seconds and self._lost < len(self._streams):
                await asyncio.sleep(min(0.2, self.seconds - self.listened))
                self.listened = time.monotonic() - began
                on_progress(self.listened)
        finally:
            self.listened = time.monotonic() - began
            self.busy = (time.process_time() - worked) / self.listened

    async def _close_all(self) -> None:
        for stream in self._streams:
            stream.close()
        if self._streams:
            await asyncio.wait([stream.gone for stream in self._streams], timeout=_GOODBYE)
        for stream in self._streams:
            stream.abort()

    def _message(self, stream: BenchClient, data: bytes, now: float) -> None:
        last, stream.last = stream.last, now
        if not last:
            self.first_frame.append(1000 * (now - stream.began))
            return
        if not self._listening:
            return
        self.frames += 1
        self.received += len(data)
        if data.startswith(b'{"error"'):
            self.error_documents += 1
        start = data.rfind(_STAMP_KEY) + len(_STAMP_KEY)
        stamp = data[start : start + _STAMP_LENGTH]
        # Streams with one view get one document, so most stamps were read already.
        if stamp != self._stamp:
            try:
                self._stamped = datetime.fromisoformat(stamp.decode()).timestamp()
            except (ValueError, OverflowError):
                stream.abort()
                self._lost += 1
                self.failures["a message without a timestamp: it is not a Routecast server"] += 1
                return
            self._stamp = stamp
        self.latency.append(1000 * (now - self._stamped))
        self.jitter.append(1000 * abs(now - last - self.interval))

    def _lose(self, error: Exception) -> None:
        self._lost += 1
        self.failures[explained(error, self.token)] += 1

    def result(self) -> dict[str, Any]:
        """Return all measurements for JSON; a value that was not measured is null."""
        return {
            "connections": self.connections,
            "opened": len(self._streams),
            "interval": self.interval,
            "seconds": round(self.listened, 3),
            "frames": self.frames,
            "bytes": self.received,
            "error_documents": self.error_documents,
            "failures": dict(self.failures.most_common()),
            "connect_ms": _summary(self.connect),
            "first_frame_ms": _summary(self.first_frame),
            "latency_ms": _summary(self.latency),
            "jitter_ms": _summary(self.jitter),
            "client_cpu": round(self.busy, 3),
        }


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    """Return nearest-rank percentiles and the maximum; None without values."""
    if not values:
        return None
    ranked = sorted(values)
    ranks = {f"p{p}": ranked[math.ceil(p / 100 * len(ranked)) - 1] for p in _PERCENTILES}
    return {name: round(value, 3) for name, value in (*ranks.items(), ("max", ranked[-1]))}


# -- the result for a person ------------------------------------------------------------------

_ROWS: Final = (
    ("to connect", "connect_ms"),
    ("to the first frame", "first_frame_ms"),
    ("from document to receipt", "latency_ms"),
    ("jitter of the interval", "jitter_ms"),
)


def _show(console: Console, target: Server, result: dict[str, Any]) -> None:
    say(
        console,
        f"{target.url}: {result['opened']:,} of {result['connections']:,} streams opened; "
        f"listened {result['seconds']:.1f} s, a document every {result['interval']:g} s",
    )
    if result["opened"]:
        _show_figures(console, result)
    if not result["failures"]:
        say(console, "No stream failed.", "green")
    for reason, count in result["failures"].items():
        say(console, f"{count:,} failed: {reason}", "red")


def _show_figures(console: Console, result: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("milliseconds")
    for name in ("p50", "p95", "p99", "max"):
        table.add_column(name, justify="right", min_width=8)
    for words, key in _ROWS:
        summary = result[key] or {}
        table.add_row(words, *(_ms(summary.get(column)) for column in ("p50", "p95", "p99", "max")))
    console.print(table)
    seconds = result["seconds"] or math.inf
    frames, size = result["frames"], result["bytes"]
    say(
        console,
        f"{frames:,} frames, {frames / seconds:,.0f} per second; {size:,} bytes, "
        f"{size / seconds / 1e6:.2f} MB per second",
    )
    if result["error_documents"]:
        say(console, f"{result['error_documents']:,} of them were error documents", "yellow")
    if result["client_cpu"] > _BUSY:
        words = f"This process was busy {result['client_cpu']:.0%} of the time"
        say(console, f"{words}, which may limit the results. Use fewer streams.", "yellow")


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"
