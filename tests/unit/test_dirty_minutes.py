"""Dirty minutes: which minutes commits added to, and when that is unknown."""

import pytest

from routecast.core import dirty_minutes as module
from routecast.core.delta import Delta
from routecast.core.dirty_minutes import DirtyMinutes
from routecast.errors import MissingDeltas
from routecast.protocol import Position
from tests.support.decisions import MINUTE, NOW, cells_of, kept


def delta(seq: int, *minutes: int, epoch: str = "e") -> Delta:
    decisions = [kept(n, decided=minute * MINUTE) for n, minute in enumerate(minutes)]
    return Delta(Position(epoch, seq), cells_of(decisions), NOW)


def between(changes: DirtyMinutes, after: int, until: int, epoch: str = "e") -> set[int]:
    return set(changes.between(Position(epoch, after), Position(epoch, until)))


def test_minutes_are_those_of_later_commits() -> None:
    """A minute counts once, also if earlier commits added to it."""
    changes = DirtyMinutes()
    for seq, minutes in enumerate([(1, 2), (3,), (1,), (4, 3)], 5):
        changes.note(delta(seq, *minutes))
    assert between(changes, 4, 8) == {1, 2, 3, 4}
    assert between(changes, 5, 8) == {1, 3, 4}
    assert between(changes, 6, 8) == {1, 3, 4}
    assert between(changes, 7, 8) == {3, 4}
    assert between(changes, 8, 8) == set()


def test_a_delta_that_comes_again_changes_nothing() -> None:
    """A delta may be fetched and then arrive on the bus."""
    changes = DirtyMinutes()
    for seq in (1, 2, 1, 2, 3):
        changes.note(delta(seq, seq))
    assert between(changes, 0, 3) == {1, 2, 3}


@pytest.mark.parametrize(
    ("after", "until"), [(3, 7), (4, 8), (5, 8)], ids=["early", "late", "later"]
)
def test_unknown_commits_raise_missing_deltas(after: int, until: int) -> None:
    """The range begins before the first known commit, or ends after the last."""
    changes = DirtyMinutes()
    for seq in (5, 6, 7):
        changes.note(delta(seq, seq))
    assert between(changes, 4, 7) == {5, 6, 7}
    with pytest.raises(MissingDeltas):
        between(changes, after, until)


def test_a_missing_commit_forgets_all_before_it() -> None:
    """The minutes of the missing commit are unknown."""
    changes = DirtyMinutes()
    for seq in (1, 2, 4):
        changes.note(delta(seq, seq))
    assert between(changes, 3, 4) == {4}
    with pytest.raises(MissingDeltas):
        between(changes, 2, 4)


def test_another_epoch_forgets_all_before_it() -> None:
    """A range between two epochs is never known."""
    changes = DirtyMinutes()
    changes.note(delta(1, 1))
    changes.note(delta(1, 2, epoch="f"))
    assert between(changes, 0, 1, epoch="f") == {2}
    for after, until in (("e", "f"), ("f", "e"), ("e", "e")):
        with pytest.raises(MissingDeltas):
            changes.between(Position(after, 0), Position(until, 1))


def test_the_number_of_remembered_minutes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the limit all is forgotten, and callers read everything again."""
    monkeypatch.setattr(module, "MAX_MINUTES", 3)
    changes = DirtyMinutes()
    for seq in range(1, 5):
        changes.note(delta(seq, seq))
    assert between(changes, 3, 4) == {4}
    with pytest.raises(MissingDeltas):
        between(changes, 2, 4)
