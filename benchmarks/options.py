"""Command line options: how large a run is, and whether it waits for a quiet machine."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

# Below this number of busy processors, other programs no longer change a ratio.
QUIET: Final = 0.2
LOOK_SECONDS: Final = 0.5


class Options(NamedTuple):
    """`quick` asks for small sizes; `patience` is how long each run waits for quiet, in seconds."""

    quick: bool
    patience: float

    def runs(self, count: int) -> Iterator[int]:
        """Yield the numbers of `count` runs, each at a quiet moment if there is one in time."""
        for run in range(count):
            _await_quiet(self.patience)
            yield run


def _await_quiet(patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = _busy_seconds()
        time.sleep(LOOK_SECONDS)
        if _busy_seconds() - before < QUIET * LOOK_SECONDS:
            return


def _busy_seconds() -> float:
    """Return the seconds that all processors together have worked since the machine started."""
    # In hundredths: user, nice, system, idle, waiting for a disk, and interrupts (proc(5)).
    line = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, *_ = (int(ticks) for ticks in line.split()[1:])
    return (user + nice + system) / 100
