"""Threads and locks of the operating system, in programs that replace them by greenlets.

gevent and eventlet exchange the functions of `_thread` while a program runs. What was made before
then blocks all greenlets, and what is made after runs only when they let it. A thread and a lock of
the operating system do neither.
"""

import _thread
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_FOR_EVER: Final = -1.0


def start_thread(function: Callable[[], None]) -> None:
    """Run a function in a thread that takes no signals, and that no exit of the program waits for.

    Raises RuntimeError when no more threads are to be had, the interpreter is ending, or uWSGI has
    yet to fork.
    """
    if uwsgi_will_fork():
        raise RuntimeError("uWSGI will fork")
    _original("start_new_thread")(_without_signals, (function,))


def _without_signals(function: Callable[[], None]) -> None:
    # One that comes here would not interrupt what the main thread waits in (uWSGI: for requests).
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    function()


class Lock:
    """A lock that is only ever tried: who does not get it goes on."""

    def __init__(self) -> None:
        self._lock = _original("allocate_lock")()

    def acquire(self) -> bool:
        """Take the lock; return whether it was free."""
        taken: bool = self._lock.acquire(False)
        return taken

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def locked(self) -> bool:
        """Whether somebody has it."""
        taken: bool = self._lock.locked()
        return taken


class Bell:
    """Wakes one thread. It may be rung by a signal handler that interrupts its own ringing."""

    def __init__(self) -> None:
        self._lock = _original("allocate_lock")()
        self._lock.acquire()

    def ring(self) -> None:
        """End the wait of now, or else the next one."""
        with suppress(RuntimeError):  # it was rung already
            self._lock.release()

    def wait(self, seconds: float | None) -> None:
        """Wait for the bell, for at most `seconds`; None: for ever."""
        self._lock.acquire(True, _FOR_EVER if seconds is None else seconds)


def _original(name: str) -> Any:
    """Return a function of `_thread` as it was before it was replaced."""
    if monkey := sys.modules.get("gevent.monkey"):
        return monkey.get_original("_thread", name)
    if patcher := sys.modules.get("eventlet.patcher"):
        return getattr(patcher.original("_thread"), name)
    return getattr(_thread, name)


def uwsgi_will_fork() -> bool:
    """Whether this is uWSGI's master, or what will be one.

    It does not tell Python that it forks. If a thread waits to run just then, each child waits for
    ever for that thread, which it does not have.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None or not hasattr(uwsgi, "worker_id"):
        return False
    return not (uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler())
