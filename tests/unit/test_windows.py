"""Windows from the database: one read serves all clients, and expensive reads are rare."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from routecast.adapters.store.null import NullStore
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.periods import CELL_BYTES
from routecast.core.snapshot import Snapshot
from routecast.core.view import View
from routecast.core.window import WindowQuery, query_of
from routecast.errors import Unavailable
from routecast.protocol import Position, Source
from routecast.services import windows as module
from routecast.services.windows import Windows
from tests.support.clock import HeldClock
from tests.support.decisions import HOUR, MINUTE, NOW, SECOND, assert_sums, kept
from tests.support.running_services import until

HOUR_QUERY = query_of(View(window="1h"))
DAY_QUERY = query_of(View(window="24h"))


class SlowStore(SqliteStore):
    """A SQLite store that counts its reads of windows, each of which waits for the gate."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[WindowQuery] = []
        self.running = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def window(self, asked: WindowQuery, now: int) -> Snapshot:
        self.running += 1
        assert self.running == 1, "reads take turns"
        try:
            snapshot = await super().window(asked, now)
            self.reads.append(asked)
            await self.gate.wait()
        finally:
            self.running -= 1
        return snapshot


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SlowStore]:
    """An open store with one decision."""
    opened = SlowStore(path)
    await opened.open()
    await opened.commit([[kept(1)]], NOW)
    yield opened
    opened.gate.set()
    await opened.close()


@pytest.fixture
async def windows(store: SlowStore, clock: HeldClock) -> AsyncIterator[Windows]:
    """Windows of that store, with enough room."""
    made = Windows(store, clock, 1_000 * CELL_BYTES)
    yield made
    store.gate.set()
    await made.close()


async def test_all_clients_share_one_read(windows: Windows, store: SlowStore) -> None:
    """Clients that come during the read, and soon after it, share it."""
    answers = await asyncio.gather(*(windows.read(HOUR_QUERY, None) for _ in range(20)))
    assert store.reads == [HOUR_QUERY]
    assert {id(each) for each in answers} == {id(windows.held(HOUR_QUERY, None))}
    first = answers[0]
    assert (first.source, first.as_of) == (Source.DATABASE, NOW)
    assert_sums(first.snapshot.total, [kept(1)])


