"""The key ring: API keys and revocations, as this node knows them.

The database has them, and each node reads their version once a second. So a change is known to all
nodes within two seconds, and a request costs no query. While the database is away, the last known
ones hold. Nodes with a database share them with those that only stream, through the cluster.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from routecast import audit
from routecast.core.access import Principal
from routecast.core.decision import MINUTE
from routecast.core.keys import AccessRecords, KeyTable
from routecast.errors import BadCredential, Unavailable
from routecast.ports import Clock, Cluster, KeyStore

log = logging.getLogger(__name__)

# Seconds between two looks at the version. A node that only streams looks more often, because the
# other nodes must have looked before.
LOOK_SECONDS: Final = 1.0
LOOK_SHARED_SECONDS: Final = 0.5


class KeyRing:
    """Knows whose a key is, and what is revoked. Run `run` as a task.

    `store` is None on a node without a database. `followers` are called, after each change and when
    a key expires, with a predicate that tells whether the credential of a principal is revoked.
    """

    def __init__(self, store: KeyStore | None, cluster: Cluster, clock: Clock) -> None:
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._table: KeyTable | None = None  # None: not known yet
        self._records: AccessRecords | None = None  # that `_table` was made of
        self._next_expiry: int | None = None
        # Moments of uses that are not noted yet, by key; and when uses were last noted.
        self._used: dict[str, int] = {}
        self._noted = 0
        self.followers: list[Callable[[Callable[[Principal], bool]], object]] = []
        self.failing: str | None = None  # why the last known keys and revocations are used

    @property
    def required(self) -> bool:
        """Whether there is a key, or there may be one.

        Revoked and expired keys count: the end of the last key must not let everyone in.
        """
        return self._table is None or len(self._table) > 0

    def require_known(self) -> None:
        """Raise Unavailable if it is unknown whether there are keys."""
        self._known()

    def identify(self, key: str) -> Principal:
        """Return the principal of an API key. Raises BadCredential; Unavailable while unknown."""
        now = self._clock.now()
        principal = self._known().identify(key, now)
        self._used[principal.credential] = now
        return principal

    def check(self, principal: Principal) -> None:
        """Raise BadCredential if a credential is revoked; Unavailable while that is unknown."""
        if self._known().is_revoked(principal, self._clock.now()):
            kind = "API key" if principal.is_key else "token"
            raise BadCredential(f"the {kind} was revoked")

    def _known(self) -> KeyTable:
        if self._table is None:
            why = f": {self.failing}" if self.failing else ""
            raise Unavailable(f"API keys and revocations are not known yet{why}")
        return self._table

    # -- keeping up -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep up with the database. Never ends."""
        async with asyncio.TaskGroup() as group:
            # Beside the looks: a note waits for other writes, and no revocation may wait for it.
            group.create_task(self._keep_noting())
            while True:
                with suppress(Unavailable):
                    await self.refresh()
                self._end_expired()
                await asyncio.sleep(LOOK_SHARED_SECONDS if self._store is None else LOOK_SECONDS)

    async def _keep_noting(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(Unavailable):  # they are noted a second later
                await self._note_uses()

    async def refresh(self) -> None:
        """Learn what has changed. Raises Unavailable; the last known keys and revocations stay."""
        try:
            if self._store is None:
                await self._learn_shared()
            else:
                await self._learn(self._store)
        except Unavailable as error:
            if self.failing is None:
                log.error(
                    "API keys and revocations cannot be read; %s: %s",
                    "none are known yet" if self._table is None else "the last known ones are used",
                    error,
                )
            self.failing = str(error)
            raise
        if self.failing is not None:
            log.warning("API keys and revocations can be read again")
        self.failing = None

    async def _learn(self, store: KeyStore) -> None:
        """Learn from the database, and share it."""
        try:
            version = await store.access_version()
            if self._records is None or version != self._records.version:
                await self._adopt(await store.access())
        except Unavailable:
            if self._table is None:  # other nodes may have shared what is in the database
                with suppress(Unavailable):
                    await self._learn_shared()
            raise
        assert self._records is not None
        with suppress(Unavailable):  # others keep what they know
            if await self._cluster.shared_version() != self._records.version:
                await self._cluster.share_access(self._records)

    async def _learn_shared(self) -> None:
        """Learn what another node has shared."""
        version = await self._cluster.shared_version()
        if self._records is not None and version == self._records.version:
            return
        records = await self._cluster.shared_access()
        if records is None:
            raise Unavailable("no node with a database has shared them")
        await self._adopt(records)

    async def _adopt(self, records: AccessRecords) -> None:
        table = await asyncio.to_thread(KeyTable, records)  # it may have 10,000 keys
        now = self._clock.now()
        if self._records is not None and audit.listens():
            _audit(self._records, records)
        self._records, self._table = records, table
        self._next_expiry = table.next_expiry(now)
        self._tell(table, now)

    def _end_expired(self) -> None:
        """End the streams of keys that have expired.

        The end of a key may have been set, or made earlier, after its streams had begun.
        """
        now = self._clock.now()
        if self._table is not None and self._next_expiry is not None and self._next_expiry <= now:
            self._next_expiry = self._table.next_expiry(now)
            self._tell(self._table, now)

    def _tell(self, table: KeyTable, now: int) -> None:
        is_revoked = partial(table.is_revoked, now=now)
        for follower in self.followers:
            follower(is_revoked)

    async def _note_uses(self) -> None:
        """Note in the database when keys were used, at most once a minute."""
        now = self._clock.now()
        if self._store is None or not self._used or 0 <= now - self._noted < MINUTE:
            return
        used, self._used = self._used, {}
        try:
            await self._store.note_use({one: at - at % MINUTE for one, at in used.items()})
        except Unavailable:
            self._used = used | self._used
            raise
        self._noted = now


def _audit(known: AccessRecords, changed: AccessRecords) -> None:
    """Log what has been made and revoked, by whichever node or command."""
    for identity, key in changed.keys.items():
        before = known.keys.get(identity)
        fields = {"subject": key.name, "credential": key.id}
        if before is None:
            audit.record(
                "key_created", "An API key was created", **fields, scopes=sorted(key.scopes)
            )
        if key.revoked is not None and (before is None or before.revoked is None):
            audit.record("revoke", "An API key was revoked", **fields, kind="key")
    for about, revocation in changed.revocations.items():
        if known.revocations.get(about) != revocation:
            audit.record("revoke", "Tokens were revoked", kind=str(about.kind), value=about.value)
