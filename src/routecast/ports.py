"""What services need from the world: contracts that every adapter keeps, failures included.

Whatever engine is behind a port, the suite in `tests/contract` runs on it unchanged. A port's
methods raise `Unavailable` when their engine cannot answer now, having changed nothing.
"""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from routecast.core.cardinality import FoldedNames
from routecast.core.caution import KeptSpan
from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.history import Plan
from routecast.core.payload import Payload
from routecast.core.room import Full
from routecast.core.snapshot import Snapshot
from routecast.core.time_series import TimeSeries
from routecast.core.window import WindowQuery
from routecast.protocol import CloseCode, Position, Source

# The deltas of at least this number of commits are kept: minutes of a busy node, which is more than
# a node that lost step needs to find it again.
DELTAS_KEPT: Final = 1_000
# But not when these have more cells than this: then to load costs less than to catch up.
DELTA_CELLS_KEPT: Final = 100_000
# Decisions in one commit of several batches. A larger batch is a commit of its own, which stores
# prepare beside others: see `Store.commit`.
MAX_GROUP: Final = 1_000
# The same while no small batch comes: producers of medium ones wait for throughput.
MAX_BULK_GROUP: Final = 4_000
# Minutes are kept for at least this number of days.
MIN_MINUTE_DAYS: Final = 8
# A node's report about itself is valid for this time, in seconds.
PRESENCE_SECONDS: Final = 15.0


class Clock(Protocol):
    """The time, so that tests can hold it."""

    def now(self) -> int:
        """Return microseconds since 1970, UTC."""
        ...


class Connection(Protocol):
    """One client's connection, on whatever edge."""

    @property
    def kind(self) -> str:
        """What it speaks, as the log names it."""
        ...

    @property
    def client(self) -> str:
        """The address of its client, by which rendering time is counted."""
        ...

    def new_batch(self) -> "Batch":
        """Return an empty batch for connections of this type."""
        ...

    def send(self, payload: Payload) -> bool:
        """Send a payload, or skip it where the socket is full; return whether it was sent.

        After one that was skipped, `peers.Peer.catch_up` is called once the socket has drained.
        Never blocks or raises.
        """
        ...

    def prepare(self, payload: Payload) -> None:
        """Do what takes long of sending a payload, which may be called in another thread."""
        ...

    def reply(self, data: bytes) -> None:
        """Send a short answer, whatever the socket holds. There are as many as messages came."""
        ...

    def has_room(self) -> bool:
        """Whether all that was sent is out of the server's hands.

        If not, `peers.Peer.catch_up` is called once it is, or `close` at its end.
        """
        ...

    def fail(self, code: CloseCode) -> None:
        """Close because of the message that is being received; no further one counts."""
        ...

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        """Close with a code; with `return_ms`, tell the client in how many ms to come back.

        `peers.Peer.close` follows when it is done.
        """
        ...


class Batch(Protocol):
    """Connections of one type that are sent the same payloads."""

    def add(self, connection: Connection) -> None:
        """Take a connection in, not in between of a `send`."""
        ...

    def remove(self, connection: Connection) -> None:
        """Let a connection go."""
        ...

    def send(self, payload: Payload) -> Sequence[Connection]:
        """Send a payload to all; return the connections whose socket was full.

        It is `Connection.send` for each, with what is the same for all of them done once.
        """
        ...

    def __len__(self) -> int: ...


class Timer(Protocol):
    """A call that is to be made."""

    def cancel(self) -> None:
        """Do not make it; does nothing where it was made."""
        ...


class Timers(Protocol):
    """When something is to be done, on a clock that is never set, so that tests can move it."""

    def now(self) -> float:
        """Return seconds since some moment."""
        ...

    def call_at(self, moment: float, call: Callable[..., object], *args: object) -> Timer:
        """Call something on the event loop, once `now` is at a moment or past it."""
        ...


