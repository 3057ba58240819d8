"""The ledger of a fault test: what each producer sent and was answered, and each frame shown.

Each producer sends batches to a node of its own, and notes each as ok (200), failed (4xx) or
unknown (anything else: 503, no answer in time, a lost connection). An unknown one is sent again
with the same ids, to the other nodes in turn, until it is known; a few are given up, and stay
unknown. Watchers read the stream of each node and keep all they get. `check` compares both with
the database.
"""

import asyncio
import math
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import cycle
from typing import Any, Final, Self

import asyncpg
import httpx2

from tests.support.bookkeeping import Batch, Outcome, check_batches, check_frames
from tests.support.fold import Decided, Document, documents
from tests.support.server import Server
from tests.support.watch import Watch, text

# Every node equals the database so soon after a fault is over.
HEAL_SECONDS: Final = 5.0
# A node that does not answer in this time leaves a producer in the dark.
ANSWER_SECONDS: Final = 3.0
# What is unknown when the test ends is sent again for so long.
END_SECONDS: Final = 10.0
START_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 0.02

PROJECTS: Final = ("default", "search")
STRATEGIES: Final = ("hybrid", "complexity", "cost", "Ärger ☂")
PROVIDERS: Final = ("gemini", "claude", "cerebras", "openrouter")

_ROWS: Final = """
SELECT c.seq, d.project, d.id, s.strategy, s.provider, s.band, d.confidence, d.cost
FROM routecast.decisions AS d
JOIN routecast.series AS s ON s.id = d.series
JOIN routecast.commits AS c ON c.number = d.commit
ORDER BY c.seq
"""
_POSITION: Final = """
SELECT epoch, (SELECT coalesce(max(seq), 0) FROM routecast.commits) FROM routecast.history
"""


@dataclass(frozen=True)
class Report:
    """The results of a ledger."""

    batches: Counter[Outcome]
    retries: int
    decisions: int
    seq: int
    frames: int
    distinct_frames: int
    failures: int
    connections: int
    p99: dict[str, float]  # of acknowledgements, in seconds: in calm, and in a fault
    slowest: float
    agreed: float  # after the end of the fault, in seconds

    def __str__(self) -> str:
        batches = ", ".join(f"{self.batches[o]} {o}" for o in ("ok", "failed", "unknown"))
        p99 = ", ".join(f"{seconds * 1000:.0f} ms in {when}" for when, seconds in self.p99.items())
        return (
            f"{batches}, {self.retries} sent again; {self.decisions} decisions, seq {self.seq}; "
            f"{self.frames} frames ({self.distinct_frames} distinct, {self.failures} errors) over "
            f"{self.connections} connections; p99 {p99}, at most {self.slowest * 1000:.0f} ms; "
            f"all equal {self.agreed:.1f} s after the end of the fault"
        )


