"""The bus of a single process: which messages it remembers."""

import pytest

from routecast.adapters.bus import memory
from routecast.adapters.bus.memory import MemoryBus
from routecast.core.delta import Delta
from routecast.errors import MissingDeltas
from routecast.protocol import Position
from tests.support.decisions import NOW, cells_of, kept


def delta(seq: int, cells: int) -> Delta:
    return Delta(Position("e", seq), cells_of([kept(strategy=f"s{n}") for n in range(cells)]), NOW)


async def test_it_remembers_a_number_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit counts cells and not commits, because a large commit takes more memory."""
    monkeypatch.setattr(memory, "CELLS_HELD", 10)
    bus = MemoryBus()
    heard: list[Delta | Position] = []
    bus.listen(heard.append)
    for seq in range(1, 6):
        bus.publish(delta(seq, 4))
    assert [one.position.seq for one in await bus.deltas(Position("e", 3))] == [4, 5]
    with pytest.raises(MissingDeltas):
        await bus.deltas(Position("e", 2))
    bus.publish(delta(6, 11))
    assert await bus.deltas(Position("e", 5)) == []
    bus.publish(delta(7, 1))
    assert [one.position.seq for one in await bus.deltas(Position("e", 6))] == [7]
    assert len(heard) == 7
