"""The threads of one process that send decisions: a bounded number, whatever there is to send."""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

from routecast.client.native import start_thread

logger: Final = logging.getLogger("routecast.client")

MAX_THREADS: Final = 32  # each has a connection: few enough for a process of 256 open files
MAX_IN_LINE: Final = 1_000


class Work(Protocol):
    """What a thread does."""

    def work(self) -> None:
        """Do what there is to do; return when there is none."""

    def ring(self) -> None:
        """Have it look whether its thread is `wanted`."""

    def refuse(self) -> None:
        """Give up what there is to do."""


class Threads:
    """Gives work to at most MAX_THREADS threads. What finds none stands in line for one.

    It waits for nothing, and takes no lock: `run` is called wherever a decision is recorded, in
    signal handlers too. Each step is one operation on a deque or a dict.
    """

    def __init__(self) -> None:
        self._free = deque(range(MAX_THREADS))
        self._line: deque[Work] = deque()
        self._resting: dict[Work, None] = {}
        self._told = False

    @property
    def wanted(self) -> bool:
        """Whether somebody stands in line: then nobody holds a thread that he does not need."""
        return bool(self._line)

    def run(self, work: Work) -> bool:
        """Have a thread do some work, once; return False when no thread could be started.

        It stays in line then, until `start` finds a thread.
        """
        if len(self._line) >= MAX_IN_LINE:
            self._refuse(work)
            return True
        self._line.append(work)
        return self.start()

    def start(self) -> bool:
        """Start a thread where somebody stands in line; return False when that failed."""
        if not self._line:
            return True
        try:
            number = self._free.pop()
        except IndexError:  # each looks at the line before it ends
            with suppress(KeyError):
                self._resting.popitem()[0].ring()
            return True
        try:
            start_thread(self._serve)
        except RuntimeError:  # no more are to be had, or the interpreter is ending
            self._free.append(number)
            return False
        return True

    @contextmanager
    def resting(self, work: Work) -> Iterator[None]:
        """Within it, `work` is rung when its thread is wanted."""
        self._resting[work] = None
        try:
            yield
        finally:
            self._resting.pop(work, None)

    def _serve(self) -> None:
        try:
            while self._line:
                with suppress(IndexError):  # another thread took it
                    self._do(self._line.popleft())
        finally:
            self._free.append(0)
            # Who came just now found no thread free.
            self.start()

    def _do(self, work: Work) -> None:
        try:
            work.work()
        except Exception:
            logger.exception("The thread that sends decisions failed; the next decision starts it")

    def _refuse(self, work: Work) -> None:
        work.refuse()
        if not self._told:
            self._told = True
            words = "more than %s recorders with different settings: decisions are dropped. %s"
            advice = "Give them one address and one token, or one function for tokens"
            logger.warning(words, f"{MAX_IN_LINE:,}", advice)
