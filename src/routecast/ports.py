"""The ports: the contracts between services and engines, including how engines fail.

Each adapter of a port passes the same suite in `tests/contract`. A method raises `Unavailable` if
its engine cannot answer now; then it has changed nothing.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from routecast.core.cardinality import FoldedNames
from routecast.core.clock_check import KeptSpan
from routecast.core.decision import DecisionRecord
from routecast.core.delta import Delta
from routecast.core.history import Plan
from routecast.core.keys import AccessRecords, ApiKey, DecideChange
from routecast.core.overflow import Full
from routecast.core.payload import Payload
from routecast.core.snapshot import Snapshot
from routecast.core.time_series import TimeSeries
from routecast.core.token_bucket import Quota
from routecast.core.window import WindowQuery
from routecast.protocol import CloseCode, Position, Source

# The deltas of at least this number of commits are kept: some minutes of a busy node, which is more
# than a node that has missed deltas needs.
DELTAS_KEPT: Final = 1_000
# Fewer are kept if they have more cells than this: then loading a snapshot costs less.
DELTA_CELLS_KEPT: Final = 100_000
# Decisions in one commit of several batches. A larger batch is a commit of its own, and stores
# prepare it beside other commits: see `Store.commit`.
MAX_GROUP: Final = 1_000
# The same while no small batch arrives: producers of medium batches wait for throughput.
MAX_BULK_GROUP: Final = 4_000
# Minutes are kept for at least this number of days.
MIN_MINUTE_DAYS: Final = 8
# A node's report of its streams is valid for this time, in seconds.
PRESENCE_SECONDS: Final = 15.0


class Clock(Protocol):
    """The time of day, as a parameter, so that tests can set it."""

    def now(self) -> int:
        """Return microseconds since 1970, UTC."""
        ...


class Connection(Protocol):
    """One client's connection, of any edge."""

    @property
    def kind(self) -> str:
        """The protocol that it speaks, as the log names it."""
        ...

    @property
    def client(self) -> str:
        """The address of its client, by which rendering time is counted."""
        ...

    @property
    def agent(self) -> str:
        """What its client calls itself (`User-Agent`); "" if it does not say."""
        ...

    @property
    def unsent(self) -> int:
        """The bytes that were sent, and that the client's system has not received."""
        ...

    @property
    def saved_by_compression(self) -> int | None:
        """The bytes that compression saved so far; None if it is not known."""
        ...

    def pong(self) -> "PongReport | None":
        """Return when the client last answered a ping; None if it is not known."""
        ...

    def new_batch(self) -> "Batch":
        """Return an empty batch for connections of this type."""
        ...

    def send(self, payload: Payload) -> bool:
        """Send a payload, or skip it if the socket is full; return whether it was sent.

        After a skipped payload, `peers.Peer.catch_up` is called once the socket has drained. Never
        blocks or raises.
        """
        ...

    def prepare(self, payload: Payload) -> None:
        """Do the slow part of sending a payload in advance; may be called in another thread."""
        ...

    def reply(self, data: bytes) -> None:
        """Send a short answer even if the socket is full. There is at most one per message."""
        ...

    def has_room(self) -> bool:
        """Whether the system has taken all that was sent.

        If not, `peers.Peer.catch_up` is called once it has, or `close` at the connection's end.
        """
        ...

    def fail(self, code: CloseCode) -> None:
        """Close because of the message that is being received; later messages are ignored."""
        ...

    def stop(self, code: CloseCode, return_ms: int | None = None) -> None:
        """Close with a code; `return_ms` tells the client to reconnect after this time.

        `peers.Peer.close` is called when it is closed.
        """
        ...


class PongReport(NamedTuple):
    """The last answer to a ping: seconds since then, and the milliseconds that it took."""

    age: float
    round_trip_ms: int


