"""Reports: settings and measurements of a run, as a table and as JSON."""

import os
import platform
import statistics
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import apsw
import msgspec

RESULTS: Final = Path(__file__).parent / "results"


class Figure(msgspec.Struct):
    """A line of a table: one sample per run, and the minimum or maximum for the median."""

    name: str
    samples: list[float]
    least: float | None = None
    most: float | None = None
    decimals: int = 2

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def cells(self) -> tuple[str, ...]:
        """The line as text."""
        asked = met = ""
        if self.least is not None:
            asked, met = f"≥ {self._text(self.least)}", _yes(self.median >= self.least)
        elif self.most is not None:
            asked, met = f"≤ {self._text(self.most)}", _yes(self.median <= self.most)
        spread = f"{self._text(min(self.samples))} – {self._text(max(self.samples))}"
        runs = len(self.samples)
        return self.name, asked, self._text(self.median), spread if runs > 1 else "", met

    def _text(self, value: float) -> str:
        return f"{value:,.{self.decimals}f}"


class Report(msgspec.Struct):
    """The results of one benchmark. `load` is the machine's load average when it began."""

    name: str
    title: str
    figures: list[Figure]
    quick: bool
    machine: str = msgspec.field(default_factory=lambda: machine())
    taken: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    load: float = msgspec.field(default_factory=lambda: os.getloadavg()[0])

    def table(self) -> str:
        """Return the figures as a Markdown table."""
        head = ("", "asked", "median", "least – most", "met")
        lines = [head, *(figure.cells for figure in self.figures)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        lines.insert(1, ("-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])))
        rows = (
            " | ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )
        return "\n".join(f"| {row} |" for row in rows)

    def save(self) -> Path:
        """Write the report with all samples as JSON; return the path."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}{'-quick' if self.quick else ''}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        return path


def machine() -> str:
    """Return one line that describes the machine."""
    return (
        f"{os.cpu_count()} cores {_processor()}, {platform.system()} "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}, "
        f"SQLite {apsw.sqlite_lib_version()}"
    )


def _processor() -> str:
    with suppress(OSError):  # only on Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Return the ratio of each pair of runs."""
    return [a / b for a, b in zip(over, under, strict=True)]


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile of values, of which there must be at least one."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) * percent // 100]


def _yes(met: bool) -> str:
    return "yes" if met else "NO"
