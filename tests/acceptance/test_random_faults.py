"""One node with SQLite under random faults, in random order.

It is killed; its clients' connections are reset; its clock is set forth and back; its disk is
filled; its database is restored from a backup. Producers send all the while. In the end no decision
is lost or there twice that was acknowledged since the last restore, or before the backup that was
restored; and a node that was not killed goes on by itself. `make faults` goes on for long.
"""

import asyncio
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.faults import FAKETIME, LONG, tell
from tests.support.command import routecast
from tests.support.disk import fill, small_disk
from tests.support.needs import lacks
from tests.support.proxy import Proxy, Reset
from tests.support.server import Server

# Of faults; three of five are kills.
FAULTS = 840 if LONG else 15
DISK_BYTES = 64_000_000
PRODUCERS = 3
MOST = 40  # decisions in a batch
# A running node takes decisions again within this time after a fault, in seconds. `make faults`
# judges that on a quiet machine; the short form runs beside other tests, also on one busy core.
HEAL_SECONDS = 10.0 if LONG else 40.0
PAUSE_SECONDS = 0.005
CLOCKS = ("+0", "+3h", "-3h", "+20d", "-20d")


class Producer:
    """Sends each batch until it is acknowledged, and remembers the acknowledged ones."""

    def __init__(self, number: int) -> None:
        self.chance = random.Random(number)
        self.name = f"p{number}"
        self.sent: dict[str, int] = {}  # the size of each batch
        self.acknowledged: set[str] = set()  # and still to be there
        self.acks = 0
        self.stopping = False

    async def run(self, port: int) -> None:
        """Send through a port until told to stop and the last batch is acknowledged."""
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as http:
            while not self.stopping:
                batch = f"{self.name}-{len(self.sent)}"
                self.sent[batch] = self.chance.randint(1, MOST)
                while not await self._send(http, batch):  # noqa: ASYNC110  # -- each is a try
                    await asyncio.sleep(PAUSE_SECONDS)
                self.acks += 1
                await asyncio.sleep(PAUSE_SECONDS * self.chance.random())

    async def _send(self, http: httpx2.AsyncClient, batch: str) -> bool:
        size = self.sent[batch]
        try:
            answer = await http.post("/v1/decisions", json=decisions(batch, size))
        except httpx2.TransportError:
            return False
        if answer.status_code != 200:
            assert answer.status_code == 503, answer.text
            return False
        receipt = answer.json()
        assert receipt["accepted"] + receipt["duplicates"] == size, receipt
        self.acknowledged.add(batch)
        return True


def decisions(batch: str, size: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{batch}-{number}",
            "strategy": f"s{number % 3}",
            "provider": f"p{number % 5}",
            "cost": number / 1000,
            "reason": "r" * 200,
        }
        for number in range(size)
    ]


