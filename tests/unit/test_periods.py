"""Periods: they hold the same sums packed or not, and know the memory that they take."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.packing import PeriodsPacking
from routecast.core.periods import CELL_BYTES, Keys, Periods
from routecast.core.rollup import Key, PeriodCells, merge_cells
from tests.support.decisions import NOW, cells_of, kept, kept_decisions

some = st.lists(kept_decisions(st.just("id"), st.just(NOW)), max_size=8).map(
    lambda decisions: cells_of(decisions).total()
)
additions = st.lists(st.tuples(st.integers(0, 3), some), max_size=8)


def packed(numbered: list[tuple[int, PeriodCells]]) -> Periods:
    """Return periods that were loaded with these cells."""
    periods = Periods(keys := Keys())
    for number, cells in numbered:
        rows = [(keys.number(key), sums.row()) for key, sums in cells.items()]
        periods.add_rows(number, rows)
    return periods


def pack(periods: Periods) -> bytes:
    packing = PeriodsPacking(periods, periods._keys)
    for _ in packing.steps(3):
        pass
    return b"".join(packing.pieces())


def merged(numbered: list[tuple[int, PeriodCells]]) -> dict[int, PeriodCells]:
    found: dict[int, PeriodCells] = {}
    for number, cells in numbered:
        merge_cells(found.setdefault(number, {}), cells)
    return found


@given(additions, additions)
def test_packed_and_added_cells_of_a_period_are_merged(
    loaded: list[tuple[int, PeriodCells]], added: list[tuple[int, PeriodCells]]
) -> None:
    """Cells may be loaded in any pieces, and added to any period."""
    periods = packed(loaded)
    for number, cells in added:
        periods.add(number, cells)
    assert periods == merged([*loaded, *added])
    written = pack(periods)
    back = Periods(Keys(periods._keys.all))
    back.take(msgspec.msgpack.decode(written, type=dict[int, list[msgspec.Raw]]))
    assert back == periods


@given(additions, additions)
def test_period_that_is_being_read_gets_additions(
    loaded: list[tuple[int, PeriodCells]], added: list[tuple[int, PeriodCells]]
) -> None:
    """A reader may take a while, and sees additions as long as it has the cells."""
    periods = packed(loaded)
    being_read = {number: periods[number] for number in periods}
    for number, cells in added:
        periods.add(number, cells)
    for number, cells in being_read.items():
        assert cells == merged([*loaded, *added])[number]


def test_packing_again_writes_only_what_changed() -> None:
    """The bytes of unchanged periods are the same objects."""
    periods = Periods(Keys())
    for number in (1, 2):
        periods.add(number, cells_of([kept(1)]).total())
    first = pack(periods)
    written = dict(periods._written)
    periods.add(2, cells_of([kept(2)]).total())
    assert pack(periods) != first
    assert periods._written[1] is written[1]


def test_size_counts_cells_and_bytes() -> None:
    """A packed cell counts by its bytes, and an unpacked one by the memory of its objects."""
    cells = cells_of([kept(n, model=f"m{n}") for n in range(500)]).total()
    loaded = packed([(7, cells)])
    assert (loaded.cells, loaded.packed_cells(7)) == (500, 500)
    assert loaded.size < 500 * CELL_BYTES / 5
    before = loaded.size
    loaded.add(8, cells)
    assert loaded.cells == 1000
    assert loaded.size - before >= 500 * CELL_BYTES
    loaded.keep([(7, 8)])
    assert (loaded.cells, loaded.size, list(loaded)) == (500, before, [7])
    loaded.keep([])
    assert (loaded.cells, loaded.size, len(loaded)) == (0, 0, 0)


def test_equal_keys_are_one_object() -> None:
    """The text of a key is held once, whichever commits had it."""
    keys = Keys()
    first, second = (next(iter(keys.shared(cells_of([kept(n)]).total()))) for n in (1, 2))
    assert first is second


@pytest.mark.parametrize("number", [1, -1])
def test_row_of_an_unknown_key_is_refused(number: int) -> None:
    """A cache may have any content."""
    row: Any = next(iter(cells_of([kept()]).total().values())).row()
    raw = msgspec.Raw(msgspec.msgpack.encode([(number, row)]))
    with pytest.raises(ValueError):
        Periods(Keys([Key(*kept()[1:7])])).take({5: [raw]})


def test_cells_are_packed_by_the_numbers_of_their_keys() -> None:
    """A new key gets the next number."""
    cells = cells_of([kept(1), kept(2, model="other")]).total()
    periods = Periods(keys := Keys(), {7: cells})
    ((rows,),) = msgspec.msgpack.decode(pack(periods)).values()
    assert {keys.all[number] for number, _ in rows} == set(cells)
