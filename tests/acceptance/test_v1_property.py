"""Random clients of `routecast.v1`: each document that they hold equals SQL over the decisions.

Decisions are sent at random, while clients come with views of their own, lose their lines, come
back with a position, stop reading and go on. Every document any of them ever held is compared with
the oracle's, made of the rows the database holds up to its seq.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from routecast.edge.asgi_connection import SEND_SECONDS
from tests.support.decisions import PROVIDERS, STRATEGIES, sent_decisions
from tests.support.oracle import assert_agree, expect
from tests.support.postgres import Postgres
from tests.support.raw import RawConnection
from tests.support.server import Edge, Server
from tests.support.stored_decisions import Committed, committed
from tests.support.v1 import JSON, MSGPACK, Document, V1Client, without_nulls

EXAMPLES = int(os.environ.get("ROUTECAST_TEST_EXAMPLES", "3"))
FAST = 0.1
CLIENTS = 4
SETTLE_SECONDS = 20.0
# A project of its own, with so many names that a few frames fill a line that nobody reads.
WIDE = [
    {"project": "wide", "strategy": "hybrid", "provider": f"{number:03}" + "x" * 61}
    for number in range(250)
]
WIDE_VIEW = {
    "interval": FAST,
    "fields": ["total_decisions", "provider_usage"],
    "filter": {"project": ["wide"]},
}
FLOOD = 18
# A client that has read nothing for this time, in seconds, loses its line: on a slow machine a
# script may take longer than the server waits for one that does not read.
PATIENT_SECONDS = SEND_SECONDS / 2


class Client:
    """A client that reads while it is connected, and reconnects with what it holds."""

    def __init__(self, server: Server, subprotocol: str) -> None:
        self._server = server
        self._subprotocol = subprotocol
        self._client: V1Client | None = None
        self._reading: asyncio.Task[None] | None = None
        self._stalled: float | None = None  # since when it reads nothing
        self.views: dict[str, Document] = {}
        self.held: dict[str, Any] = {}
        self.seen: list[tuple[str, int, Document]] = []

    async def come(self) -> None:
        """Connect, and subscribe from the positions that it holds."""
        if self._client is not None:
            return
        connection = RawConnection(self._server.port, receive_buffer=4_096)
        stream = await connect(
            self._server.ws_url,
            sock=connection.socket,
            subprotocols=[self._subprotocol],  # type: ignore[list-item]  # -- a NewType of str
            compression=None,
            max_queue=1,
            max_size=None,
            ping_interval=None,
        )
        self._client = V1Client(stream, self.held, self.seen)
        self._reading = asyncio.create_task(self._read(self._client))
        for identity in self.views:
            await self._ask(identity)

    async def follow(self, view: Document) -> None:
        """Subscribe to one more view, unless it is disconnected."""
        if self._client is not None and len(self.views) < 5:
            identity = f"v{len(self.seen)}-{len(self.views)}"
            self.views[identity] = view
            await self._ask(identity)

    async def lose(self) -> None:
        """Break the connection without a close."""
        if self._client is not None:
            assert self._reading is not None
            self._client.stream.transport.abort()
            with suppress(ConnectionClosed):
                await self._reading
            self._client = self._stalled = None

    def stall(self) -> None:
        """Stop reading."""
        if self._client is not None:
            self._client.stream.transport.pause_reading()
            self._stalled = self._stalled or time.monotonic()

    async def go_on(self) -> None:
        """Read again; after a long stall, break the connection instead."""
        if self._client is None or self._stalled is None:
            return
        if time.monotonic() - self._stalled > PATIENT_SECONDS:
            await self.lose()
            return
        self._client.stream.transport.resume_reading()
        self._stalled = None

    async def holds(self, expected: dict[str, Document]) -> None:
        """Return when the documents that are held equal the expected ones."""
        for identity, document in expected.items():
            while identity not in self.held or not _agree(self.held[identity].document, document):
                assert self._reading is not None
                assert not self._reading.done(), self._reading
                await asyncio.sleep(0.01)  # what is read has no event of its own

    def shown(self, identity: str) -> dict[int, Document]:
        """Return the documents that were shown under an id, by their seq: one for each."""
        shown: dict[int, Document] = {}
        for name, seq, document in self.seen:
            if name == identity:
                assert shown.setdefault(seq, document) == document, f"two documents at {seq}"
        return shown

    async def _ask(self, identity: str) -> None:
        assert self._client is not None
        held = self.held.get(identity)
        asked = {**self.views[identity], **({"position": held.position} if held else {})}
        with suppress(ConnectionClosed):  # who does not read is let go in the end
            await self._client.send({"type": "subscribe", "id": identity, **asked})

    async def _read(self, client: V1Client) -> None:
        while True:
            message = await client.receive(seconds=60)
            assert message["type"] in ("hello", "snapshot", "delta"), message


FIELDS = [
    *("total_decisions", "avg_confidence", "strategy_performance", "cost", "tokens"),
    *("latency_ms", "errors", "fallbacks", "models", "provider_usage"),
]
filters = st.fixed_dictionaries(
    {"project": st.just(["default", "search"])},
    optional={
        "strategy": st.lists(st.sampled_from(STRATEGIES), min_size=1, max_size=3),
        "provider": st.lists(st.sampled_from(PROVIDERS), min_size=1, max_size=3),
    },
)
views = st.one_of(
    st.fixed_dictionaries(
        {"interval": st.sampled_from([FAST, 2 * FAST]), "filter": filters},
        optional={
            "fields": st.lists(st.sampled_from(FIELDS), min_size=1),
            "window": st.sampled_from(["all", "1h", "24h"]),
        },
    ),
    st.just(WIDE_VIEW),
    st.just({"interval": FAST, "fields": ["total_decisions"]}),
)

# Now, or so long ago that no window has it: the clock decides nothing while a test runs.
moments = st.none() | st.just((datetime.now(UTC) - timedelta(days=9)).isoformat())
batches = st.lists(sent_decisions(moments), min_size=1, max_size=6)
clients = st.integers(0, CLIENTS - 1)
steps = st.one_of(
    st.tuples(st.just("post"), batches),
    st.tuples(st.just("post"), batches),
    st.tuples(st.just("follow"), clients, views),
    st.tuples(st.just("follow"), clients, views),
    st.tuples(st.just("come"), clients),
    st.tuples(st.just("lose"), clients),
    st.tuples(st.just("stall"), clients),
    st.tuples(st.just("go_on"), clients),
    st.tuples(st.just("wait"), st.integers(0, 3)),
    st.tuples(st.just("flood"), clients),
)


@pytest.fixture(
    scope="module",
    params=[("sqlite", "native"), ("sqlite", "portable"), ("postgres", "native")],
    ids="-".join,
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server on each database, and on each edge."""
    database, edge = request.param
    url = None
    if database == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create()
    folder = tmp_path_factory.mktemp(database)
    with Server(folder, edge=cast("Edge", edge), database_url=url) as running:
        yield running


