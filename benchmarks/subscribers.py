"""The WebSocket clients of benchmarks (`subscribers.c`), and what they received."""

import math
import os
import select
import subprocess
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

import msgspec

from benchmarks.cases import Broken
from benchmarks.report import percentile
from benchmarks.stage import CLIENT_CORE, Stage

JOIN_SECONDS: Final = 60.0
IN_FLIGHT: Final = 64


class Behaviour(StrEnum):
    """What clients do once they are connected."""

    LISTEN = "listen"
    STALL = "stall"  # never read
    CYCLE = "cycle"  # leave after the first message; another client then connects
    KNOCK = "knock"  # be refused by 401: `count` clients a second, until the end


class Heard(msgspec.Struct):
    """What clients received in `seconds` since the last report; `busy` is their processor time.

    `lags` and `last` are microseconds from when a frame was made to its receipt: `lags` has the
    median and 99th percentile of all frames, `last` has for each distinct frame the time of its
    last receiver.
    """

    seconds: float
    busy: float
    joined: int
    open: int
    refused: int
    lost: int
    done: int
    frames: int
    bytes: int
    lags: tuple[int, int]
    last: list[int]

    @property
    def last_p99(self) -> float:
        """The 99th percentile of the time until the last client has a frame, in milliseconds."""
        return percentile(self.last, 99) / 1000 if self.last else math.nan  # if compressed


class Subscribers:
    """Clients of one port, in a process of their own; they all connect at once."""

    def __init__(
        self,
        stage: Stage,
        port: int,
        path: str,
        count: int,
        *,
        behaviour: Behaviour = Behaviour.LISTEN,
        in_flight: int = IN_FLIGHT,
        subprotocol: str | None = None,
        messages: Path | None = None,
        extensions: str | None = None,
        credentials: Path | None = None,
    ) -> None:
        """Start the clients.

        With a subprotocol, each client first sends a line of the file `messages`, in turns. It may
        also offer `extensions`; compressed messages are counted, but not read. Each asks with a
        line of the file `credentials`, in turns, if there is one.
        """
        options = [str(port), path, str(count), str(in_flight), behaviour]
        if subprotocol is not None:
            options += [subprotocol, str(messages)]
            if extensions is not None:
                options.append(extensions)
        if credentials is not None:
            options = ["-c", str(credentials), *options]
        self._count = count
        self._process = subprocess.Popen(
            [str(stage.subscribers), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        os.sched_setaffinity(self._process.pid, {CLIENT_CORE})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def joined(self, seconds: float = JOIN_SECONDS) -> Heard:
        """Wait until all clients have connected; return the report about that. Raises Broken."""
        heard = self._read(seconds)
        if heard.joined < self._count:
            raise Broken(f"only {heard.joined:,} of {self._count:,} clients were let in")
        return heard

    def started(self) -> None:
        """Wait until the process runs; for clients that the server will refuse."""
        self._read(JOIN_SECONDS)

    def listen(self, seconds: float) -> Heard:
        """Wait for `seconds`; return what was received in them."""
        self.report()
        time.sleep(seconds)
        return self.report()

    def report(self) -> Heard:
        """Return what was received since the last report."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._read(JOIN_SECONDS)

    def _read(self, seconds: float) -> Heard:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise Broken(f"{self._count:,} clients had nothing to report in {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Broken("the clients' process ended")
        return msgspec.json.decode(line, type=Heard)
