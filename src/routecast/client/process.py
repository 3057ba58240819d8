"""`Process`: the senders and threads of one process, and what happens at its exit.

A forked child has none of its parent's threads, and its copies of queues and locks may be in any
state. So all objects are made at their first use in a process, and found by the process id, because
some programs (uWSGI) fork without telling Python.
"""

import atexit
import os
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from routecast.client.native_threads import Lock
from routecast.client.sender import RecorderSettings, Sender, logger
from routecast.client.threads import Threads


class Process:
    """The senders of one process, by their settings."""

    def __init__(self) -> None:
        self._threads = Threads()
        # A sender without work and without a recorder is freed.
        self._senders: weakref.WeakValueDictionary[Any, Sender] = weakref.WeakValueDictionary()
        self._ending = Lock()
        self._began_to_end: float | None = None
        _call_at_end_of_child(self.end)

    def sender(self, settings: RecorderSettings) -> Sender:
        """Return the process's sender with these settings."""
        key = _key(settings)
        if (sender := self._senders.get(key)) is None:
            sender = self._senders.setdefault(key, Sender(settings, self._threads))
        if self._began_to_end is not None:
            sender.end_by(self._began_to_end + settings.exit_timeout)
            sender.end()
        return sender

    def end(self) -> None:
        """Send waiting decisions, in all senders at once, each for at most its `exit_timeout`.

        Lost decisions are logged, one line for each sender.
        """
        if not self._ending.acquire():  # an exit handler of `multiprocessing` was first
            return
        began = self._began_to_end = time.monotonic()
        senders = list(self._senders.values())
        for sender in senders:
            sender.end_by(began + sender.settings.exit_timeout)
        for done, sender in enumerate(senders):
            # If no thread can be started, the senders work one after another, each in its share of
            # the time.
            now, deadline = time.monotonic(), began + sender.settings.exit_timeout
            sender.finish(now + (deadline - now) / (len(senders) - done))
        for sender in senders:
            sender.finish(began + sender.settings.exit_timeout)
            if lost := sender.end():
                words = "%s: the program ends with %s decisions not sent, or not answered for"
                logger.warning(words, sender.settings.server, f"{lost:,}")


def here() -> Process:
    """Return the `Process` of the current process."""
    pid = os.getpid()
    if (process := _processes.get(pid)) is None:
        # One operation, so that concurrent threads get the same object.
        process = _processes.setdefault(pid, Process())
        for other in list(_processes):
            if other != pid:  # a parent's
                _processes.pop(other, None)
    return process


def _key(settings: RecorderSettings) -> Any:
    try:
        hash(settings)
    except Exception:  # the token is any object; the sender keeps it alive, so its id stays unique
        return (id(settings.token), *_without_token(settings))
    return settings


def _without_token(settings: RecorderSettings) -> tuple[Any, ...]:
    names = ("server", "capacity", "batch", "linger", "exit_timeout")
    return tuple(getattr(settings, name) for name in names)


def _call_at_end_of_child(function: Callable[[], None]) -> None:
    """Call a function at the exit of a child of `multiprocessing`.

    These end by `os._exit`, which skips `atexit`; `multiprocessing` has exit handlers of its own.
    """
    process, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    if process and util and process.parent_process():
        # After all others, and after the child's own children.
        util.Finalize(None, function, exitpriority=-100)


_processes: Final[dict[int, Process]] = {}
# Registered at import, so that it runs after exit handlers that are registered later: decisions
# that they record are sent, too.
atexit.register(lambda: here().end())
