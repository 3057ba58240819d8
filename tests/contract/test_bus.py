"""What every bus promises (`ports.Bus`)."""

from routecast.core.delta import Delta
from routecast.ports import Bus
from routecast.protocol import Position
from tests.support.decisions import NOW, cells_of, kept


def delta(seq: int) -> Delta:
    return Delta(Position("e", seq), cells_of([kept(seq)]), NOW)


async def test_own_listeners_hear_at_once(bus: Bus) -> None:
    """When `publish` returns, every listener of this process has the delta, whole."""
    first: list[Delta | Position] = []
    second: list[Delta | Position] = []
    bus.listen(first.append)
    bus.listen(second.append)
    bus.publish(delta(1))
    assert first == second == [delta(1)]


async def test_deltas_come_in_order(bus: Bus) -> None:
    """As they were published."""
    heard: list[Delta | Position] = []
    bus.listen(heard.append)
    for seq in range(1, 101):
        bus.publish(delta(seq))
    assert [one.position.seq for one in heard if isinstance(one, Delta)] == list(range(1, 101))


async def test_listener_hears_from_now_on(bus: Bus) -> None:
    """What was said before is not repeated."""
    heard: list[Delta | Position] = []
    bus.publish(delta(1))
    bus.listen(heard.append)
    bus.publish(delta(2))
    assert heard == [delta(2)]


async def test_nobody_listening_is_no_harm(bus: Bus) -> None:
    """Publishing is sending, not being heard."""
    heard: list[Delta | Position] = []
    bus.publish(delta(1))
    bus.listen(heard.append)
    assert heard == []


async def test_ended_listener_hears_no_more(bus: Bus) -> None:
    """It alone; the same function listening twice is two listeners. Ending again is no harm."""
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
    """While it hears; the others hear all the same."""
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
    """And a listener may end after it."""
    heard: list[Delta | Position] = []
    end = bus.listen(heard.append)
    await bus.close()
    await bus.close()
    end()
    assert heard == []
