"""The limit of frames per second that the streams of one subject may ask for together."""

from collections import Counter
from typing import Final

from routecast.core.access import ANYONE, Principal
from routecast.core.client_limits import ClientLimit, LimitModes, client_name
from routecast.errors import OverLimit

# Sums are integers, in frames of 1,000,000 seconds, so that adding and removing leaves nothing.
_SCALE: Final = 1_000_000
# When a client may ask again, in seconds, because another stream may have ended.
_RETRY_SECONDS: Final = 10


class FrameLimit:
    """Counts what the streams of each subject ask for: one frame in each of their intervals.

    `a_second` is the limit; 0 is none. Over it, a stream or subscription is refused: a longer
    interval than its client asked for would show it old numbers without a word. Without
    authentication there are no subjects, and no limit.
    """

    def __init__(self, a_second: int = 0, modes: LimitModes | None = None) -> None:
        self._limit = a_second
        self._modes = modes or LimitModes()
        self._asked: Counter[str] = Counter()

    def require(self, principal: Principal, interval: float, *, probe: bool = False) -> None:
        """Raise OverLimit if one more stream at this interval is too much.

        `probe` only asks: it is not counted as a hit.
        """
        if not self._limit or principal is ANYONE:
            return
        asked = self._asked[client_name(principal)] + _frames(interval)
        if asked <= self._limit * _SCALE:
            return
        limit = ClientLimit.FRAME_RATE
        if self._modes.enforces(limit) if probe else self._modes.hit(limit):
            raise OverLimit(
                f"interval: the streams of one subject may ask for {self._limit} frames a second "
                f"together, and these would be {asked / _SCALE:g}; use longer intervals",
                limit=limit,
                amount=self._limit,
                seconds=1,
                retry_after=_RETRY_SECONDS,
            )

    def add(self, principal: Principal, interval: float) -> None:
        """Count a stream or subscription."""
        if self._limit and principal is not ANYONE:
            self._asked[client_name(principal)] += _frames(interval)

    def remove(self, principal: Principal, interval: float) -> None:
        """Count a stream or subscription less."""
        if self._limit and principal is not ANYONE:
            name = client_name(principal)
            self._asked[name] -= _frames(interval)
            if not self._asked[name]:
                del self._asked[name]


def _frames(interval: float) -> int:
    return round(_SCALE / interval)
