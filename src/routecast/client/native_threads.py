"""Threads and locks of the operating system, also in programs that replace them by greenlets.

gevent and eventlet replace the functions of `_thread` while a program runs. A lock made before that
blocks all greenlets, and a thread made after it runs only when greenlets yield. The threads and
locks of this module do neither.
"""

import _thread
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_FOR_EVER: Final = -1.0


def start_thread(function: Callable[[], None]) -> None:
    """Run a function in a thread that receives no signals; the program does not wait for its end.

    Raises RuntimeError if no thread can be started, the interpreter is ending, or uWSGI will fork
    later.
    """
    if uwsgi_will_fork():
        raise RuntimeError("uWSGI will fork")
    _original("start_new_thread")(_without_signals, (function,))


def _without_signals(function: Callable[[], None]) -> None:
    # A signal that arrives here would not interrupt the main thread (uWSGI's waits for requests).
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    function()


class Lock:
    """A lock whose `acquire` never waits."""

    def __init__(self) -> None:
        self._lock = _original("allocate_lock")()

    def acquire(self) -> bool:
        """Take the lock; return whether it was free."""
        taken: bool = self._lock.acquire(False)
        return taken

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def locked(self) -> bool:
        """Whether a thread has the lock."""
        taken: bool = self._lock.locked()
        return taken


class WakeSignal:
    """Wakes one thread. A signal handler may call `wake` while `wake` runs."""

    def __init__(self) -> None:
        self._lock = _original("allocate_lock")()
        self._lock.acquire()

    def wake(self) -> None:
        """End the current wait; if there is none, the next one."""
        with suppress(RuntimeError):  # it is set already
            self._lock.release()

    def wait(self, seconds: float | None) -> None:
        """Wait until `wake` is called, for at most `seconds`; None waits for ever."""
        self._lock.acquire(True, _FOR_EVER if seconds is None else seconds)


def _original(name: str) -> Any:
    """Return the original function of `_thread`, before it was replaced."""
    if monkey := sys.modules.get("gevent.monkey"):
        return monkey.get_original("_thread", name)
    if patcher := sys.modules.get("eventlet.patcher"):
        return getattr(patcher.original("_thread"), name)
    return getattr(_thread, name)


def uwsgi_will_fork() -> bool:
    """Whether this process is uWSGI's master, or will become it.

    uWSGI does not tell Python that it forks. If a thread waits for Python's lock at that moment,
    each child waits for ever for that thread, which the child does not have.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None or not hasattr(uwsgi, "worker_id"):
        return False
    return not (uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler())
