"""`InFlightBatch`: one batch, which is sent again, or in halves, until all of it is answered."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from routecast.errors import Refused, RoutecastError, Unauthenticated, Unavailable
from routecast.protocol import Receipt
from routecast.retry import TOO_LARGE, Backoff

_UNREADABLE: Final = 400  # one decision of the batch may be the reason

T = TypeVar("T")


class InFlightBatch(Generic[T]):
    """A batch of decisions, in any form, and those of them that are not answered yet.

    `new_token` says whether another token may be available if the server refuses one. `most_split`
    is how often parts that the server cannot read may be halved, because one decision may be the
    reason. A part that is too large is always halved.
    """

    def __init__(self, batch: Sequence[T], *, new_token: bool = False, most_split: int = 0) -> None:
        # A tuple that is replaced as a whole, because other threads read it.
        self._parts: tuple[Sequence[T], ...] = (batch,)
        self._new_token = new_token
        self._may_split = most_split

    @property
    def left(self) -> list[T]:
        """The decisions that are not answered yet, in their order."""
        return [one for part in self._parts for one in part]

    @property
    def next_part(self) -> Sequence[T]:
        """The decisions of the next request; empty at the end."""
        return self._parts[0] if self._parts else ()

    def run(
        self,
        send: Callable[[Sequence[T]], Receipt],
        wait: Callable[[RoutecastError, float, float], bool],
        backoff: Backoff,
        keep: Callable[[Sequence[T]], Sequence[T]] = lambda part: part,
    ) -> Iterator[tuple[Sequence[T], Receipt | RoutecastError]]:
        """Send the batch; yield each part, in order, with its receipt or the error that refused it.

        Before each attempt, `keep` returns the decisions of a part that must still be sent. `send`
        raises what `HttpSender.send` does. After a temporary error, `wait` is called with the
        error, the seconds that the server asked for, and a random delay to add; it returns whether
        to continue. If not, `run` may be called again later for the decisions that are `left`.
        """
        while self._parts:
            whole, *others = self._parts
            part = keep(whole)
            self._parts = (part, *others) if part else tuple(others)
            if not part:
                continue
            answer: Receipt | RoutecastError
            try:
                answer = send(part)
            except RoutecastError as error:
                if self._may_pass(error):
                    asked = error.retry_after if isinstance(error, Unavailable) else 0
                    if not wait(error, asked, backoff.next()):
                        return
                    continue
                if self._is_split(error, len(part)):
                    half = len(part) // 2
                    self._parts = (part[:half], part[half:], *others)
                    continue
                answer = error
            else:
                backoff.reset()
            yield part, answer
            self._parts = tuple(others)

    def _may_pass(self, error: RoutecastError) -> bool:
        new_token = isinstance(error, Unauthenticated) and self._new_token
        return new_token or isinstance(error, Unavailable)

    def _is_split(self, error: RoutecastError, size: int) -> bool:
        """Whether a refused part is split: its halves may be accepted."""
        if size < 2 or not isinstance(error, Refused):
            return False
        if error.code == _UNREADABLE and self._may_split > 0:
            self._may_split -= 1
            return True
        return error.code == TOO_LARGE