@settings(max_examples=EXAMPLES, deadline=None)
@given(script=st.lists(steps, min_size=12, max_size=30), packs=st.booleans())
async def test_every_document_is_sqls_at_its_position(
    server: Server, script: list[Any], packs: bool
) -> None:
    """Each document equals the one that SQL gives, at the end and at each position shown."""
    crowd = [Client(server, MSGPACK if packs and n % 2 else JSON) for n in range(CLIENTS)]
    for client in crowd:
        await client.come()
    await crowd[0].follow({"interval": FAST, "filter": {"project": ["default", "search"]}})
    for step in script:
        await _do(server, crowd, *step)
    for client in crowd:
        await client.go_on()
        await client.come()
    rows = await committed(server.database_url)
    async with asyncio.timeout(SETTLE_SECONDS):
        for client in crowd:
            await client.holds({i: _sql(rows, view) for i, view in client.views.items()})
    for client in crowd:
        for identity, view in client.views.items():
            chosen = [row for row in rows if _counts(row, view)]
            for seq, document in client.shown(identity).items():
                expected = _sql([row for row in chosen if row.seq <= seq], view)
                assert _agree(document, expected), (view, seq, document, expected)
        await client.lose()
    assert "Traceback" not in server.log.read_text()


async def _do(server: Server, crowd: list[Client], what: str, *given_: Any) -> None:
    if what == "post":
        await asyncio.to_thread(server.post, given_[0])
    elif what == "wait":
        await asyncio.sleep(given_[0] * FAST / 2)  # somewhere between two ticks
    elif what == "flood":
        if WIDE_VIEW not in crowd[given_[0]].views.values():
            await crowd[given_[0]].follow(WIDE_VIEW)
        crowd[given_[0]].stall()
        for _ in range(FLOOD):
            await asyncio.to_thread(server.post, WIDE)
            await asyncio.sleep(FAST)
    elif what == "follow":
        await crowd[given_[0]].follow(given_[1])
    elif what == "stall":
        crowd[given_[0]].stall()
    else:
        await getattr(crowd[given_[0]], what)()


def _counts(row: Committed, view: Document) -> bool:
    """Whether a decision may be in a view at all, by its project; the oracle sees to the rest."""
    return row.fact.project in view["filter"]["project"] if "filter" in view else True


def _sql(rows: list[Committed], view: Document) -> Document:
    """Return the document of a view, by the oracle, as routecast.v1 has it."""
    chosen: Any = {"fields": view["fields"]} if "fields" in view else {}
    now = time.time_ns() // 1000
    document = expect(
        (row.fact for row in rows),
        now=now,
        filters=view.get("filter"),
        window=view.get("window", "all"),
        **chosen,
    )
    return cast("Document", without_nulls(document))


def _agree(found: Document, expected: Document) -> bool:
    """Whether two documents agree, in whatever order their keys are."""
    try:
        assert_agree(_sorted(found), _sorted(expected))
    except AssertionError:
        return False
    return True


def _sorted(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _sorted(value[name]) for name in sorted(value)}
