"""`routecast replay`: send decisions of a file to a server, at full speed or in their own time."""

import hashlib
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from routecast.cli.credential import api_key
from routecast.cli.replay.column_mapping import Columns, Row
from routecast.cli.replay.progress import SendProgress
from routecast.cli.replay.row_reader import BrokenRow, Record, RowFile, Unreadable
from routecast.cli.replay.sender import BatchSender, GivenUp
from routecast.cli.replay.survey import Survey, Uncertain, listed
from routecast.cli.terminal import (
    BAD_USAGE,
    FAILED,
    INTERRUPTED,
    fail,
    plain,
    say,
    unwind_on_sigterm,
)
from routecast.client.url import DEFAULT_SERVER, Server
from routecast.core.decision import DAY
from routecast.errors import BadParameter
from routecast.protocol import MAX_BATCH, rfc3339

# After this number of rows, a missing required column is an error: the rest is not read.
_PEEK_ROWS: Final = 1000
_SHOWN: Final = 5
_REHEARSED: Final = 10
# Arrivals this close together share a request; a dashboard's shortest interval is longer.
_REPLAY_TICK: Final = 0.05

Timestamps = Literal["keep", "now"]

_encode = msgspec.json.Encoder(decimal_format="number").encode


def replay(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="CSV or JSON lines, also as .gz; - is standard input."),
    ],
    server: Annotated[str, typer.Option(metavar="URL", help="Where to send to.")] = DEFAULT_SERVER,
    mapped: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FIELD=COLUMN",
            help="Take a field from this column; repeatable. cost=CENTS*0.01 multiplies, "
            "timestamp=WHEN:dmy says how it is written, FIELD= leaves the field out.",
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
        int, typer.Option(metavar="N", min=1, max=MAX_BATCH, help="Decisions in each request.")
    ] = 1000,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Stop after N decisions.", show_default=False),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Count rows without ids once more, although an earlier run sent them."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show ten decisions as they would be stored; send none."),
    ] = False,
) -> None:
    """Send the routing decisions of a file to a server.

    Columns are matched to fields by name, and all rows show how their values are
    written. If that is not certain, nothing is sent; it exits with 1 and names the
    --map or --set that settles it. A row counts once: the same command continues
    where an interrupted one ended. A value that cannot be used is left out, and a
    row without a readable time is not sent; both are listed, and it exits with 1,
    as for rows that the server rejects.
    If the server needs a token or an API key, set ROUTECAST_API_KEY.

    Example: routecast replay calls.csv --set provider=openai --speed 60
    """
    console = Console(highlight=False)
    unwind_on_sigterm()
    name = "standard input" if file == "-" else file
    stamps = timestamps or ("now" if speed else "keep")
    try:
        target = Server.parse(server, "--server")
        plan = (_pairs("--map", mapped), _pairs("--set", fixed))
        if timestamps == "now" and "timestamp" in plan[1]:
            raise BadParameter("--set", "timestamp is set, and --timestamps now sets it, too")
        if stamps == "now" and not speed and "timestamp" not in plan[1]:
            plan[0]["timestamp"] = ""
        with _twice_readable(file) as path:
            with closing(RowFile(path)) as rows, console.status(f"Reading {plain(name)}"):
                columns, lines = _survey(rows, Survey(*plan))
            if speed and not columns.has("timestamp"):
                raise BadParameter(
                    "--speed", "no column gives times; name it: --map timestamp=COLUMN"
                )
            _describe(console, name, columns, stamps, speed, again=again)
            with closing(RowFile(path)) as rows:
                ids = _Ids(Path(name).name, plan[1], secrets.token_hex(8) if again else "")
                job = _Job(console, rows, columns, stamps, speed, batch, ids)
                # Rows added meanwhile were not surveyed: the next run sends them.
                source = islice(job.rows(islice(rows, lines)), limit)
                code = job.rehearse(source) if dry_run else job.run(source, target, limit)
    except BadParameter as error:
        fail(error, BAD_USAGE)
    except OSError as error:
        fail(f"cannot read {name}: {error.strerror or error}", BAD_USAGE)
    except KeyboardInterrupt:
        fail("stopped; nothing was sent", INTERRUPTED)
    except Uncertain as error:
        fail(f"{name}: it is not certain what this means, so nothing was sent.\n{error}")
    except Unreadable as error:
        fail(f"{name}: {error}")
    raise typer.Exit(code)


