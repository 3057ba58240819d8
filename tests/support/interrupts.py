"""Restoring SIGINT for processes that tests start, if the test run ignores it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def children_react_to_ctrl_c() -> Iterator[None]:
    """Let processes that are started within react to SIGINT, even if this one ignores it.

    A shell starts background commands with SIGINT ignored, and programs inherit that. A handler is
    not inherited: with one that does nothing, this process still ignores SIGINT, and its children
    react as usual.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
