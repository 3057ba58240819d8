"""How long to stay away: one rule for streams and for producers."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

FIRST_BACKOFF: Final = 1.0
LONGEST_BACKOFF: Final = 30.0
_GROWTH: Final = 2.0


@dataclass(slots=True)
class Backoff:
    """Pauses between tries, in seconds: by chance, from nothing to a bound that grows.

    That is known as full jitter. Clients that lost a server together do not come back together, and
    the first come at once. `reset` after a success.
    """

    first: float = FIRST_BACKOFF
    longest: float = LONGEST_BACKOFF
    failures: int = 0
    draw: Callable[[float, float], float] = field(default=random.uniform, repr=False)

    def next(self, least: float = 0.0) -> float:
        """Return the next pause: what was drawn, on top of the `least` the server asked for."""
        # The exponent is bounded too: a float overflows after a thousand failures.
        bound = min(self.first * _GROWTH ** min(self.failures, 32), self.longest)
        self.failures += 1
        return least + self.draw(0.0, bound)

    def reset(self) -> None:
        """Forget the failures so far."""
        self.failures = 0
