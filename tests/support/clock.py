"""A clock that stands still until a test sets it."""

from tests.support.decisions import NOW


class HeldClock:
    """Tells the time it was set to (`ports.Clock`), in microseconds."""

    def __init__(self, moment: int = NOW) -> None:
        self.moment = moment

    def now(self) -> int:
        return self.moment
