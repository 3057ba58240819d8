"""What belongs to one process: its senders, its threads, and its end.

Threads do not live on in a forked child, and its copies of queues and locks are in whatever state
they were. So everything is made at its first use in a process, and found by the process's id: not
all who fork (uWSGI) tell Python of it.
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
        # One that has nothing to do, and no recorder, is forgotten.
        self._senders: weakref.WeakValueDictionary[Any, Sender] = weakref.WeakValueDictionary()
        self._ending = Lock()
        self._began_to_end: float | None = None
        _call_at_end_of_child(self.end)

    def sender(self, settings: RecorderSettings) -> Sender:
        """Return the one sender of these settings."""
        key = _key(settings)
        if (sender := self._senders.get(key)) is None:
            sender = self._senders.setdefault(key, Sender(settings, self._threads))
        if self._began_to_end is not None:
            sender.end_by(self._began_to_end + settings.exit_timeout)
            sender.end()
        return sender

    def end(self) -> None:
        """Send what waits, all senders at once, each for at most its `exit_timeout`.

        What is lost is told in one line for each address.
        """
        if not self._ending.acquire():  # an exit handler of `multiprocessing` was first
            return
        began = self._began_to_end = time.monotonic()
        senders = list(self._senders.values())
        for sender in senders:
            sender.end_by(began + sender.settings.exit_timeout)
        for done, sender in enumerate(senders):
            # Where no threads are to be had, they are sent one after another, each in its share.
            now, deadline = time.monotonic(), began + sender.settings.exit_timeout
            sender.finish(now + (deadline - now) / (len(senders) - done))
        for sender in senders:
            sender.finish(began + sender.settings.exit_timeout)
            if lost := sender.end():
                words = "%s: the program ends with %s decisions not sent, or not answered for"
                logger.warning(words, sender.settings.server, f"{lost:,}")


def here() -> Process:
    """Return this process's own."""
    pid = os.getpid()
    if (process := _processes.get(pid)) is None:
        # One operation, so that threads which come at once get the same.
        process = _processes.setdefault(pid, Process())
        for other in list(_processes):
            if other != pid:  # a parent's
                _processes.pop(other, None)
    return process


def _key(settings: RecorderSettings) -> Any:
    try:
        hash(settings)
    except Exception:  # its token is an object of the caller's; the sender keeps it, and so its id
        return (id(settings.token), *_without_token(settings))
    return settings


def _without_token(settings: RecorderSettings) -> tuple[Any, ...]:
    names = ("server", "capacity", "batch", "linger", "exit_timeout")
    return tuple(getattr(settings, name) for name in names)


def _call_at_end_of_child(function: Callable[[], None]) -> None:
    """Have a function called at the end of a child of `multiprocessing`.

    These end by `os._exit`, which skips `atexit`; `multiprocessing` has exit handlers of its own.
    """
    process, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    if process and util and process.parent_process():
        # After all others, and after the child's own children.
        util.Finalize(None, function, exitpriority=-100)


_processes: Final[dict[int, Process]] = {}
# At import, so that it comes after the exit handlers of those who imported this: what they record
# is sent, too.
atexit.register(lambda: here().end())