class Batch(Protocol):
    """Connections of one type that are sent the same payloads."""

    def add(self, connection: Connection) -> None:
        """Add a connection; not during a `send`."""
        ...

    def remove(self, connection: Connection) -> None:
        """Remove a connection."""
        ...

    def send(self, payload: Payload) -> Sequence[Connection]:
        """Send a payload to all; return the connections whose socket was full.

        The result is that of `Connection.send` for each, but what they share is done once.
        """
        ...

    def __len__(self) -> int: ...


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancel the call; does nothing if it was made."""
        ...


class Timers(Protocol):
    """A monotonic clock and its timers, as a parameter, so that tests can move time."""

    def now(self) -> float:
        """Return seconds since an arbitrary moment."""
        ...

    def call_at(self, moment: float, call: Callable[..., object], *args: object) -> Timer:
        """Call a function on the event loop once `now` has reached `moment`."""
        ...


@dataclass(frozen=True, slots=True)
class Commit:
    """The outcome of one transaction: how many of each batch were new, and their sums.

    `delta` is None if nothing was new; then `position` is that of the commit before. `full` names
    the decisions that were not kept because a sum of their series has no room. `conflicts` counts,
    for each batch, the decisions that differ from the stored decision with their id; it is empty if
    there are none.
    """

    position: Position
    inserted: list[int]
    delta: Delta | None
    full: Full = field(default_factory=dict)
    conflicts: list[int] = field(default_factory=list)

    @property
    def before(self) -> Position:
        """The position at which the commit was made."""
        if self.delta is None:
            return self.position
        return Position(self.position.epoch, self.position.seq - 1)


class Condition(NamedTuple):
    """The state of a store's files: the progress and result of their check.

    Nothing is known about the files of a database server. After an `error` nothing is written; a
    `warning` needs attention. `wal_bytes` is the length of the write-ahead log.
    """

    check: str | None = None  # "running", "ok", "failed" or "unfinished"
    error: str | None = None
    warning: str | None = None
    wal_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class NameUse:
    """A name in a database: its part of the key, and how many decisions count under it.

    `first` and `last` are the hours in which it was first and last seen, in seconds since 1970;
    None for a name without decisions. `folded`: its decisions count as `other` from now on.
    """

    part: str
    name: str
    count: int
    first: int | None
    last: int | None
    folded: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where stored sums differ from what they should be."""

    what: str
    expected: str
    found: str


# The stages of a verification whose progress is counted in decisions.
COUNTING: Final = "counting decisions"
COMPARING: Final = "comparing hours"


@dataclass(frozen=True, slots=True)
class Checked:
    """The progress of a verification: `done` of `of` in a stage; 0 of 0 if that is unknown.

    COUNTING and COMPARING count decisions; other stages count bytes or tables.
    """

    stage: str
    done: int
    of: int


OnProgress = Callable[[Checked], None]