@dataclass(frozen=True, slots=True)
class Commit:
    """What one transaction did: how many of each batch were new, and what they added up to.

    `delta` is None when nothing was new; then `position` is the one before. `full` names the
    decisions that were not kept because a sum of their series is at its limit. `conflicts` is how
    many of each batch differ from the decision that has their id; it is empty where none do.
    """

    position: Position
    inserted: list[int]
    delta: Delta | None
    full: Full = field(default_factory=dict)
    conflicts: list[int] = field(default_factory=list)

    @property
    def before(self) -> Position:
        """The position that it was made at."""
        if self.delta is None:
            return self.position
        return Position(self.position.epoch, self.position.seq - 1)


class Condition(NamedTuple):
    """What a store knows of the files it keeps: how far a check is, and what is wrong.

    Of a database that a server keeps, nothing is known. With an `error`, nothing is written; with
    a `warning`, somebody should look. `wal_bytes` is the length of the write-ahead log.
    """

    check: str | None = None  # "running", "ok", "failed" or "unfinished"
    error: str | None = None
    warning: str | None = None
    wal_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class NameUse:
    """A name in a database: of which part, and how many decisions are counted under it.

    `first` and `last` are the hours it was first and last seen in, in seconds since 1970; None
    for a name without decisions. `folded`: its decisions are counted as `other` from now on.
    """

    part: str
    name: str
    count: int
    first: int | None
    last: int | None
    folded: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where stored sums are not what they should be."""

    what: str
    expected: str
    found: str


# The stages of a verification that count decisions, all that are kept.
COUNTING: Final = "counting decisions"
COMPARING: Final = "comparing hours"


@dataclass(frozen=True, slots=True)
class Checked:
    """How far a stage has come, for progress: `done` of `of`; 0 of 0 where nobody knows.

    COUNTING and COMPARING count decisions; other stages bytes, or tables.
    """

    stage: str
    done: int
    of: int


Tell = Callable[[Checked], None]


class Store(Protocol):
    """Where decisions, rollups and position live, durably and together."""

    async def open(self) -> None:
        """Connect and bring the schema up to date.

        Raises BadDatabase when what is there is not ours or is newer than this program.
        """
        ...

    def stop(self) -> None:
        """End what runs now, and what waits, as soon as it can be: it raises Unavailable.

        A commit that this comes too late for succeeds. `close` must follow.
        """
        ...

    async def close(self) -> None:
        """Finish what was begun, within some seconds; then let go. May be called twice."""
        ...

    async def commit(self, batches: Sequence[Sequence[DecisionRecord]], received: int) -> Commit:
        """Write batches in one transaction: decisions, what they add to the rollups, position.

        On return it is on disk. A decision whose (project, id) is known changes nothing, and
        nor does its second mention in the same call; those that differ from the decision that is
        known are counted (`core/conflicts.py`). `received` is the moment, in microseconds. Names
        folded by `fold_names` are counted as `other`. Calls may overlap: one with a batch of more
        than MAX_GROUP decisions must not hold up the others. A decision that a sum of its series
        has no room for is not kept; `Commit.full` names it, and the others are kept. Raises
        Unavailable; then nothing of it was kept.
        """
        ...

    async def check(self) -> None:
        """Write and sync what has no meaning. Raises Unavailable when a commit would fail."""
        ...

    async def position(self) -> Position:
        """Return the position of the last commit (seq 0 before the first). Raises Unavailable."""
        ...

    async def load(self, now: int, room: int | None = None) -> Snapshot:
        """Return the rollups as of one position, with all a snapshot taken at `now` needs.

        Of the windows, it covers as many as `room` bytes are enough for. Its cost does not depend
        on how many decisions there are, nor, where there is no room, on how many rollups.
        Raises Unavailable.
        """
        ...

    async def deltas(self, after: Position) -> list[Delta]:
        """Return what the commits after a position added, in order; [] where there were none.

        How a node keeps step that missed a delta on the bus: it costs what was missed, not what
        there is. A store keeps the deltas of its last DELTAS_KEPT commits at least, or of so many
        that they have about DELTA_CELLS_KEPT cells.
        Raises MissingDeltas when they are not kept any more or are of another epoch; Unavailable.
        """
        ...

    async def span(self) -> KeptSpan:
        """Return from when to when what is kept was received. Raises Unavailable."""
        ...

    async def prune(self, *, decisions_before: int, minutes_before: int, limit: int) -> int:
        """Drop decisions received, and minute rollups of hours over, before these moments.

        At most `limit` rows a call, so that commits get their turn; returns how many, and the
        caller calls again until it is 0. Totals and hours do not change, and `verify` can still
        account for every decision that was dropped. Raises Unavailable.
        """
        ...

    async def history(self, plan: Plan) -> TimeSeries:
        """Return the sums that a plan asks for, as of one position.

        Its cost depends on the buckets and keys in the plan's range, not on how many decisions
        there are. Raises NotHeld when minutes of it are not kept any more; Unavailable.
        """
        ...

    async def window(self, asked: WindowQuery, now: int) -> Snapshot:
        """Return the sums of one window at `now`, by series and as of one position.

        They are the snapshot's `total`; it is `still` and cannot take deltas. It has histograms
        and the minutes of a rate only where they are asked for. Raises NotHeld when minutes of
        the window are not kept any more; Unavailable, also when it would take too long.
        """
        ...

    async def unsummed(self, *, before: int) -> list[int]:
        """Return the hours over before a moment that `summarise` has work in, oldest first.

        Each by the second it begins at. Raises Unavailable.
        """
        ...

    async def summarise(self, hour: int) -> None:
        """Sum an hour up (by the second it begins at), for `history` to read at less cost.

        Nothing depends on it but time. Raises Unavailable.
        """
        ...

    @property
    def condition(self) -> Condition:
        """Whether what is stored is known to be damaged."""
        ...

    async def names(self) -> list[NameUse]:
        """Return all names, by part and then by count, as of one position. Raises Unavailable."""
        ...

    async def folded_names(self) -> FoldedNames:
        """Return the names that `fold_names` folded, by part. Raises Unavailable."""
        ...

    async def fold_names(self, part: str, names: Collection[str], *, remember: bool) -> Position:
        """Count all decisions with these names of a part as `other` there, in every rollup.

        With `remember`, later decisions with them count as `other` too; without it, that is
        forgotten. Totals over all names stay as they are, and so do decisions' ids. It is one
        transaction, which begins a new epoch; commits wait until it ends. Returns the position.
        Raises SumFull when a sum of `other` would have no room, Unavailable; then nothing changed.
        """
        ...

    def verify(self) -> AsyncIterator[Checked | Difference]:
        """Recount the rollups from the decisions, as of one position, yielding what differs.

        It begins with the engine's own check, where there is one. Where decisions were pruned,
        what is left and what was set aside must add up. Raises Unavailable.
        """
        ...

    @property
    def unverifiable(self) -> Sequence[str]:
        """What `verify`, when it has ended, could not have detected; each as part of a sentence."""
        ...


@dataclass(frozen=True, slots=True)
class BackedUp:
    """A backup that was made: as of which position, of how many decisions, its size in bytes."""

    position: Position
    decisions: int
    size: int


@dataclass(frozen=True, slots=True)
class Restored:
    """A database that was restored: its position, in a new epoch, and how many decisions it has.

    `kept` is the name under which what it replaced is kept; None where there was nothing to keep.
    """

    position: Position
    decisions: int
    kept: str | None


class Backups(Protocol):
    """Backups of one database."""

    def holds(self, path: Path) -> bool:
        """Return whether a file is one of the database's own."""
        ...

    async def backup(self, target: Path, tell: Tell) -> BackedUp:
        """Write all there is, as of one position, to a new file; servers may run meanwhile.

        The file was read back, checked and synced. On failure, remove what is there of it; give it
        its final name only on success. `tell` hears how far it is, from any thread.
        Raises BadDatabase, Damaged, Unavailable.
        """
        ...

    async def restore(self, source: Path, tell: Tell) -> Restored:
        """Replace the database by what `backup` wrote, with a new epoch.

        All of `source` is checked before anything is changed. What is replaced is kept.
        Raises InUse while anybody uses the database, BadDatabase, Damaged, Unavailable.
        """
        ...


