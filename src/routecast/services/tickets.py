"""Tickets: each opens one stream, once, soon, and from the address that it was made for."""

import secrets

from routecast.core.access import Principal
from routecast.core.client_limits import client_name
from routecast.core.decision import SECOND
from routecast.core.record_limit import RecordLimit
from routecast.core.tickets_and_sessions import (
    MAX_SECRET_LENGTH,
    TICKET_BYTES,
    TICKET_KIND,
    TICKET_SECONDS,
    pack_principal,
    record_name,
    unpack_principal,
)
from routecast.errors import BadCredential, Unavailable
from routecast.ports import Clock, TemporaryRecords


class Tickets:
    """Makes tickets, and takes each of them once. `limit` limits those that a client makes."""

    def __init__(self, records: TemporaryRecords, clock: Clock, limit: RecordLimit) -> None:
        self._records = records
        self._clock = clock
        self._limit = limit

    async def make(self, principal: Principal, address: str) -> str:
        """Return a ticket of a principal for its client's address. Raises OverLimit, Unavailable.

        Without authentication, the limit counts by address.
        """
        ticket = secrets.token_urlsafe(TICKET_BYTES)
        name, record = record_name(TICKET_KIND, ticket), pack_principal(principal, address)
        client, now = client_name(principal, address), self._clock.now() / SECOND
        counted = self._limit.take(client, record, now)
        try:
            await self._records.put(name, record, TICKET_SECONDS)
        except Unavailable:
            self._limit.give_back(client, counted, now)
            raise
        return ticket

    async def redeem(self, ticket: str, address: str) -> Principal:
        """Return whose ticket it is. Whatever the answer, it cannot be used again.

        Raises BadCredential, Unavailable.
        """
        packed = None
        if len(ticket) <= MAX_SECRET_LENGTH:
            packed = await self._records.take(record_name(TICKET_KIND, ticket))
        if packed is None:
            raise BadCredential(
                f"the ticket is not known: it may be used once, within {TICKET_SECONDS} s"
            )
        try:
            principal, made_for = unpack_principal(packed)
        except ValueError:
            raise BadCredential("the ticket cannot be read") from None
        if address != made_for:
            raise BadCredential("the ticket was made for another address")
        return principal