class Store(Protocol):
    """The database: decisions, rollups and position, durable and consistent."""

    async def open(self) -> None:
        """Connect, and bring the schema up to date.

        Raises BadDatabase if the database belongs to another program or to a newer Routecast.
        """
        ...

    def stop(self) -> None:
        """Make all running and waiting calls raise Unavailable as soon as possible.

        A commit that is too far for that succeeds. Call `close` afterwards.
        """
        ...

    async def close(self) -> None:
        """Finish running calls within some seconds, then disconnect. May be called twice."""
        ...

    async def commit(self, batches: Sequence[Sequence[DecisionRecord]], received: int) -> Commit:
        """Write batches in one transaction: decisions, their sums and the next position.

        The decisions are on disk on return. `received` is the time of receipt, in microseconds. A
        decision whose (project, id) is known, or comes twice in the call, changes nothing; those
        that differ from the known one are counted (`core/conflicts.py`). Names that `fold_names`
        folded count as `other`. A decision for which a sum of its series has no room is not kept;
        `Commit.full` names it, and the others are kept.

        Calls may overlap. One with a batch of more than MAX_GROUP decisions must not delay others.
        Raises Unavailable; then nothing was kept.
        """
        ...

    async def check(self) -> None:
        """Perform a durable write without meaning. Raises Unavailable if a commit would fail."""
        ...

    async def position(self) -> Position:
        """Return the position of the last commit (seq 0 before the first). Raises Unavailable."""
        ...

    async def load(self, now: int, room: int | None = None) -> Snapshot:
        """Return the rollups at one position, with all that a snapshot taken at `now` needs.

        `now` is in microseconds. It covers as many windows as fit into `room` bytes. The cost does
        not depend on the number of decisions, nor, without room, on the number of rollups. Raises
        Unavailable.
        """
        ...

    async def deltas(self, after: Position) -> list[Delta]:
        """Return the deltas of the commits after a position, in order; [] if there are none.

        A node that missed deltas on the bus calls it: the cost is proportional to what it missed. A
        store keeps the deltas of its last DELTAS_KEPT commits, or of fewer that have about
        DELTA_CELLS_KEPT cells. Raises MissingDeltas if they are not kept any more or the epoch is
        another; Unavailable.
        """
        ...

    async def span(self) -> KeptSpan:
        """Return the range of the kept data. Raises Unavailable."""
        ...

    async def prune(self, *, decisions_before: int, minutes_before: int, limit: int) -> int:
        """Delete decisions that were received, and minutes whose hour ended, before these moments.

        Deletes at most `limit` rows, so that commits get a turn, and returns how many: call it
        again until that is 0. Totals and hours do not change, and `verify` still accounts for every
        deleted decision. Raises Unavailable.
        """
        ...

    async def history(self, plan: Plan) -> TimeSeries:
        """Return the sums that a plan asks for, at one position.

        The cost depends on the buckets and keys in the plan's range, not on the number of
        decisions. Raises NotHeld if minutes of the range are not kept any more; Unavailable.
        """
        ...

    async def window(self, asked: WindowQuery, now: int) -> Snapshot:
        """Return the sums of one window at `now` (microseconds), by series, at one position.

        They are the snapshot's `total`; it is `still` and cannot take deltas. It has histograms,
        and the minutes of a rate, only if `asked` wants them. Raises NotHeld if minutes of the
        window are not kept any more; Unavailable, also if it would take too long.
        """
        ...

    async def unsummed(self, *, before: int) -> list[int]:
        """Return the hours over before a moment that `summarise` has work in, oldest first.

        `before` is in microseconds; an hour is given by the second at which it begins. Raises
        Unavailable.
        """
        ...

    async def summarise(self, hour: int) -> None:
        """Sum up an hour, given by the second at which it begins.

        `history` then reads it faster; its result is the same. Raises Unavailable.
        """
        ...

    @property
    def condition(self) -> Condition:
        """Whether the stored data are known to be damaged."""
        ...

    async def names(self) -> list[NameUse]:
        """Return all names, by part, the most used first, at one position. Raises Unavailable."""
        ...

    async def folded_names(self) -> FoldedNames:
        """Return the names that `fold_names` folded, by part. Raises Unavailable."""
        ...

    async def fold_names(self, part: str, names: Collection[str], *, remember: bool) -> Position:
        """Count all decisions with these names of a part as `other`, in every rollup.

        With `remember`, later decisions with these names count as `other` too; without it, they do
        not any more. Totals over all names and the ids of decisions do not change. It is one
        transaction, which begins a new epoch; commits wait until it ends. Returns the new position.
        Raises SumFull if a sum of `other` has no room, Unavailable; then nothing changed.
        """
        ...

    def verify(self) -> AsyncIterator[Checked | Difference]:
        """Recount the rollups from the decisions at one position; yield progress and differences.

        It begins with the engine's own check, if there is one. If decisions were deleted by
        retention, the remaining ones and the sums set aside must add up. Raises Unavailable.
        """
        ...

    @property
    def unverifiable(self) -> Sequence[str]:
        """What the last `verify` cannot have detected; each is part of a sentence."""
        ...


class KeyStore(Protocol):
    """API keys and revocations, which all nodes on one database share. Each store is one, too."""

    async def access_version(self) -> str:
        """Return the version of what `access` returns, at little cost. Raises Unavailable."""
        ...

    async def access(self) -> AccessRecords:
        """Return all keys and revocations, as of one moment. Raises Unavailable."""
        ...

    async def change_access(self, decide: DecideChange) -> None:
        """Make the change that `decide` returns for what is stored.

        It is one transaction, and it is on disk on return. Changes take turns, also those of other
        nodes; so `decide` can rely on what it gets. It may be called on another thread. If it
        raises, nothing changes. Raises Unavailable; then nothing changed.
        """
        ...

    async def note_use(self, uses: Mapping[str, int]) -> None:
        """Note when keys, by id, were last used (microseconds); an earlier use than noted is none.

        The version stays. Raises Unavailable.
        """
        ...


@dataclass(frozen=True, slots=True)
class DeletedProject:
    """What was deleted with a project.

    Attributes:
        decisions: The number of its decisions that were kept.
        keys: The API keys that changed, as they are now.
    """

    decisions: int = 0
    keys: Collection[ApiKey] = ()


