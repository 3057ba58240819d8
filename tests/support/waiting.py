"""Waiting for a condition that has no event of its own."""

import time
from collections.abc import Callable


def until(met: Callable[[], object], seconds: float = 60.0) -> None:
    """Return when a condition is true; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # time between two checks; the result is the event
