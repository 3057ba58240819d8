"""One run of `make hostile`: a full node is attacked, watched, stopped, checked and restarted."""

import multiprocessing
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import run
from sys import executable
from typing import Any, Final

from tests.hostile import traffic
from tests.hostile.clients import PROJECT, Seen, attack, behave_well
from tests.support.server import Server

MIB: Final = 2**20
P99_SECONDS: Final = 0.25
RSS_BYTES: Final = 512 * MIB
STOP_SECONDS: Final = 15.0
# After an attack, the files that it held open are closed within this time.
CALM_SECONDS: Final = 60.0
SPARE_FILES: Final = 20


@dataclass(slots=True)
class Report:
    """The results of a soak. `broken` must be empty; `missed` lists targets that were missed.

    `memory` has the bytes in use at each second; `restart` the seconds and bytes of a restart.
    """

    database: str
    seconds: float
    seen: Seen = field(default_factory=Seen)
    memory: list[int] = field(default_factory=list)
    first_start: tuple[float, int] = (0.0, 0)
    restart: tuple[float, int] = (0.0, 0)
    stopped: float = 0.0
    verified: str = ""
    broken: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def percentile(self, percent: int) -> float:
        """Return a percentile of the seconds that producers waited."""
        ordered = sorted(self.seen.seconds)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


class _Helper:
    """A function in its own process, with a pipe to tell it to stop."""

    def __init__(self, work: Callable[[int, Connection], None], port: int) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process: BaseProcess = context.Process(target=work, args=(port, theirs), daemon=True)
        self._process.start()

    def hear(self) -> Any:
        """Return its next message."""
        assert self._pipe.poll(120), "the process says nothing"
        return self._pipe.recv()

    def stop(self) -> Any:
        """Tell it to stop; return its last message."""
        self._pipe.send("stop")
        said = self.hear()
        self._process.join(30)
        return said


def soak(
    folder: Path, seconds: float, *, database_url: str | None = None, tell: Callable[[str], None]
) -> Report:
    """Attack a node for some seconds, and report."""
    server = Server(folder, database_url=database_url)
    report = Report(server.database_url.partition(":")[0], seconds)
    _started(server)
    try:
        tell("filling 40,000 series")
        _fill(server)
        server.stop()
        report.first_start = _started(server)
        _attack(server, report, tell)
        tell("verifying")
        _verify(server, report)
        report.restart = _started(server)
        _check_counts(server, report)
        _judge(report)
    finally:
        if server.runs:
            server.kill()
        server.http.close()
    return report


def _started(server: Server) -> tuple[float, int]:
    """Start a server; return the seconds that it took, and its largest memory in bytes."""
    began = time.monotonic()
    server.start()
    return time.monotonic() - began, _peak(server)


def _peak(server: Server) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else server.memory()


def _fill(server: Server) -> None:
    """Make rollups of all possible keys."""
    for body in traffic.batches(traffic.every_series()):
        answer = server.http.post(
            "/v1/decisions", content=body, headers={"Content-Encoding": "gzip"}, timeout=120
        )
        assert answer.status_code == 200, answer.text


def _attack(server: Server, report: Report, tell: Callable[[str], None]) -> None:
    files = _open_files(server)
    hostile = _Helper(attack, server.port)
    hostile.hear()
    good = _Helper(behave_well, server.port)
    deadline = time.monotonic() + report.seconds
    while (left := deadline - time.monotonic()) > 0 and server.runs:
        report.memory.append(server.memory())
        if not len(report.memory) % 30:
            tell(f"{report.memory[-1] // MIB} MiB in use, {left:.0f} s to go")
        time.sleep(min(1.0, left))
    if not server.runs:
        report.broken.append(f"the server ended: {server.log.read_text()[-2_000:]}")
    failure = hostile.stop()
    if failure:
        report.broken.append(f"an attack was answered in a way it must not be: {failure}")
    report.seen = good.stop()
    report.broken += report.seen.wrong
    _check_files(server, files, report)
    # Attack again, to stop the server during an attack.
    hostile = _Helper(attack, server.port)
    hostile.hear()
    time.sleep(3)
    began = time.monotonic()
    server.terminate()
    assert server.process is not None
    code = server.process.wait(10 * STOP_SECONDS)
    report.stopped = time.monotonic() - began
    hostile.stop()
    if code:
        report.broken.append(f"the server ended with code {code}")
    _, traceback, told = server.log.read_text().partition("Traceback")
    if traceback:
        report.broken.append(f"there is a traceback in the log:\n{traceback}{told[:3_000]}")


def _open_files(server: Server) -> int:
    assert server.process is not None
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


def _check_files(server: Server, before: int, report: Report) -> None:
    deadline = time.monotonic() + CALM_SECONDS
    while (now := _open_files(server)) > before + SPARE_FILES:
        if time.monotonic() > deadline:
            report.broken.append(f"{now} files are open, {before} were before the attack")
            return
        time.sleep(0.2)


def _verify(server: Server, report: Report) -> None:
    command = [executable, "-m", "routecast", "verify", "--database", server.database_url]
    done = run(command, capture_output=True, text=True, check=False, env=server.env)
    # The first line has the result, and later lines what `verify` cannot detect.
    report.verified = (done.stdout + done.stderr).strip().partition("\n")[0][:200]
    if done.returncode:
        report.broken.append(f"verify: {(done.stdout + done.stderr)[:2_000]}")


def _check_counts(server: Server, report: Report) -> None:
    """Compare the receipts of producers with the count of their project."""
    counted = server.metrics(project=PROJECT)["total_decisions"] - _FILLED
    if counted != report.seen.accepted:
        report.broken.append(f"{counted} decisions are counted, {report.seen.accepted} were sent")


# The number of decisions of `_fill` that have the names of the producers.
_FILLED: Final = len(traffic.BANDS) * len(traffic.STATUSES)


def _judge(report: Report) -> None:
    targets = (
        ("p99 of producers", report.percentile(99), P99_SECONDS, "s"),
        ("memory under attack", max(report.memory, default=0) / MIB, RSS_BYTES / MIB, "MiB"),
        ("time to stop under attack", report.stopped, STOP_SECONDS, "s"),
        ("memory of a restart", report.restart[1] / MIB, RSS_BYTES / MIB, "MiB"),
    )
    for name, found, most, unit in targets:
        if found > most:
            report.missed.append(f"{name}: {found:.2f} {unit}, at most {most:g} {unit}")