class Ledger:
    """Records what producers and streams of one test are told. Call `check` at the end.

    An async context manager. Decisions go to `nodes`; streams are those of `nodes` and of
    `streams`.
    """

    def __init__(
        self,
        nodes: Sequence[Server],
        database_url: str,
        *,
        streams: Sequence[Server] = (),
        producers: int = 3,
    ) -> None:
        self._nodes = list(nodes)
        self._database_url = database_url
        self._run = secrets.token_hex(4)
        self._batches: list[Batch] = []
        self._watches = [Watch(node) for node in (*nodes, *streams)]
        self._acks: Counter[str] = Counter()  # by node
        self._retries = 0
        self._seconds: dict[str, list[float]] = {}  # to acknowledge, in calm and in a fault
        self._when = "calm"
        self._stopping = False
        self._http = httpx2.AsyncClient(
            timeout=ANSWER_SECONDS, limits=httpx2.Limits(max_connections=None)
        )
        self._producers = producers
        self._tasks: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for number in range(self._producers):
            self._tasks.append(asyncio.create_task(self._produce(number)))
        self._watching = [asyncio.create_task(watch.run(self._http)) for watch in self._watches]
        try:
            await self.flows(START_SECONDS)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._tasks, *self._watching]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    # -- while it runs --------------------------------------------------------------------------

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Mark batches acknowledged in the body as acknowledged during a fault."""
        self._when = "a fault"
        try:
            yield
        finally:
            self._when = "calm"

    @property
    def acknowledged(self) -> int:
        """The number of batches acknowledged up to now."""
        return self._acks.total()

    async def flows(self, seconds: float, among: Iterable[Server] | None = None) -> None:
        """Return when each node has acknowledged another batch, and all streams get documents."""
        nodes = self._nodes if among is None else list(among)
        acks, frames = Counter(self._acks), [watch.frames for watch in self._watches]
        await self._within(
            seconds, lambda: all(self._acks[node.url] > acks[node.url] for node in nodes), "acks"
        )
        await self._within(
            seconds,
            lambda: all(
                watch.frames > before
                for watch, before in zip(self._watches, frames, strict=True)
                if among is None or watch.node in nodes
            ),
            "frames",
        )

    async def commits(self, more: int) -> None:
        """Return when this many more batches were acknowledged, by any nodes."""
        enough = self.acknowledged + more
        await self._within(START_SECONDS, lambda: self.acknowledged >= enough, "acks")

    async def _within(self, seconds: float, reached: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not reached():  # noqa: ASYNC110  -- many events could tell of it
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"no {what} within {seconds} s: {dict(self._acks)}") from None

    # -- producers ------------------------------------------------------------------------------

    async def _produce(self, number: int) -> None:
        chance = random.Random(f"{self._run}-{number}")
        for count in range(sys.maxsize):
            if self._stopping:
                return
            batch = Batch(_decisions(chance, f"{self._run}-{number}-{count}"))
            self._batches.append(batch)
            await self._deliver(batch, number, chance)
            await asyncio.sleep(PAUSE_SECONDS * chance.random())

    async def _deliver(self, batch: Batch, producer: int, chance: random.Random) -> None:
        given_up = chance.random() < 0.1  # whatever becomes of it
        # A node that stopped holds up its own producer; those of the others go on.
        others = list(self._nodes)
        own = others.pop(producer % len(others))
        for node in cycle([own, *chance.sample(others, len(others))]):
            await self._send(batch, node)
            if given_up or batch.outcome != "unknown":
                break
            self._retries += 1
            await asyncio.sleep(0.02 + 0.08 * chance.random())
        if batch.outcome == "ok" and chance.random() < 0.05:  # as a producer that has lost its mind
            await self._send(batch, chance.choice(self._nodes))

    async def _send(self, batch: Batch, node: Server) -> None:
        known = batch.outcome
        started, when = time.perf_counter(), self._when
        try:
            answer = await self._http.post(f"{node.url}/v1/decisions", json=batch.decisions)
        except httpx2.TransportError:
            return
        if answer.status_code == 200:
            receipt = answer.json()
            assert receipt["accepted"] + receipt["duplicates"] == len(batch.decisions), receipt
            assert known != "ok" or not receipt["accepted"], receipt
            seconds = time.perf_counter() - started
            self._seconds.setdefault(when, []).append(seconds)
            self._acks[node.url] += 1
            batch.outcome = "ok"
        elif 400 <= answer.status_code < 500:
            batch.outcome = "failed"

    # -- the end --------------------------------------------------------------------------------

    async def check(self, *, steady: bool = False) -> Report:
        """Assert after the fault that everything that was told is true; return figures.

        `steady`: producers and streams must not have noticed the fault.
        """
        healed = time.monotonic()
        await self.flows(HEAL_SECONDS)
        self._stopping = True
        done, late = await asyncio.wait(self._tasks, timeout=END_SECONDS)
        for task in late:
            task.cancel()
        for task in done:
            task.result()
        deadline = max(healed + HEAL_SECONDS, time.monotonic() + 1.0)
        epoch, seq = await self._agree(deadline)
        await self._all_well(deadline)
        agreed = time.monotonic() - healed
        rows, verified, answers = await asyncio.gather(
            self._rows(),
            asyncio.to_thread(self._verify),
            asyncio.gather(*map(self._metrics, self._watches)),
        )
        assert verified == ""
        check_batches(self._batches, rows, self._run)
        check_frames(self._watches, rows, epoch, seq)
        ((_, expected),) = documents(rows, [seq])
        for watch, found in zip(self._watches, answers, strict=True):
            assert list(found) == list(expected), watch.node.url
            assert text(found) == text(expected), watch.node.url
        report = self._report(rows, seq, agreed)
        if steady:
            assert report.batches["unknown"] == report.retries == report.failures == 0, report
        return report

    async def _agree(self, deadline: float) -> tuple[str, int]:
        """Wait until every stream is where the database is; return where that is."""
        connection = await asyncpg.connect(self._database_url)
        try:
            while True:
                ((epoch, seq),) = await connection.fetch(_POSITION)
                if all(watch.position == (epoch, seq) for watch in self._watches):
                    return epoch, seq
                assert time.monotonic() < deadline, (
                    f"the database is at {seq}, nodes at "
                    f"{ {watch.node.url: watch.position for watch in self._watches} }"
                )
                await asyncio.sleep(0.02)
        finally:
            await connection.close()

    async def _all_well(self, deadline: float) -> None:
        """Wait until no node has anything to complain of."""
        for watch in self._watches:
            while True:
                health = (await self._http.get(f"{watch.node.url}/health")).json()
                if (health["status"], health["source"]) == ("ok", "live") and set(
                    health["components"].values()
                ) == {"ok"}:
                    break
                assert time.monotonic() < deadline, f"{watch.node.url}: {health}"
                await asyncio.sleep(0.05)

    async def _rows(self) -> list[Decided]:
        connection = await asyncpg.connect(self._database_url)
        try:
            found = await connection.fetch(_ROWS)
        finally:
            await connection.close()
        return [
            Decided(
                *(row["seq"], row["project"], row["id"], row["strategy"], row["provider"]),
                None if row["band"] == "none" else row["band"],
                _decimal(row["confidence"], 6),
                _decimal(row["cost"], 9),
            )
            for row in found
        ]

    def _verify(self) -> str:
        """Return what `routecast verify` finds, "" for nothing."""
        command = [sys.executable, "-m", "routecast", "verify", "--database", self._database_url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    async def _metrics(self, watch: Watch) -> Document:
        answer = await self._http.get(f"{watch.node.url}/routing/metrics")
        document: Document = answer.json()
        del document["timestamp"]
        return document

    def _report(self, rows: Sequence[Decided], seq: int, agreed: float) -> Report:
        watches = self._watches
        return Report(
            batches=Counter(batch.outcome for batch in self._batches),
            retries=self._retries,
            decisions=len(rows),
            seq=seq,
            frames=sum(watch.frames for watch in watches),
            distinct_frames=len({frame for watch in watches for frame in watch.seen}),
            failures=sum(watch.failures for watch in watches),
            connections=sum(watch.connections for watch in watches),
            p99={when: _p99(seconds) for when, seconds in self._seconds.items()},
            slowest=max(map(max, self._seconds.values())),
            agreed=agreed,
        )


def _decisions(chance: random.Random, name: str) -> list[dict[str, Any]]:
    """Return a batch; one in thirty is refused as a whole."""
    bad = chance.random() < 1 / 30
    batch: list[dict[str, Any]] = []
    for number in range(chance.randint(1, 12)):
        one: dict[str, Any] = {
            "id": f"{name}-{number}",
            "project": chance.choice(PROJECTS),
            "strategy": chance.choice(STRATEGIES),
            "provider": "" if bad else chance.choice(PROVIDERS),
            "confidence": chance.choice([round(chance.random(), 7), "high", "low", None]),
            "cost": chance.choice([round(chance.random() / 100, 10), 0, None]),
            "latency_ms": round(chance.random() * 900, 3),
        }
        batch.append({key: value for key, value in one.items() if value is not None})
    # Projects do not share ids.
    twin = {**batch[0], "strategy": chance.choice(STRATEGIES)}
    twin["project"] = PROJECTS[1 - PROJECTS.index(batch[0]["project"])]
    return [*batch, twin]


def _decimal(number: int | None, places: int) -> Decimal | None:
    return None if number is None else Decimal(number).scaleb(-places)


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]
