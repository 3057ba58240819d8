"""Connection ids: unique and rising on a node, and they tell when a connection began."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from routecast.core.connection_ids import FIRST, TICK, began, new_id, read_id, write_id

NOW = 1_790_000_000_000_000


@given(st.lists(st.integers(min_value=-(10**15), max_value=10**15), min_size=2, max_size=50))
def test_ids_rise_with_any_clock(steps: list[int]) -> None:
    """The clock may stand still or be set back, even before 2026."""
    now, last = NOW, 0
    for step in steps:
        now += step
        found = new_id(now, last)
        assert found > last
        assert read_id(write_id(found)) == found
        last = found


def test_an_id_tells_when_it_began() -> None:
    """To a fiftieth of a second."""
    assert 0 <= NOW - began(new_id(NOW, 0)) < TICK
    assert began(new_id(FIRST - 1, 0)) == FIRST


def test_an_id_is_small() -> None:
    """Until 2036 it takes 32 bytes, as few as any number that is not shared."""
    in_2036 = FIRST + 10 * 365 * 24 * 3600 * 1_000_000
    assert sys.getsizeof(new_id(in_2036, 0)) <= 32
    assert len(write_id(new_id(NOW, 0))) == 15


def test_other_texts_are_no_ids() -> None:
    """Nor are other ways to write a number."""
    for text in ("", "0", "0x2b4c0a1f3d5e7", "0" * 17, "00000000000000g", "٠" * 15, "A" * 15):
        assert read_id(text) is None
