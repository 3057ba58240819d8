"""Limits per client: their names, whether each is enforced, and the error of a client over one.

A limit in *dry run* is counted when it is reached, and not enforced: so an operator sees which
clients it would refuse, before it does.
"""

import math
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Final

from routecast.core.access import ANYONE, Principal
from routecast.core.token_bucket import Quota
from routecast.errors import OverLimit


class ClientLimit(StrEnum):
    """The limits per client, each with a setting.

    Attributes:
        STREAMS_PER_ADDRESS: Streams that are open from one address.
        STREAMS_PER_SUBJECT: Streams that are open with credentials of one subject.
        CONNECTION_RATE: Streams that one address opens in a minute.
        MESSAGES: Messages that one connection sends in a minute.
        MESSAGE_BYTES: Bytes of the messages that one connection sends in a minute.
        FRAME_RATE: Frames a second that one subject asks for.
        INGEST: Decisions that one subject sends in a minute.
        SESSIONS: Sessions that one subject begins in a day.
        TICKETS: Tickets that one subject makes in a minute.
        FAILED_SIGN_INS: Credentials of one address, or uses of one, that are refused.
    """

    STREAMS_PER_ADDRESS = "streams_per_address"
    STREAMS_PER_SUBJECT = "streams_per_subject"
    CONNECTION_RATE = "connection_rate"
    MESSAGES = "messages"
    MESSAGE_BYTES = "message_bytes"
    FRAME_RATE = "frame_rate"
    INGEST = "ingest"
    SESSIONS = "sessions"
    TICKETS = "tickets"
    FAILED_SIGN_INS = "failed_sign_ins"


class LimitMode(StrEnum):
    """Whether a limit is enforced."""

    ENFORCED = "enforced"
    DRY_RUN = "dry_run"


# In a list of limits: all of them.
ALL_LIMITS: Final = "all"


class LimitModes:
    """Which limits are in dry run. `count` is called for each time that a client is over one."""

    def __init__(
        self,
        dry_run: Collection[str] = (),
        count: Callable[[ClientLimit, LimitMode], object] = lambda *_: None,
    ) -> None:
        self._dry_run = set(ClientLimit) if ALL_LIMITS in dry_run else set(dry_run)
        self._count = count

    def enforces(self, limit: ClientLimit) -> bool:
        """Whether a client over a limit must be refused."""
        return limit not in self._dry_run

    def hit(self, limit: ClientLimit) -> bool:
        """Count that a client is over a limit; return whether it must be refused."""
        enforces = self.enforces(limit)
        self._count(limit, LimitMode.ENFORCED if enforces else LimitMode.DRY_RUN)
        return enforces


def over_quota(limit: ClientLimit, quota: Quota, wait: float, why: str) -> OverLimit:
    """Return the error of a client that may go on after `wait` seconds."""
    return OverLimit(
        why,
        limit=limit,
        amount=quota.amount,
        seconds=round(quota.seconds),
        retry_after=max(1, math.ceil(wait)),
    )


def client_name(principal: Principal, address: str = "") -> str:
    """Return what limits know a client by: its subject; without authentication, its address.

    The subject of an API key is its name.
    """
    if principal is ANYONE:
        return f"address {address}"
    return f"subject {principal.subject}"