class Database(Store, KeyStore, Protocol):
    """A store that has API keys and revocations beside the decisions."""

    async def has_decisions(self, project: str) -> bool:
        """Whether decisions of a project are kept, also such as count as `other`.

        Raises Unavailable.
        """
        ...

    async def delete_project(self, project: str, now: int) -> DeletedProject:
        """Delete all that a project has: decisions, sums, its name, and its part in API keys.

        Keys for no other project are revoked at `now` (microseconds). Decisions of it that count as
        `other` are deleted, too, but sums of those that `prune` deleted stay there. It is one
        transaction, which begins a new epoch if anything was there; commits wait until it ends.
        Raises Unavailable; then nothing changed.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackedUp:
    """A backup that was made: its position, number of decisions and size in bytes."""

    position: Position
    decisions: int
    size: int


@dataclass(frozen=True, slots=True)
class Restored:
    """A database that was restored: its position, in a new epoch, and number of decisions.

    `kept` is the name under which the replaced data are kept; None if there were none.
    """

    position: Position
    decisions: int
    kept: str | None


class Backups(Protocol):
    """Backups of one database."""

    def holds(self, path: Path) -> bool:
        """Return whether a file belongs to the database."""
        ...

    async def backup(self, target: Path, on_progress: OnProgress) -> BackedUp:
        """Write the whole database at one position to a new file, while servers may use it.

        The written file is read back, checked and synced. It has its final name only on success; on
        failure, delete what is there. `on_progress` is called with the progress, from any thread.
        Raises BadDatabase, Damaged, Unavailable.
        """
        ...

    async def restore(self, source: Path, on_progress: OnProgress) -> Restored:
        """Replace the database with a backup, under a new epoch.

        The whole backup is checked before anything changes. The replaced data are kept. Raises
        InUse if any program uses the database, BadDatabase, Damaged, Unavailable.
        """
        ...


class Cache(Protocol):
    """One snapshot, kept for a while, that all nodes with this cache share."""

    async def get(self) -> Snapshot | None:
        """Return the cached snapshot; None if there is none, or it expired or is unreadable."""
        ...

    async def put(self, snapshot: Snapshot) -> None:
        """Cache a snapshot, unless a newer one of its epoch is cached.

        Later changes to the snapshot do not reach the cache.
        """
        ...

    async def invalidate(self, position: Position) -> None:
        """Drop the cached snapshot if it is older than a position or of another epoch."""
        ...

    async def close(self) -> None:
        """Disconnect. May be called twice."""
        ...


# Is called with each delta, and with each position that another node announces.
Listener = Callable[[Delta | Position], None]


class Bus(Protocol):
    """Carries deltas to every node. It may lose, repeat or reorder them; listeners must notice."""

    async def run(self) -> None:
        """Send and receive until cancelled. Never ends; run it as a task."""
        ...

    def publish(self, delta: Delta) -> None:
        """Send a delta to all listeners; those of this process are called before it returns.

        Never blocks and never raises. A delta that cannot be sent is lost; the announced position
        shows that.
        """
        ...

    def announce(self, position: Position) -> None:
        """Tell the other nodes the database's position; listeners of this process are not called.

        A node that is behind learns that it missed a delta. Never blocks and never raises.
        """
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with all that is sent from now on; return a function that ends this.

        A listener must not block and must not raise.
        """
        ...

    async def deltas(self, after: Position) -> list[Delta]:
        """Return the recent deltas after a position, in order and without a gap.

        Raises MissingDeltas if the bus does not have all of them, Unavailable if it cannot be read.
        """
        ...

    @property
    def failing(self) -> str | None:
        """Why nodes cannot exchange messages now, for the log; None while they can."""
        ...

    @property
    def outages(self) -> int:
        """The number of outages so far, including the present one."""
        ...

    async def close(self) -> None:
        """Send what is left, then disconnect. May be called twice."""
        ...


class TokenVerifier(Protocol):
    """The keys that tokens (JWT) are signed with."""

    def verify(self, token: str) -> bytes | None:
        """Return the claims of a token, as JSON, whose signature is right.

        None: its key is not known, and `fetch` may bring it. Never blocks. Raises BadCredential,
        whatever the token contains.
        """
        ...

    @property
    def fetches(self) -> bool:
        """Whether there are keys that `fetch` brings."""
        ...

    async def fetch(self) -> bool:
        """Fetch the keys again that come from elsewhere; return whether they have changed.

        Raises Unavailable; then the keys that were fetched before stay in use.
        """
        ...


