"""`routecast replay`: decisions from a file to a server, at full speed or as they once arrived."""

import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Annotated, Any, Final, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from routecast.cli.columns import Columns, Row, choose
from routecast.cli.progress import SendProgress
from routecast.cli.rows import Broken, Record, RowFile, Unreadable
from routecast.cli.sending import Refused, Sender
from routecast.cli.terminal import (
    BAD_USAGE,
    FAILED,
    INTERRUPTED,
    fail,
    plain,
    say,
    unwind_on_sigterm,
)
from routecast.client.address import DEFAULT_SERVER, Server
from routecast.errors import BadParameter
from routecast.protocol import MAX_BATCH, rfc3339

_SAMPLE: Final = 1000
_SHOWN: Final = 5
# Arrivals this close together share a request; a dashboard's shortest interval is longer.
_TICK: Final = 0.05

Timestamps = Literal["keep", "now"]


def replay(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="CSV or JSON lines, .gz too. - is standard input."),
    ],
    server: Annotated[str, typer.Option(metavar="URL", help="Where to send to.")] = DEFAULT_SERVER,
    mapped: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FIELD=COLUMN",
            help="Take a field from this column; repeatable. cost=CENTS*0.01 multiplies, "
            "FIELD= leaves the field out.",
        ),
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="One value for every row; repeatable."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.001,
            help="Keep the file's own gaps between arrivals, X times faster. "
            "Without it: as fast as the server takes them.",
            show_default=False,
        ),
    ] = None,
    timestamps: Annotated[
        Timestamps | None,
        typer.Option(
            help="keep: as in the file. now: the time of sending.",
            show_default="keep, or now with --speed",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="N", min=1, max=MAX_BATCH, help="Decisions a request.")
    ] = 1000,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Stop after N decisions.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
) -> None:
    """Send the routing decisions of a file to a server.

    Columns are matched to fields by name; --dry-run shows how, and sends nothing.
    Each row counts once, even where a request had to be repeated.
    Ends with 1 if a row was broken or rejected.

    Example: routecast replay calls.csv --set provider=openai --speed 60
    """
    console = Console(highlight=False)
    unwind_on_sigterm()
    try:
        target = Server.parse(server, "--server")
        plan = (_pairs("--map", mapped), _pairs("--set", fixed))
        with closing(RowFile(file)) as rows:
            lines = iter(rows)
            sample = list(islice(lines, _SAMPLE))
            columns = choose(_cells(sample), *plan)
            if speed and not columns.has("timestamp"):
                raise BadParameter(
                    "--speed", "no column gives times; name it: --map timestamp=COLUMN"
                )
            stamps = timestamps or ("now" if speed else "keep")
            _describe(console, file, columns, stamps, speed)
            job = _Job(console, rows, columns, stamps, speed, batch)
            source = islice(job.rows(chain(sample, lines)), limit)
            code = job.rehearse(source) if dry_run else job.run(source, target, limit)
    except BadParameter as error:
        fail(error, BAD_USAGE)
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror or error}", BAD_USAGE)
    except Unreadable as error:
        fail(f"{file}: {error}")
    raise typer.Exit(code)