async def test_old_answer_is_given_while_the_next_is_read(
    windows: Windows, store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client waits if there is an answer, whose age is known."""
    monkeypatch.setattr(module, "REUSE_SECONDS", 0.0)
    monkeypatch.setattr(module, "WINDOW_REST", 0)
    first = await windows.read(HOUR_QUERY, None)
    await store.commit([[kept(2)]], NOW)
    store.gate.clear()
    assert await windows.read(HOUR_QUERY, None) is first
    await until(lambda: len(store.reads) == 2)
    assert windows.held(HOUR_QUERY, None) is first
    store.gate.set()
    await until(lambda: windows.held(HOUR_QUERY, None) is not first)
    newest = windows.held(HOUR_QUERY, None)
    assert newest is not None
    assert newest.snapshot.position.seq == 2


async def test_reads_take_a_tenth_of_the_time(windows: Windows, store: SlowStore) -> None:
    """The limit is for all windows together, so many windows do not add work for the database."""
    for asked in (HOUR_QUERY, DAY_QUERY):
        store.gate.clear()
        reading = asyncio.create_task(windows.read(asked, None))
        await until(lambda asked=asked: asked in store.reads)
        await asyncio.sleep(0.05)
        store.gate.set()
        await reading
    held = windows._windows
    cost = sum(each.seconds for each in held.values())
    assert cost >= 0.1
    now = asyncio.get_running_loop().time()
    assert held[DAY_QUERY].due - now > module.WINDOW_REST * cost - 1
    for _ in range(50):
        windows.held(DAY_QUERY, None)
        await asyncio.sleep(0)
    assert store.reads == [HOUR_QUERY, DAY_QUERY]


async def test_answer_older_than_a_sent_position_is_read_again(
    windows: Windows, store: SlowStore
) -> None:
    """Live state may have sent a newer position meanwhile; the read is at once."""
    first = await windows.read(HOUR_QUERY, None)
    done = await store.commit([[kept(2)]], NOW)
    newest = await windows.read(HOUR_QUERY, done.position)
    assert newest.snapshot.position == done.position
    assert first.snapshot.position.seq == 1
    ahead = Position(done.position.epoch, 3)
    with pytest.raises(Unavailable):
        await windows.read(HOUR_QUERY, ahead, patience=0.05)


async def test_position_never_goes_back(
    windows: Windows, store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that lags gives no answer in place of an older one."""
    monkeypatch.setattr(module, "REUSE_SECONDS", 0.0)
    monkeypatch.setattr(module, "WINDOW_REST", 0)
    old = await store.window(HOUR_QUERY, NOW)
    await store.commit([[kept(2)]], NOW)
    newest = await windows.read(HOUR_QUERY, None)
    answered = asyncio.Event()

    async def replica(_: WindowQuery, __: int) -> Snapshot:
        answered.set()
        return old

    monkeypatch.setattr(store, "window", replica)
    windows.held(HOUR_QUERY, None)
    await answered.wait()
    await until(lambda: windows._windows[HOUR_QUERY].failed)
    assert windows.held(HOUR_QUERY, None) is newest


@pytest.mark.parametrize("step", [-HOUR, -2 * SECOND, HOUR])
async def test_clock_that_jumps_makes_answers_outdated(
    windows: Windows, store: SlowStore, clock: HeldClock, step: int
) -> None:
    """Answers are for another time, so the window is read again at once."""
    await windows.read(HOUR_QUERY, None)
    clock.moment += step
    newest = await windows.read(HOUR_QUERY, None)
    assert newest.as_of == clock.moment
    assert len(store.reads) == 2


async def test_answers_take_limited_memory(store: SlowStore, clock: HeldClock) -> None:
    """The least recently used are dropped; the newest stays with any size."""
    await store.commit([[kept(n, model=f"m{n}", decided=NOW - MINUTE) for n in range(30)]], NOW)
    windows = Windows(store, clock, 70 * CELL_BYTES)
    for window in ("5m", "1h", "24h", "7d"):
        await windows.read(query_of(View(window=window)), None)
        assert windows.size <= 70 * CELL_BYTES
    kept_ones = [asked.window for asked, each in windows._windows.items() if each.reading]
    assert kept_ones == ["24h", "7d"]
    small = Windows(store, clock, 1)
    assert (await small.read(HOUR_QUERY, None)).snapshot.total
    await windows.close()
    await small.close()


async def test_windows_without_clients_are_forgotten(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take no memory, and do not delay other windows."""
    await windows.read(HOUR_QUERY, None)
    monkeypatch.setattr(module, "FORGET_SECONDS", -1.0)
    await windows.read(DAY_QUERY, None)
    assert list(windows._windows) == [DAY_QUERY]


async def test_failure_is_the_answer_until_the_next_attempt(
    windows: Windows, store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients do not wait for that attempt, and get numbers after it."""
    monkeypatch.setattr(module, "REUSE_SECONDS", 600.0)

    async def lost(*_: object) -> Snapshot:
        raise Unavailable("lost")

    with monkeypatch.context() as broken:
        broken.setattr(store, "window", lost)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await windows.read(HOUR_QUERY, None)
    windows._windows[HOUR_QUERY].due = 0.0
    assert (await windows.read(HOUR_QUERY, None)).snapshot.total


async def test_clients_wait_for_a_limited_time(windows: Windows, store: SlowStore) -> None:
    """The read goes on for later clients."""
    store.gate.clear()
    with pytest.raises(Unavailable):
        await windows.read(HOUR_QUERY, None, patience=0.05)
    store.gate.set()
    await until(lambda: windows.held(HOUR_QUERY, None) is not None)
    assert store.reads == [HOUR_QUERY]


async def test_node_without_a_database_is_unavailable(clock: HeldClock) -> None:
    """There is no other source of windows."""
    windows = Windows(NullStore(), clock, 1)
    with pytest.raises(Unavailable):
        await windows.read(HOUR_QUERY, None)
    await windows.close()
