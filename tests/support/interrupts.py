"""Ctrl-C reaches what tests start, also where the run itself does not heed it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def children_heed_ctrl_c() -> Iterator[None]:
    """Have processes started within heed SIGINT, where this one was told to ignore it.

    A shell tells that to what it runs in the background, and programs inherit it. A handler is not
    inherited: one that does nothing leaves this process as it was, and what it starts as is usual.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
