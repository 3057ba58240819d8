"""`Threads`: the threads of one process that send decisions, at most MAX_THREADS."""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

from routecast.client.native_threads import start_thread

logger: Final = logging.getLogger("routecast.client")

MAX_THREADS: Final = 32  # each has a connection: few enough for a process of 256 open files
MAX_QUEUED: Final = 1_000


class Work(Protocol):
    """The work of a thread."""

    def work(self) -> None:
        """Work until there is nothing left to do."""

    def wake(self) -> None:
        """Wake it, to check whether its thread is `wanted`."""

    def refuse(self) -> None:
        """Drop all of its work."""


class Threads:
    """Gives work to at most MAX_THREADS threads; other work waits in a queue.

    It never blocks and takes no lock: `run` is called wherever a decision is recorded, also in
    signal handlers. Each step is one operation on a deque or a dict.
    """

    def __init__(self) -> None:
        self._free = deque(range(MAX_THREADS))
        self._queue: deque[Work] = deque()
        self._resting: dict[Work, None] = {}
        self._is_refusal_logged = False

    @property
    def wanted(self) -> bool:
        """Whether work waits for a thread: then idle work must release its own."""
        return bool(self._queue)

    def run(self, work: Work) -> bool:
        """Have a thread do some work once; return False if no thread could be started.

        The work then stays in the queue until `start` finds a thread.
        """
        if len(self._queue) >= MAX_QUEUED:
            self._refuse(work)
            return True
        self._queue.append(work)
        return self.start()

    def start(self) -> bool:
        """Start a thread if work waits; return False if that failed."""
        if not self._queue:
            return True
        try:
            number = self._free.pop()
        except IndexError:  # each busy thread checks the queue before it ends
            with suppress(KeyError):
                self._resting.popitem()[0].wake()
            return True
        try:
            start_thread(self._serve)
        except RuntimeError:  # there are no more threads, or the interpreter is ending
            self._free.append(number)
            return False
        return True

    @contextmanager
    def resting(self, work: Work) -> Iterator[None]:
        """Within the context, `work.wake` is called when its thread is wanted."""
        self._resting[work] = None
        try:
            yield
        finally:
            self._resting.pop(work, None)

    def _serve(self) -> None:
        try:
            while self._queue:
                with suppress(IndexError):  # another thread took it
                    self._do(self._queue.popleft())
        finally:
            self._free.append(0)
            # Work that was queued just now found no free thread.
            self.start()

    def _do(self, work: Work) -> None:
        try:
            work.work()
        except Exception:
            logger.exception("The thread that sends decisions failed; the next decision starts it")

    def _refuse(self, work: Work) -> None:
        work.refuse()
        if not self._is_refusal_logged:
            self._is_refusal_logged = True
            words = "more than %s recorders with different settings: decisions are dropped. %s"
            advice = "Give them one address and one token, or one function for tokens"
            logger.warning(words, f"{MAX_QUEUED:,}", advice)
