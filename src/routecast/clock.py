"""The system's clock (`ports.Clock`)."""

import time


class SystemClock:
    """Microseconds since 1970 by this machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 1000