class Cluster(Protocol):
    """What nodes agree on. A single node is a cluster of one, and its cluster never fails."""

    async def claim(self, work: str, seconds: float) -> bool:
        """Claim some work for `seconds`. Return whether this node has it now.

        While it is claimed, no node can claim it again, not even this one. Raises Unavailable.
        """
        ...

    async def report_connections(self, connections: int, summary: bytes = b"") -> None:
        """Report the number of this node's streams; call it again within PRESENCE_SECONDS.

        `summary` is what the node tells others about itself, as UTF-8. Raises Unavailable.
        """
        ...

    async def total_connections(self) -> int:
        """Return the number of streams of all nodes whose report is valid. Raises Unavailable."""
        ...

    async def share_access(self, records: AccessRecords) -> None:
        """Give nodes without a database the keys and revocations, in place of earlier ones.

        They have no end: give the new ones after each change. Raises Unavailable.
        """
        ...

    async def shared_version(self) -> str | None:
        """Return the version of what `shared_access` returns, at low cost. Raises Unavailable."""
        ...

    async def shared_access(self) -> AccessRecords | None:
        """Return the keys and revocations that were given last; None if there are none.

        Raises Unavailable, also if they are unreadable.
        """
        ...

    async def summaries(self) -> list[bytes]:
        """Return the summaries of all nodes whose report is valid, in any order.

        Nodes without one are left out. Raises Unavailable.
        """
        ...

    async def ask(self, question: bytes, nodes: int, seconds: float) -> list[bytes]:
        """Ask all nodes; return the answers of at most `nodes` of them that come within `seconds`.

        This node gets the question, too. Raises Unavailable.
        """
        ...

    async def questions(self) -> list[tuple[str, bytes]]:
        """Wait a moment for questions; return those asked since the last call, with their ids.

        The first call returns none. Old ones, whose asker waits no more, are left out.
        Raises Unavailable.
        """
        ...

    async def answer(self, identity: str, answer: bytes) -> None:
        """Answer a question. Raises Unavailable."""
        ...

    async def spend(self, limit: str, quota: Quota, spent: Mapping[str, int]) -> dict[str, float]:
        """Take from the allowances that all nodes share; return what is left of each.

        `spent` are the amounts by client, and `limit` tells the allowances of different limits
        apart. More can be spent than is left: then it is below zero. Raises Unavailable.
        """
        ...

    async def close(self) -> None:
        """Leave the cluster and disconnect. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class SignInAttempt:
    """What a browser and this server know of one attempt to sign in at an identity provider.

    Attributes:
        state: It comes back with the code, and shows that this browser began the attempt.
        nonce: It comes back in the ID token, and shows that the token is of this attempt.
        verifier: The secret of PKCE, without which the code cannot be used (RFC 7636).
        redirect: The address to which the provider sends the browser back.
    """

    state: str
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)
    redirect: str


class IdentityProvider(Protocol):
    """Signs people in. It may be down; then only signing in by it fails."""

    async def address(self, attempt: SignInAttempt) -> str:
        """Return the address at which a person signs in. Raises Unavailable."""
        ...

    async def claims(self, attempt: SignInAttempt, code: str) -> Mapping[str, Any]:
        """Return the claims of the person, for the code that came back.

        Raises Unavailable, and BadCredential if the provider's answer is not as it must be.
        """
        ...


class TemporaryRecords(Protocol):
    """Short records that end by themselves, such as tickets, which nodes share."""

    async def put(self, name: str, record: bytes, seconds: float) -> None:
        """Keep a record for `seconds`, in place of one with this name.

        Raises Unavailable, also if there is no room for it.
        """
        ...

    async def replace(self, name: str, record: bytes, seconds: float) -> bool:
        """Do as `put` if there is a record with this name, in one step; return whether there was.

        Raises as that.
        """
        ...

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the record of each name, None for one that there is not. Raises Unavailable."""
        ...

    async def take(self, name: str) -> bytes | None:
        """Return a record and delete it, in one step: no other call returns it.

        Raises Unavailable; then the record may be deleted.
        """
        ...

    async def delete(self, name: str) -> None:
        """Delete a record, and change the version. Raises Unavailable."""
        ...

    async def version(self) -> str:
        """Return a text that is another one after each `delete`. Raises Unavailable."""
        ...

    async def close(self) -> None:
        """Disconnect. May be called twice."""
        ...


class Prices(Protocol):
    """The prices of models."""

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
        """Return the price in nano-dollars at a moment (microseconds); None if it is unknown.

        `cached_tokens` are those of the input tokens that came from the provider's cache.
        """
        ...

    def per_million(self, model: str) -> "ListPrice | None":
        """Return the price of a model's lowest tier; None if it is unknown."""
        ...


class ListPrice(NamedTuple):
    """Nano-dollars per million input and output tokens.

    The price is that of requests with up to `upto` input tokens; None means all requests.
    """

    input: int
    output: int
    upto: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A snapshot, its source, and when it was known to be current (microseconds)."""

    snapshot: Snapshot
    source: Source
    as_of: int
