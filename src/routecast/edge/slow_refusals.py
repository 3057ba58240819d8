"""Slow refusals: a client that sends wrong credentials waits longer and longer for the answer.

Only refusals are delayed. A credential that is accepted is answered at once, from any address.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from routecast.core.client_limits import ClientLimit, LimitModes, over_quota
from routecast.core.failed_sign_ins import FORGET_FAILURES_SECONDS, FailedSignIns
from routecast.core.token_bucket import Quota
from routecast.errors import BadCredential, RoutecastError

# Refusals that wait: in all, and of one address. Further ones are answered at once, with 429.
MAX_WAITING_REFUSALS: Final = 256
MAX_WAITING_REFUSALS_OF_ADDRESS: Final = 16


class SlowRefusals:
    """Delays the refusals of clients that failed more than `free` times; 0 delays none."""

    def __init__(
        self,
        free: int = 0,
        modes: LimitModes | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free = free
        self._modes = modes or LimitModes()
        self._now = now
        self._failed = FailedSignIns(free)
        self._waiting: Counter[str] = Counter()

    def judge(
        self, error: RoutecastError, address: str, credential: str | None
    ) -> tuple[RoutecastError, float]:
        """Count a refusal; return the error for the client, and the seconds to `wait` before it.

        A request without a credential is no attempt to sign in.
        """
        if not self._free or not isinstance(error, BadCredential) or not error.invalid:
            return error, 0.0
        about: list[str | bytes] = [address]
        if credential is not None:
            about.append(sha256(credential.encode()).digest())
        delay = self._failed.add(about, self._now())
        if not delay or not self._modes.hit(ClientLimit.FAILED_SIGN_INS):
            return error, 0.0
        if (
            self._waiting[address] >= MAX_WAITING_REFUSALS_OF_ADDRESS
            or self._waiting.total() >= MAX_WAITING_REFUSALS
        ):
            quota = Quota(self._free, FORGET_FAILURES_SECONDS)
            why = "too many credentials that are not accepted"
            return over_quota(ClientLimit.FAILED_SIGN_INS, quota, math.ceil(delay), why), 0.0
        return error, delay

    async def refused(
        self, error: RoutecastError, address: str, credential: str | None
    ) -> RoutecastError:
        """Count a refusal; after its delay, return the error for the client. Safe to cancel."""
        error, delay = self.judge(error, address, credential)
        if delay:
            await self.wait(address, delay)
        return error

    async def wait(self, address: str, seconds: float) -> None:
        """Wait before a refusal. Cancelling it is safe."""
        self._waiting[address] += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]