def _pairs(flag: str, wishes: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for wish in wishes or ():
        name, equals, value = wish.partition("=")
        if not equals:
            raise BadParameter(flag, f"{wish!r} is not of the form FIELD=…")
        if name in pairs:
            raise BadParameter(flag, f"{name} is given twice")
        pairs[name.strip()] = value.strip()
    return pairs


def _cells(sample: Iterable[Record | Broken]) -> list[Any]:
    """Return the rows of the sample. Raises Unreadable when there is none."""
    lines = list(sample)
    if rows := [line.cells for line in lines if isinstance(line, Record)]:
        return rows
    if not lines:
        raise Unreadable("a header and no rows")
    first = next(line for line in lines if isinstance(line, Broken))
    raise Unreadable(f"no row could be read; line {first.line}: {first.error}")


@dataclass
class _Job:
    """One run over a file, and what became of its rows."""

    console: Console
    file: RowFile
    columns: Columns
    stamps: Timestamps
    speed: float | None
    batch: int
    run_id: str = field(default_factory=lambda: secrets.token_hex(6))
    began: float = field(default_factory=time.time)
    sent: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    broken: int = 0
    troubles: list[str] = field(default_factory=list)

    def rows(self, lines: Iterable[Record | Broken]) -> Iterator[Row]:
        """Yield the good rows; count and remember the others."""
        for line in lines:
            if isinstance(line, Broken):
                self._trouble(line.line, line.error)
                self.broken += 1
                continue
            try:
                yield self.columns.row(line.line, line.cells)
            except ValueError as error:
                self._trouble(line.line, str(error))
                self.broken += 1

    def rehearse(self, rows: Iterator[Row]) -> int:
        """Read everything and send nothing; show the first decision as it would be sent."""
        first = next(rows, None)
        if first:
            encoded = msgspec.json.Encoder(decimal_format="number").encode(self._decision(first))
            say(self.console, f"The first one:\n{encoded.decode()}\n")
        count = sum(1 for _ in rows) + (first is not None)
        say(self.console, f"Nothing was sent. Good rows: {count:,}, broken: {self.broken:,}.")
        return self._tell_troubles()

    def run(self, rows: Iterator[Row], target: Server, limit: int | None) -> int:
        """Send all rows; return the exit code."""
        clock = time.monotonic()
        ending = 0
        with SendProgress(self.console) as progress, Sender(target, progress.trouble) as sender:
            try:
                for batch in self._batches(rows, progress):
                    self._send(sender, batch)
                    share = self.file.read / self.file.size if self.file.size else None
                    progress.advance(self.sent, self.sent / limit if limit else share)
            except KeyboardInterrupt:
                ending, words = INTERRUPTED, "stopped; what is counted above is acknowledged"
            except Refused as error:
                ending, words = FAILED, str(error)
        if self.sent or not ending:
            self._summary(time.monotonic() - clock)
        troubles = self._tell_troubles()
        if ending:
            fail(words, ending)
        return troubles

    def _batches(self, rows: Iterator[Row], progress: SendProgress) -> Iterator[list[Row]]:
        if self.speed:
            yield from paced(rows, self.speed, self.batch, progress)
            return
        while batch := list(islice(rows, self.batch)):
            yield batch

    def _send(self, sender: Sender, batch: list[Row]) -> None:
        result = sender.send([self._decision(row) for row in batch])
        # An id made for this run can only be known already from a try whose answer was lost.
        ours = 0 if self.columns.has("id") else result.duplicates
        self.sent += len(batch)
        self.accepted += result.accepted + ours
        self.duplicates += result.duplicates - ours
        self.rejected += result.rejected
        for rejection in result.rejections:
            self._trouble(batch[rejection.index].line, rejection.error)

    def _decision(self, row: Row) -> dict[str, Any]:
        decision = row.decision
        decision.setdefault("id", f"replay-{self.run_id}-{row.line}")
        if self.stamps == "now":
            decision["timestamp"] = rfc3339(time.time_ns() // 1000)
        elif row.at is not None:
            start = round(self.began * 1e6) if self.columns.relative else 0
            decision["timestamp"] = rfc3339(start + row.at)
        return decision

    def _trouble(self, line: int, error: str) -> None:
        if len(self.troubles) < _SHOWN:
            self.troubles.append(f"line {line}: {error}")

    def _summary(self, seconds: float) -> None:
        broken = f", broken lines {self.broken:,}" if self.broken else ""
        say(
            self.console,
            f"Sent {self.sent:,}: accepted {self.accepted:,}, duplicates {self.duplicates:,}, "
            f"rejected {self.rejected:,}{broken}. "
            f"{seconds:.2f} s, {self.sent / max(seconds, 1e-6):,.0f} a second.",
        )

    def _tell_troubles(self) -> int:
        """Name the first bad rows; return the exit code."""
        for trouble in self.troubles:
            say(self.console, f"  {trouble}", "red")
        if (more := self.broken + self.rejected - len(self.troubles)) > 0:
            say(self.console, f"  and {more:,} more", "red")
        return FAILED if self.troubles else 0


def paced(
    rows: Iterable[Row], speed: float, size: int, progress: SendProgress
) -> Iterator[list[Row]]:
    """Yield batches of at most `size` when their rows fall due, `speed` times as fast as they came.

    A row without a time, or one earlier than the row before it, is due with that row. After a
    delay it catches up at full speed.
    """
    began = due = opened = time.monotonic()
    first: int | None = None
    batch: list[Row] = []
    for row in rows:
        if row.at is not None:
            first = row.at if first is None else first
            due = max(due, began + (row.at - first) / 1e6 / speed)
        now = time.monotonic()
        if batch and (len(batch) >= size or max(due, now) - opened > _TICK):
            yield batch
            batch = []
        if (wait := due - time.monotonic()) > 0:
            if wait > 2:
                progress.wait("no arrivals", wait)
            time.sleep(wait)
        if not batch:
            opened = time.monotonic()
        batch.append(row)
    if batch:
        yield batch


def _describe(
    console: Console, file: str, columns: Columns, stamps: Timestamps, speed: float | None
) -> None:
    """Show which column becomes which field, before anything is sent."""
    rows = []
    for source in columns.sources:
        origin, how = source.column or repr(str(source.value)), source.how
        if source.field == "timestamp" and stamps == "now":
            how = f"{origin} only sets the pace, times {speed:g}" if speed else f"not {origin}"
            origin = "the time of sending"
        rows.append((source.field, origin, how))
    if not columns.has("timestamp"):
        moment = "sending" if stamps == "now" else "receipt"
        rows.append(("timestamp", f"the time of {moment}", "no column of times"))
    if not columns.has("id"):
        rows.append(("id", "made for this run", "no column of ids"))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for heading in ("field", "from", "how"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    say(console, f"Reading {'standard input' if file == '-' else file} so:")
    console.print(table)
    if not columns.has("timestamp") and stamps == "keep":
        words = "No column gives times: every decision will count as made now, when it is received."
        say(console, f"{words} If one does, name it with --map timestamp=COLUMN.", "yellow")
    if columns.left_out:
        names = (f"{name} ({why})" if why else name for name, why in columns.left_out)
        say(console, f"Left out: {', '.join(names)}", "dim")
    console.print()