class Cache(Protocol):
    """One snapshot, kept for a while, shared by the nodes that use the same cache."""

    async def get(self) -> Snapshot | None:
        """Return the snapshot held; None when there is none, it expired or is unreadable."""
        ...

    async def put(self, snapshot: Snapshot) -> None:
        """Keep a snapshot for the cache's lifetime, unless a newer one of its epoch is held.

        Later changes to the snapshot do not reach the cache.
        """
        ...

    async def invalidate(self, position: Position) -> None:
        """Forget any snapshot older than this position, or of another epoch."""
        ...

    async def close(self) -> None:
        """Let go of the engine. May be called twice."""
        ...


# Hears a delta, or where the database stood when somebody looked (`Bus.announce`).
Listener = Callable[[Delta | Position], None]


class Bus(Protocol):
    """Carries deltas to every node. It may lose, repeat or swap some: a listener must notice."""

    async def run(self) -> None:
        """Carry what is sent between nodes, until cancelled. Never ends; run it as a task."""
        ...

    def publish(self, delta: Delta) -> None:
        """Send a delta to all listeners, this process's first and at once.

        Never blocks and never raises: what cannot be sent is lost, and the announced position
        will show it.
        """
        ...

    def announce(self, position: Position) -> None:
        """Tell the other nodes where the database stands; not this process's listeners.

        A node that is behind learns that it missed a delta. Never blocks and never raises.
        """
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with all that is sent from now on; returns what ends it.

        A listener must not block and must not raise.
        """
        ...

    async def deltas(self, after: Position) -> list[Delta]:
        """Return the deltas after a position that were sent lately, in order, with no gap.

        Raises MissingDeltas when the bus does not reach back so far, or some are missing;
        Unavailable.
        """
        ...

    @property
    def failing(self) -> str | None:
        """Why nodes cannot hear each other now, for a log; None while they can."""
        ...

    @property
    def outages(self) -> int:
        """How often it has failed so far: also where that was over before anybody looked."""
        ...

    async def close(self) -> None:
        """Send what is left, then let go of the engine. May be called twice."""
        ...


class Cluster(Protocol):
    """What nodes agree on. A single node is a cluster of one, and its cluster never fails."""

    async def claim(self, work: str, seconds: float) -> bool:
        """Claim some work for `seconds`. Return whether this node has it now.

        While it is claimed, no node can claim it again, not even this one. Raises Unavailable.
        """
        ...

    async def report_connections(self, connections: int) -> None:
        """Report the number of this node's streams; call it again within PRESENCE_SECONDS.

        Raises Unavailable.
        """
        ...

    async def total_connections(self) -> int:
        """Return the number of streams of all nodes whose report is valid. Raises Unavailable."""
        ...

    async def close(self) -> None:
        """Leave the cluster and release the engine. May be called twice."""
        ...


class Prices(Protocol):
    """What models cost."""

    def load(self) -> None:
        """Load the prices, on any thread. Without this call, the first `cost` loads them."""
        ...

    def cost(
        self,
        provider: str,
        model: str,
        input_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        moment: int,
    ) -> int | None:
        """Return the price in nano-dollars as of a moment; None where none is known.

        `cached_tokens` are those of the input tokens that came from the provider's cache.
        """
        ...

    def per_million(self, model: str) -> "ListPrice | None":
        """Return the price of a model's lowest tier; None where none is known."""
        ...


class ListPrice(NamedTuple):
    """Nano-dollars per million input and output tokens.

    It is that of requests of up to `upto` input tokens; None: of all requests.
    """

    input: int
    output: int
    upto: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A snapshot, where it came from, and when it was known to be current (microseconds)."""

    snapshot: Snapshot
    source: Source
    as_of: int