def _pairs(flag: str, wishes: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for wish in wishes or ():
        name, equals, value = (part.strip() for part in wish.partition("="))
        if not equals:
            raise BadParameter(flag, f"{wish!r} is not of the form FIELD=…")
        if name in pairs:
            raise BadParameter(flag, f"{name} is given twice")
        pairs[name] = value
    return pairs


@contextmanager
def _twice_readable(file: str) -> Iterator[str]:
    """Yield the path of a file that can be read twice: for a pipe, a copy on disk."""
    if file != "-" and not Path(file).is_fifo():
        yield file
        return
    source = sys.stdin.fileno() if file == "-" else file
    with (
        tempfile.NamedTemporaryFile(prefix="routecast-replay-") as copy,
        open(source, "rb", closefd=file != "-") as pipe,
    ):
        shutil.copyfileobj(pipe, copy)
        copy.flush()
        yield copy.name


def _survey(rows: RowFile, survey: Survey) -> tuple[Columns, int]:
    """Survey all rows; return the columns, and the number of rows, broken ones included.

    Raises Unreadable if no row is good.
    """
    good = lines = 0
    first: BrokenRow | None = None
    for line in rows:
        lines += 1
        if isinstance(line, BrokenRow):
            first = first or line
            continue
        survey.add(line.cells)
        good += 1
        if good == _PEEK_ROWS:
            survey.check_names()
    if good:
        return survey.choose(), lines
    if first:
        raise Unreadable(f"no row could be read; line {first.line}: {first.error}")
    raise Unreadable("a header and no rows")


@dataclass(frozen=True)
class _Ids:
    """Makes ids for rows without one, of the file's name, the line's number and content, and --set.

    So a second run gives each row the same id, also if the file has grown or a line was corrected.
    For that reason the size of the file is not a part. `run` is empty, or a text that makes the ids
    differ from those of every other run.
    """

    file: str
    fixed: Mapping[str, str]
    run: str

    def make(self, row: Record) -> str:
        """Return the id of a row."""
        content = _encode((self.file, self.fixed, self.run, row.cells))
        return f"replay-{hashlib.blake2b(content, digest_size=12).hexdigest()}-{row.line}"


@dataclass
class _Job:
    """One run over a file, and the outcome of its rows."""

    console: Console
    file: RowFile
    columns: Columns
    stamps: Timestamps
    speed: float | None
    batch: int
    ids: _Ids
    began: int = field(default_factory=lambda: time.time_ns() // 1000)
    sent: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    broken: int = 0
    unread: int = 0  # values that were left out
    warned: int = 0  # values that the server left out or changed
    retried: bool = False
    problems: list[str] = field(default_factory=list)

    def rows(self, lines: Iterable[Record | BrokenRow]) -> Iterator[Row]:
        """Yield the good rows; count and remember the others."""
        for line in lines:
            if isinstance(line, BrokenRow):
                self._add_problem(line.line, line.error)
                self.broken += 1
                continue
            try:
                row = self.columns.row(line.line, line.cells)
                self._keep_time(row)
            except ValueError as error:
                self._add_problem(line.line, str(error))
                self.broken += 1
                continue
            if "id" not in row.decision:
                row.decision["id"] = self.ids.make(line)
            for words in row.unread:
                self._add_problem(line.line, f"{words}; sent without it")
            self.unread += len(row.unread)
            yield row

    def rehearse(self, rows: Iterator[Row]) -> int:
        """Read everything and send nothing; show the first decisions as they would be stored."""
        first = list(islice(rows, _REHEARSED))
        if first:
            count = "row" if len(first) == 1 else f"{len(first)} rows"
            say(self.console, f"The first {count} as they would be stored:")
        for row in first:
            say(self.console, _encode(self._decision(row)).decode())
        good = len(first) + sum(1 for _ in rows)
        say(self.console, f"\nNothing was sent. Good rows: {good:,}, broken: {self.broken:,}.")
        return self._print_problems()

    def run(self, rows: Iterator[Row], target: Server, limit: int | None) -> int:
        """Send all rows, and print the outcome; return the exit code."""
        clock = time.monotonic()
        ending = 0
        with SendProgress(self.console) as progress, self._sender(target, progress) as sender:
            try:
                for batch in self._batches(rows, progress):
                    self._send(sender, batch)
                    share = self.file.read / self.file.size if self.file.size else None
                    progress.advance(self.sent, self.sent / limit if limit else share)
            except KeyboardInterrupt:
                ending = INTERRUPTED
                words = "stopped; what is counted above is acknowledged. The same command "
                words += "counts it once more" if self.ids.run else "continues"
            except GivenUp as error:
                ending, words = FAILED, str(error)
        if self.sent or not ending:
            self._summary(time.monotonic() - clock)
        problems = self._print_problems()
        if ending:
            fail(words, ending)
        return problems

    def _batches(self, rows: Iterator[Row], progress: SendProgress) -> Iterator[list[Row]]:
        if self.speed:
            yield from paced(rows, self.speed, self.batch, progress)
            return
        while batch := list(islice(rows, self.batch)):
            yield batch

    def _sender(self, target: Server, progress: SendProgress) -> BatchSender:
        def waiting(words: str, seconds: float) -> None:
            self.retried = True
            progress.retry(words, seconds)

        return BatchSender(target, waiting, api_key())

    def _send(self, sender: BatchSender, batch: list[Row]) -> None:
        self.retried = False
        result = sender.send([self._decision(row) for row in batch])
        # After an attempt whose answer was lost, ids that were made here are known from it.
        lost = self.retried and not self.columns.has("id") and not self.duplicates
        ours = result.duplicates if lost else 0
        self.sent += len(batch)
        self.accepted += result.accepted + ours
        self.duplicates += result.duplicates - ours
        self.conflicts += result.conflicts
        self.rejected += result.rejected
        for rejection in result.rejections:
            self._add_problem(batch[rejection.index].line, rejection.error)
        self.warned += result.warnings_count
        for warning in result.warnings:
            self._add_problem(batch[warning.index].line, f"{warning.field}: {warning.message}")

    def _keep_time(self, row: Row) -> None:
        """Give a row its time from the file. Raises ValueError if it has none."""
        if self.stamps == "now" or not self.columns.has("timestamp"):
            return
        if row.at is None:
            raise ValueError("timestamp: this row has none")
        at = row.at if self.columns.last is None else self.began - self.columns.last + row.at
        if at < 0:
            raise ValueError("timestamp: must not be before 1970")
        if at > self.began + DAY:
            raise ValueError("timestamp: must be at most 24 hours in the future")
        row.decision["timestamp"] = rfc3339(at)

    def _decision(self, row: Row) -> dict[str, Any]:
        if self.stamps == "now":
            row.decision["timestamp"] = rfc3339(time.time_ns() // 1000)
        return row.decision

    def _add_problem(self, line: int, error: str) -> None:
        if len(self.problems) < _SHOWN:
            self.problems.append(f"line {line}: {error}")

    def _summary(self, seconds: float) -> None:
        conflicts = f", conflicts {self.conflicts:,}" if self.conflicts else ""
        broken = f", broken lines {self.broken:,}" if self.broken else ""
        say(
            self.console,
            f"Sent {self.sent:,}: accepted {self.accepted:,}, duplicates {self.duplicates:,}, "
            f"rejected {self.rejected:,}{conflicts}{broken}. "
            f"{seconds:.2f} s, {self.sent / max(seconds, 1e-6):,.0f} per second.",
        )
        if self.duplicates and self.columns.has("id"):
            words = "the server has a decision with this id already, or an earlier row has it"
            say(self.console, f"Duplicates were not counted again: {words}.")
        elif self.duplicates:
            words = "an earlier run sent these rows of the file; --again counts them once more"
            say(self.console, f"Duplicates were not counted again: {words}.")
        if self.conflicts:
            words = "another decision has this id: give each decision an id of its own"
            if not self.columns.has("id"):
                words = "an earlier run sent these rows with other values, which stay; "
                words += "--again counts them once more"
            say(self.console, f"Conflicts were not counted: {words}.", "red")
        if self.unread:
            say(self.console, f"Values left out because they cannot be used: {self.unread:,}.")

    def _print_problems(self) -> int:
        """Name the first bad rows; return the exit code."""
        for problem in self.problems:
            say(self.console, f"  {problem}", "red")
        count = self.broken + self.rejected + self.unread + self.warned
        if (more := count - len(self.problems)) > 0:
            say(self.console, f"  and {more:,} more", "red")
        return FAILED if self.problems or self.conflicts else 0


def paced(
    rows: Iterable[Row], speed: float, size: int, progress: SendProgress
) -> Iterator[list[Row]]:
    """Yield batches of at most `size` rows when they are due, at `speed` times their own pace.

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
        if batch and (len(batch) >= size or max(due, now) - opened > _REPLAY_TICK):
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
    console: Console,
    name: str,
    columns: Columns,
    stamps: Timestamps,
    speed: float | None,
    *,
    again: bool,
) -> None:
    """Show which column becomes which field, before anything is sent."""
    rows = []
    for source in columns.sources:
        origin, how = source.column or repr(str(source.value)), source.how
        if source.field == "timestamp" and stamps == "now":
            how, origin = f"{origin} only sets the pace, times {speed:g}", "the time of sending"
        rows.append((source.field, origin, how))
    if not columns.has("timestamp"):
        sending = stamps == "now"
        moment, why = ("sending", "--timestamps now") if sending else ("receipt", "no times")
        rows.append(("timestamp", f"the time of {moment}", why))
    if not columns.has("id"):
        rows.append(
            ("id", "made for this run" if again else "made of name, line and row", "no ids")
        )
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for heading in ("field", "from", "how"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    say(console, f"How {name} is read:")
    console.print(table)
    if not columns.has("timestamp") and stamps == "keep":
        words = "No column gives times: every decision will count as made now, when it is received."
        say(console, f"{words} If one does, name it with --map timestamp=COLUMN.", "yellow")
    for words in columns.warnings:
        say(console, words, "yellow")
    if columns.left_out:
        names = (f"{name} ({why})" if why else name for name, why in columns.left_out)
        say(console, f"Left out: {listed(names)}", "dim")
    console.print()