class Node:
    """A node with a small disk, its own clock, a backup, and the counts of its producers."""

    def __init__(self, disk: Path, folder: Path, proxy: Proxy, server: Server) -> None:
        self._disk = disk
        self._clock = folder / "clock"
        self._backup = folder / "backup.db"
        self._proxy = proxy
        self.server = server
        self.producers = [Producer(number) for number in range(PRODUCERS)]
        self.producing = [asyncio.create_task(each.run(proxy.port)) for each in self.producers]
        self._backed_up: dict[str, set[str]] | None = None  # what is in the backup for certain
        self.done = Counter[str]()

    # -- faults ---------------------------------------------------------------------------------

    async def kill(self) -> None:
        """SIGKILL the node, and start it again."""
        assert self.server.kill() == -signal.SIGKILL
        await asyncio.to_thread(self.server.start)

    async def reset(self) -> None:
        """Reset all connections of its clients."""
        self._proxy.reset(Reset.AT_ONCE)
        self._proxy.reset(Reset.NEVER)

    async def set_clock(self, chance: random.Random) -> None:
        """Set its clock forward or back."""
        set_clock(self._clock, chance.choice(CLOCKS))

    async def fill_disk(self) -> None:
        """Fill its disk until the node has refused a batch."""
        ballast = self._disk / "ballast"
        try:
            await asyncio.to_thread(fill, ballast)
            await self._until(lambda: self.server.http.get("/ready").status_code == 503)
        finally:
            ballast.unlink()

    async def back_up(self) -> None:
        """Back up its database while it works."""
        certain = {producer.name: set(producer.acknowledged) for producer in self.producers}
        done = await asyncio.to_thread(
            *(routecast, "backup", self._backup, "--force"),
            *("--database", self.server.database_url),
        )
        assert done.returncode == 0, done.stderr
        self._backed_up = certain

    async def restore(self) -> None:
        """Replace its database by the backup."""
        if self._backed_up is None:
            await self.back_up()
        assert self._backed_up is not None
        await asyncio.to_thread(self.server.stop)
        done = await asyncio.to_thread(
            *(routecast, "restore", self._backup),
            *("--database", self.server.database_url),
        )
        assert done.returncode == 0, done.stderr
        for replaced in self._disk.glob("*.replaced-*"):
            replaced.unlink()  # or the disk is full some day
        for producer in self.producers:
            producer.acknowledged = set(self._backed_up[producer.name])
        await asyncio.to_thread(self.server.start)

    # -- what must be so ------------------------------------------------------------------------

    async def flows(self) -> None:
        """Return when each producer has had another acknowledgement."""
        before = [producer.acks for producer in self.producers]
        await self._until(
            lambda: all(p.acks > b for p, b in zip(self.producers, before, strict=True))
        )

    async def _until(self, met: Callable[[], bool]) -> None:
        """Return when a condition is met, by a node that was not started again meanwhile."""
        try:
            async with asyncio.timeout(HEAL_SECONDS):
                while not await asyncio.to_thread(met):  # noqa: ASYNC110  # -- of a process
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log = self.server.log.read_text()[-4000:]
            raise AssertionError(f"not so after {dict(self.done)}:\n{log}") from None

    async def check(self) -> None:
        """Assert that the database and the node's numbers are those that producers were told."""
        with closing(sqlite3.connect(self.server.database)) as database:
            stored = dict(
                database.execute(
                    "SELECT rtrim(rtrim(id, '0123456789'), '-') AS batch, count(*) FROM decisions "
                    "GROUP BY batch"
                )
            )
        sent = {batch: n for producer in self.producers for batch, n in producer.sent.items()}
        assert all(sent[batch] == count for batch, count in stored.items())  # whole batches
        acknowledged = set().union(*(producer.acknowledged for producer in self.producers))
        assert acknowledged <= stored.keys()
        total = sum(stored.values())
        assert self.server.metrics()["total_decisions"] == total
        again = next(iter(acknowledged))
        receipt = self.server.post(decisions(again, sent[again]))
        assert (receipt["accepted"], receipt["duplicates"]) == (0, sent[again])
        verified = await asyncio.to_thread(
            routecast, "verify", "--database", self.server.database_url
        )
        assert verified.returncode == 0, verified.stdout
        tell(f"{dict(self.done)}; {len(stored)} batches, {total} decisions")


def set_clock(file: Path, offset: str) -> None:
    """Tell a process under libfaketime how far off its clock is."""
    new = file.with_suffix(".new")
    new.write_text(f"{offset}\n")
    new.replace(file)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    with small_disk(tmp_path / "disk", DISK_BYTES) as folder:
        yield folder


@pytest.fixture
async def node(disk: Path, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that producers reach through a proxy."""
    clock = tmp_path / "clock"
    set_clock(clock, "+0")
    env = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
        "FAKETIME_NO_CACHE": "1",
    }
    async with AsyncExitStack() as stack:
        server = stack.enter_context(Server(disk, env=env))
        proxy = await stack.enter_async_context(Proxy(server.port))
        made = Node(disk, tmp_path, proxy, server)
        try:
            yield made
        finally:
            for task in made.producing:
                task.cancel()
            await asyncio.gather(*made.producing, return_exceptions=True)


@pytest.mark.skipif(not FAKETIME, reason=lacks("faketime", "apt install faketime"))
async def test_random_faults_lose_and_add_nothing(node: Node) -> None:
    """Acknowledged decisions are stored once, and nothing else is."""
    chance = random.Random(5)
    faults = {
        "kill": (12, node.kill),
        "reset": (3, node.reset),
        "clock": (2, lambda: node.set_clock(chance)),
        "full disk": (1, node.fill_disk),
        "backup": (1, node.back_up),
        "restore": (1, node.restore),
    }
    weights = [weight for weight, _ in faults.values()]
    plan = [*faults, *chance.choices(list(faults), weights, k=FAULTS - len(faults))]
    chance.shuffle(plan)
    for fault in plan:
        await node.flows()
        await faults[fault][1]()
        node.done[fault] += 1
    await node.flows()
    for producer in node.producers:
        producer.stopping = True
    async with asyncio.timeout(HEAL_SECONDS):
        await asyncio.gather(*node.producing)
    await node.check()
