"""The contract of every bus (`ports.Bus`)."""

import pytest

from routecast.core.delta import Delta
from routecast.errors import MissingDeltas
from routecast.ports import Bus
from routecast.protocol import Position
from tests.support.decisions import NOW, cells_of, kept
from tests.support.running_services import until


def delta(seq: int) -> Delta:
    return Delta(Position("e", seq), cells_of([kept(seq)]), NOW)


async def test_own_listeners_hear_at_once(bus: Bus) -> None:
    """When `publish` returns, every listener of this process has received the whole delta."""
    first: list[Delta | Position] = []
    second: list[Delta | Position] = []
    bus.listen(first.append)
    bus.listen(second.append)
    bus.publish(delta(1))
    assert first == second == [delta(1)]


async def test_deltas_come_in_order(bus: Bus) -> None:
    """Deltas arrive in the order in which they were published."""
    heard: list[Delta | Position] = []
    bus.listen(heard.append)
    for seq in range(1, 101):
        bus.publish(delta(seq))
    assert [one.position.seq for one in heard if isinstance(one, Delta)] == list(range(1, 101))


async def test_listener_hears_from_now_on(bus: Bus) -> None:
    """A new listener does not receive earlier messages."""
    heard: list[Delta | Position] = []
    bus.publish(delta(1))
    bus.listen(heard.append)
    bus.publish(delta(2))
    assert heard == [delta(2)]


async def test_ended_listener_hears_no_more(bus: Bus) -> None:
    """Only that listener ends, also if its function listens twice; ending twice is allowed."""
    heard: list[Delta | Position] = []
    end = bus.listen(heard.append)
    bus.listen(heard.append)
    bus.publish(delta(1))
    assert len(heard) == 2
    end()
    end()
    bus.publish(delta(2))
    assert len(heard) == 3


async def test_listener_may_end_itself(bus: Bus) -> None:
    """A listener that ends itself during a message does not affect the others."""
    heard: list[Delta | Position] = []

    def once(one: Delta | Position) -> None:
        heard.append(one)
        end()

    end = bus.listen(once)
    bus.listen(heard.append)
    bus.publish(delta(1))
    bus.publish(delta(2))
    assert heard == [delta(1), delta(1), delta(2)]


async def test_close_may_be_called_twice(bus: Bus) -> None:
    """A listener may also end after the bus was closed."""
    heard: list[Delta | Position] = []
    end = bus.listen(heard.append)
    await bus.close()
    await bus.close()
    end()
    assert heard == []


async def test_announced_position_is_for_other_nodes(bus: Bus) -> None:
    """A node's own listeners do not receive the position that it announces."""
    heard: list[Delta | Position] = []
    bus.listen(heard.append)
    bus.announce(Position("e", 2))
    bus.publish(delta(1))
    assert heard == [delta(1)]


async def test_other_nodes_hear_all_in_order(bus: Bus, other: Bus) -> None:
    """Another node receives whole deltas and positions in the order they were sent."""
    heard: list[Delta | Position] = []
    other.listen(heard.append)
    sent = [delta(seq) for seq in range(1, 301)]
    for one in sent[:200]:
        bus.publish(one)
    bus.announce(Position("e", 200))
    for one in sent[200:]:
        bus.publish(one)
    announced = [] if other is bus else [Position("e", 200)]  # one process has no other node
    await until(lambda: len(heard) == len(sent) + len(announced))
    assert heard == [*sent[:200], *announced, *sent[200:]]


async def test_both_ways(bus: Bus, other: Bus) -> None:
    """Each node receives what the other sends, and nothing of its own twice."""
    here: list[Delta | Position] = []
    there: list[Delta | Position] = []
    bus.listen(here.append)
    other.listen(there.append)
    bus.publish(delta(1))
    await until(lambda: len(there) == 1)
    other.publish(delta(2))
    await until(lambda: len(here) == 2)
    bus.publish(delta(3))
    await until(lambda: len(there) == 3)
    assert here == there == [delta(1), delta(2), delta(3)]


async def test_late_deltas_can_be_had_again(bus: Bus, other: Bus) -> None:
    """`deltas` returns the deltas after any position, to the sender and to others."""
    heard: list[Delta | Position] = []
    other.listen(heard.append)
    for seq in range(1, 21):
        bus.publish(delta(seq))
    await until(lambda: len(heard) == 20)
    for end in (bus, other):
        assert await end.deltas(Position("e", 17)) == [delta(18), delta(19), delta(20)]
        assert await end.deltas(Position("e", 0)) == [delta(seq) for seq in range(1, 21)]
        assert await end.deltas(Position("e", 20)) == []
        assert await end.deltas(Position("e", 21)) == []


async def test_empty_bus_has_no_deltas(bus: Bus) -> None:
    """`deltas` returns no deltas if none was sent lately."""
    assert await bus.deltas(Position("e", 5)) == []


async def test_deltas_in_a_wrong_order_come_in_the_right_one(bus: Bus, other: Bus) -> None:
    """`deltas` sorts deltas of nodes that overtook each other."""
    heard: list[Delta | Position] = []
    other.listen(heard.append)
    for seq in (1, 3, 2, 2, 5, 4):
        bus.publish(delta(seq))
    await until(lambda: len(heard) == 6)
    assert await other.deltas(Position("e", 1)) == [delta(seq) for seq in range(2, 6)]


async def test_missing_deltas_are_a_gap(bus: Bus, other: Bus) -> None:
    """A delta that was never sent, is too old or has another epoch is a gap."""
    heard: list[Delta | Position] = []
    other.listen(heard.append)
    for seq in (3, 4, 6):
        bus.publish(delta(seq))
    await until(lambda: len(heard) == 3)
    for after in (Position("e", 1), Position("e", 4), Position("old", 5)):
        with pytest.raises(MissingDeltas):
            await other.deltas(after)
    assert await other.deltas(Position("e", 5)) == [delta(6)]
