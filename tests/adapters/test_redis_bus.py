"""The Redis bus beyond its contract: its messages, the contents of the stream, lost links."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis import Redis

from routecast.adapters.bus import redis as redis_bus
from routecast.core.delta import Delta
from routecast.errors import MissingDeltas, Unavailable
from routecast.protocol import Position
from tests.support.decisions import NOW, cells_of, kept
from tests.support.engines import SharedRedis, carried
from tests.support.running_services import until


class BusWorld:
    """A bus, the messages that another node received, and a plain client of the same Redis."""

    def __init__(self, url: str) -> None:
        self.shared = SharedRedis(url)
        self.stream = self.shared.link().key("deltas")
        self.client = Redis.from_url(url, protocol=2)
        self.bus = self.shared.bus()
        self.heard: list[Delta | Position] = []

    async def publish(self, *seqs: int) -> None:
        """Publish deltas, and wait until they are in Redis."""
        before = self.client.xlen(self.stream)
        for seq in seqs:
            self.bus.publish(delta(seq))
        await until(lambda: self.client.xlen(self.stream) == before + len(seqs))


def delta(seq: int) -> Delta:
    return Delta(Position("e", seq), cells_of([kept(seq)]), NOW)


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[BusWorld]:
    made = BusWorld(redis_url)
    other = made.shared.bus()
    other.listen(made.heard.append)
    async with carried(made.bus), carried(other):
        yield made
    made.client.close()


async def test_delta_deleted_by_hand_is_missing(world: BusWorld) -> None:
    """A node that asks for it must read the database."""
    await world.publish(1, 2, 3)
    (_, second, _) = world.client.xrange(world.stream)
    world.client.xdel(world.stream, second[0])
    with pytest.raises(MissingDeltas):
        await world.bus.deltas(Position("e", 1))
    assert await world.bus.deltas(Position("e", 2)) == [delta(3)]


async def test_announced_position_shows_that_deltas_are_missing(world: BusWorld) -> None:
    """A bus that knows of a later commit must not answer that there is none."""
    await world.publish(1, 2)
    world.bus.announce(Position("e", 3))
    await until(lambda: Position("e", 3) in world.heard)
    with pytest.raises(MissingDeltas):
        await world.bus.deltas(Position("e", 1))


async def test_deltas_are_read_over_many_pages(world: BusWorld) -> None:
    """Other messages in the stream make no difference."""
    seqs = range(1, 3 * redis_bus.PAGE)
    for seq in seqs:
        world.bus.publish(delta(seq))
        world.bus.announce(Position("e", seq))
    await until(lambda: len(world.heard) == 2 * len(seqs))
    found = await world.bus.deltas(Position("e", 5))
    assert [one.position.seq for one in found] == list(seqs)[5:]


async def test_deltas_of_an_old_epoch_are_skipped(world: BusWorld) -> None:
    """The stream has them before those of the new epoch."""
    await world.publish(1, 2)
    new = [Delta(Position("new", seq), cells_of([kept(seq)]), NOW) for seq in (1, 2)]
    for one in new:
        world.bus.publish(one)
    await until(lambda: len(world.heard) == 4)
    assert await world.bus.deltas(Position("new", 0)) == new
    assert await world.bus.deltas(Position("new", 2)) == []
    with pytest.raises(MissingDeltas):
        await world.bus.deltas(Position("e", 2))


async def test_large_delta_is_replaced_by_its_position(
    world: BusWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other node knows that it lags, and the bus does not carry the large message."""
    await world.publish(1)
    monkeypatch.setattr(redis_bus, "MAX_DELTA_BYTES", 10)
    await world.publish(2)
    await until(lambda: len(world.heard) == 2)
    assert world.heard == [delta(1), Position("e", 2)]
    with pytest.raises(MissingDeltas):
        await world.bus.deltas(Position("e", 1))


async def test_stream_keeps_about_a_thousand(world: BusWorld) -> None:
    """Redis drops older messages in blocks of a hundred."""
    for seq in range(1, 2001):
        world.bus.publish(delta(seq))
    await until(lambda: bool(world.heard) and world.heard[-1] == delta(2000))
    assert 1000 <= world.client.xlen(world.stream) <= 1100
    assert len(await world.bus.deltas(Position("e", 1100))) == 900
    with pytest.raises(MissingDeltas):
        await world.bus.deltas(Position("e", 100))


