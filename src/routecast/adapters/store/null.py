"""The store of a node without a database: it only streams what other nodes send."""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Never

from routecast.core.cardinality import FoldedNames
from routecast.core.clock_check import KeptSpan
from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.history import Plan
from routecast.core.snapshot import Snapshot
from routecast.core.time_series import TimeSeries
from routecast.core.window import WindowQuery
from routecast.errors import MissingDeltas, Unavailable
from routecast.ports import Checked, Commit, Condition, Difference, NameUse
from routecast.protocol import Position


def _refuse() -> Never:
    raise Unavailable("this node only streams (--role stream); send decisions to another node")


class NullStore:
    """A store that can only be opened and closed (`ports.Store`)."""

    condition = Condition()
    unverifiable = ()

    async def open(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def commit(self, batches: Sequence[Sequence[DecisionRecord]], received: int) -> Commit:
        _refuse()

    async def check(self) -> None:
        _refuse()

    async def position(self) -> Position:
        _refuse()

    async def load(self, now: int, room: int | None = None) -> Snapshot:
        raise Unavailable("no other node has cached a snapshot that is new enough")

    async def deltas(self, after: Position) -> list[Delta]:
        raise MissingDeltas("this node has no database to fetch deltas from")

    async def span(self) -> KeptSpan:
        _refuse()

    async def prune(self, *, decisions_before: int, minutes_before: int, limit: int) -> int:
        _refuse()

    async def history(self, plan: Plan) -> TimeSeries:
        _refuse()

    async def window(self, asked: WindowQuery, now: int) -> Snapshot:
        _refuse()

    async def unsummed(self, *, before: int) -> list[int]:
        _refuse()

    async def summarise(self, hour: int) -> None:
        _refuse()

    async def names(self) -> list[NameUse]:
        _refuse()

    async def folded_names(self) -> FoldedNames:
        return {}  # they only matter to commits

    async def fold_names(self, part: str, names: Collection[str], *, remember: bool) -> Position:
        _refuse()

    def verify(self) -> AsyncIterator[Checked | Difference]:
        _refuse()