async def test_stream_of_large_deltas_keeps_fewer(
    world: BusWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is limited in bytes, too."""
    monkeypatch.setattr(redis_bus, "STREAM_BYTES", 20_000)
    for seq in range(1, 1001):
        world.bus.publish(delta(seq))
    await until(lambda: bool(world.heard) and world.heard[-1] == delta(1000))
    assert world.client.xlen(world.stream) < 300


async def test_unreadable_messages_are_skipped(world: BusWorld) -> None:
    """A message of another program or version does not end the bus."""
    world.client.xadd(world.stream, {"greeting": "hello"})
    world.client.xadd(world.stream, {"node": "x", "epoch": "e", "seq": 1, "delta": "junk"})
    await world.publish(2)
    await until(lambda: bool(world.heard))
    assert world.heard == [delta(2)]


async def test_key_of_another_type_is_an_outage(
    world: BusWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of Redis is logged once, and so is the end of the outage."""
    world.client.set(world.stream, "something else")
    world.bus.publish(delta(1))
    await until(lambda: "wrong kind" in (world.bus.failing or ""))
    with pytest.raises(Unavailable, match="wrong kind"):
        await world.bus.deltas(Position("e", 0))
    world.client.delete(world.stream)
    await until(lambda: world.heard == [delta(1)] and world.bus.failing is None)
    said = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("Deltas cannot be sent: ") for line in said) == 1
    assert sum(line == "Deltas are sent again" for line in said) == 1


async def test_close_sends_waiting_deltas(world: BusWorld) -> None:
    """The last deltas of a node that stops are not lost."""
    leaving = world.shared.bus()
    async with carried(leaving):
        leaving.publish(delta(1))
        leaving.publish(delta(2))
    await until(lambda: world.heard == [delta(1), delta(2)])


async def test_unused_stream_expires(world: BusWorld) -> None:
    """A cluster that was shut down leaves nothing in Redis."""
    await world.publish(1)
    assert 0 < world.client.ttl(world.stream) <= redis_bus.STREAM_SECONDS


async def test_bus_ends_when_it_is_cancelled(redis_url: str) -> None:
    """It can be cancelled at any moment."""
    shared = SharedRedis(redis_url)
    for step in range(60):
        bus = shared.bus()
        task = asyncio.create_task(bus.run())
        for seq in range(step):
            bus.publish(delta(seq))
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=10)
        assert done
        await bus.close()


async def test_bus_works_without_the_right_to_expire(world: BusWorld) -> None:
    """Each message is sent once, although the command beside it fails."""
    world.client.execute_command(
        *("ACL", "SETUSER", "stays", "on", ">word", "~*", "+@all", "-pexpire")
    )
    url = world.shared._url.replace("redis://", "redis://stays:word@")
    async with carried(SharedRedis(url, world.shared.prefix).bus()) as other:
        for seq in range(1, 301):
            other.publish(delta(seq))
        await until(lambda: len(world.heard) == 300)
        assert [one.position.seq for one in world.heard if isinstance(one, Delta)] == list(
            range(1, 301)
        )
        assert not other.failing
    assert world.client.xlen(world.stream) == 300


async def test_last_message_of_a_position_counts(world: BusWorld) -> None:
    """A database that was restored uses positions again, and the stream still has the old ones."""
    await world.publish(1, 2, 3)
    again = Delta(Position("e", 3), cells_of([kept(33), kept(34)]), NOW)
    world.bus.publish(again)
    await until(lambda: len(world.heard) == 4)
    assert await world.bus.deltas(Position("e", 2)) == [again]


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": "e", "seq": "x"},
        {"epoch": "e"},
        {"epoch": b"\xff", "seq": "1"},
        {"epoch": "e", "seq": "1", "delta": "x"},
        {"epoch": "e", "seq": "9" * 5000},
        {"x": "y"},
    ],
)
async def test_foreign_message_is_skipped(world: BusWorld, fields: dict[str, object]) -> None:
    """Later messages are received; a node that looks for deltas must read the database."""
    world.client.xadd(world.stream, fields)  # type: ignore[arg-type]  # -- what redis-py encodes
    with pytest.raises(MissingDeltas):
        await world.bus.deltas(Position("e", 0))
    world.bus.publish(delta(2))
    await until(lambda: world.heard == [delta(2)])
