"""Snapshots: deltas go in, windows come out, while the clock moves."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import msgpack

from routecast.core.delta import Delta
from routecast.core.packing import CELLS_PER_PACK_STEP, FORM
from routecast.core.periods import CELL_BYTES
from routecast.core.rollup import Cells, Key
from routecast.core.snapshot import BOUNDED, COVERAGE, HOUR, LIFETIME, Snapshot
from routecast.errors import MissingDeltas, NotHeld
from routecast.protocol import WINDOWS, Position
from tests.support.commit_history import CommitHistory, load
from tests.support.decisions import (
    DAY,
    MINUTE,
    NOW,
    PROVIDERS,
    SECOND,
    cells_of,
    kept,
    kept_decisions,
    sent_decisions,
)
from tests.support.windows import cells_in


def delta(seq: int, *decisions: Any, epoch: str = "e") -> Delta:
    return Delta(Position(epoch, seq), cells_of(decisions), NOW)


# -- in order -----------------------------------------------------------------------------------


def test_deltas_are_applied_in_order() -> None:
    """Each delta moves the position on by one."""
    snapshot = Snapshot(Position("e", 0), NOW)
    assert snapshot.apply(delta(1, kept(1)))
    assert snapshot.apply(delta(2, kept(2)))
    assert snapshot.position == Position("e", 2)
    assert snapshot.total == cells_of([kept(1), kept(2)]).total()
    assert list(snapshot.keys()) == [kept(1)[1:7]]


def test_delta_that_is_in_already_changes_nothing() -> None:
    """A bus may deliver a delta twice."""
    snapshot = Snapshot(Position("e", 0), NOW)
    snapshot.apply(delta(1, kept(1)))
    before = snapshot.pack()
    assert not snapshot.apply(delta(1, kept(1)))
    assert not snapshot.apply(delta(0, kept(5)))
    assert snapshot.pack() == before


@pytest.mark.parametrize("next_one", [delta(3, kept(3)), delta(2, kept(2), epoch="other")])
def test_gap_is_never_guessed_over(next_one: Delta) -> None:
    """A missing seq or another epoch raises MissingDeltas, and changes nothing."""
    snapshot = Snapshot(Position("e", 0), NOW)
    snapshot.apply(delta(1, kept(1)))
    before = snapshot.pack()
    with pytest.raises(MissingDeltas):
        snapshot.apply(next_one)
    assert snapshot.pack() == before


# -- windows ------------------------------------------------------------------------------------

# Mostly where windows begin and end; some in the future, some before all windows.
offsets = st.one_of(
    st.sampled_from([0, -5, -6, -59, -60, -61]).map(lambda minutes: minutes * MINUTE),
    st.sampled_from([-23, -24, -25, -167, -168, -169]).map(lambda hours: hours * HOUR),
    st.integers(-2 * HOUR, 0),
    st.integers(-8 * DAY, DAY),
    st.just(-40 * DAY),
)
near = st.integers(-2 * MINUTE, 2 * MINUTE)
commits = st.lists(
    st.tuples(sent_decisions(offsets), near).map(
        lambda pair: {**pair[0], "timestamp": min(DAY, pair[0]["timestamp"] + pair[1])}
    ),
    min_size=1,
    max_size=5,
)
ticks = st.one_of(
    st.integers(0, 3 * MINUTE),
    st.sampled_from([MINUTE, 5 * MINUTE, 59 * MINUTE, HOUR, 61 * MINUTE]),
    st.integers(0, HOUR),
    st.integers(-MINUTE, 0),
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.frozensets(st.sampled_from(["hybrid", "cost", "nobody's"]), min_size=1),
        "provider": st.just(frozenset({"gemini", "claude"})),
        "model": st.just(frozenset({"flash"})),
        "project": st.just(frozenset({"search"})),
    },
)
steps = st.lists(
    st.one_of(
        commits.map(lambda sent: ("commit", sent)),
        ticks.map(lambda duration: ("tick", duration)),
        st.tuples(st.just("check"), st.tuples(st.sampled_from(list(WINDOWS)), filters)),
        st.just(("reload", None)),
        st.just(("cached", None)),
    ),
    min_size=5,
    max_size=14,
)


@settings(max_examples=300)
@given(start=st.integers(0, HOUR), script=steps)
def test_every_window_equals_a_count_of_the_decisions(
    start: int, script: list[tuple[str, Any]]
) -> None:
    """This holds for any commits, any moment and any movement of the clock."""
    history = CommitHistory(NOW + start)
    for step, given_ in script:
        if step == "commit":
            history.commit(given_)
        elif step == "tick":
            history.now = max(history.now + given_, history.snapshot.taken - MINUTE)
            if history.now - history.snapshot.taken >= COVERAGE:
                history.reload()
        elif step == "check":
            history.check(*given_)
        elif step == "reload":
            history.reload()
        else:
            history.snapshot = Snapshot.unpack(history.snapshot.pack())
    for window in WINDOWS:
        history.check(window)


@pytest.mark.parametrize("window", BOUNDED)
def test_future_counts_when_its_time_has_come(window: str) -> None:
    """A decision with a later time is in the total at once, and in a window when it is due."""
    history = CommitHistory()
    history.check(window)
    history.commit([{"strategy": "s", "provider": "p", "timestamp": 90 * SECOND}])
    assert history.snapshot.total
    assert not cells_in(history.snapshot, window, NOW)
    assert cells_in(history.snapshot, window, NOW + 2 * MINUTE)


@pytest.mark.parametrize("window", BOUNDED)
def test_snapshot_answers_for_its_coverage_and_no_longer(window: str) -> None:
    """Outside its coverage a window raises NotHeld."""
    hour = NOW // HOUR * HOUR
    snapshot = load(Position("e", 1), hour, [kept()])
    assert LIFETIME < COVERAGE
    for now in (hour - MINUTE, hour, hour + COVERAGE - 1):
        assert cells_in(snapshot, window, now) is not None
    for now in (hour + COVERAGE, hour - MINUTE - 1):
        with pytest.raises(NotHeld):
            cells_in(snapshot, window, now)


def test_all_of_history_is_always_answered_for() -> None:
    """The total does not depend on the clock."""
    snapshot = load(Position("e", 1), NOW, [kept()])
    assert cells_in(snapshot, "all", NOW + 100 * COVERAGE) == cells_of([kept()]).total()


def test_clock_set_back_starts_the_window_again() -> None:
    """Within the coverage, an earlier clock gets its earlier window."""
    history = CommitHistory(NOW)
    history.commit(
        [{"strategy": "s", "provider": "p", "timestamp": n * MINUTE} for n in range(-70, 40)]
    )
    for minutes in (0, 30, 31, 3, 0):
        history.now = NOW + minutes * MINUTE
        history.check("5m")
        history.check("1h")


def test_minute_that_is_not_held_is_uncovered() -> None:
    """A minute that is not held may not be empty."""
    snapshot = Snapshot(Position("e", 0), NOW)
    assert snapshot.minute(NOW // MINUTE) == {}
    with pytest.raises(NotHeld):
        snapshot.minute(NOW // MINUTE - 12 * 60)


def test_memory_is_bounded_however_late_decisions_come() -> None:
    """Decisions outside all windows are only in the total."""
    snapshot = Snapshot(Position("e", 0), NOW)
    late = [kept(n, decided=n * HOUR) for n in range(50)]
    snapshot.apply(delta(1, *late))
    assert sum(sums.count for sums in snapshot.total.values()) == 50
    assert not snapshot.hours
    assert not snapshot.minutes


# -- as bytes -----------------------------------------------------------------------------------


some = st.lists(kept_decisions(st.just("id"), st.integers(NOW - 9 * DAY, NOW + DAY)), max_size=15)


def assert_equal(one: Snapshot, other: Snapshot) -> None:
    assert (one.position, one.taken) == (other.position, other.taken)
    assert (one.total, one.hours, one.minutes) == (other.total, other.hours, other.minutes)


@given(st.lists(some, max_size=4), st.sets(st.sampled_from([*PROVIDERS, "hybrid", "none"])))
def test_keys_are_found_by_name(commits: list[list[Any]], names: set[str]) -> None:
    """Each part of a key finds it, after any commit."""
    snapshot = Snapshot(Position("e", 0), NOW)
    for seq, decisions in enumerate([[], *commits], 0):
        if seq:
            snapshot.apply(delta(seq, *decisions))
        for place in range(len(Key._fields)):
            picked = [key for key in snapshot.total if key[place] in names]
            assert sorted(snapshot.keys_of(place, names)) == sorted(picked)


@given(some)
def test_pack_comes_back(decisions: list[Any]) -> None:
    """Packing and unpacking lose nothing."""
    snapshot = load(Position("épöque", 2**40), NOW, decisions)
    back = Snapshot.unpack(snapshot.pack())
    assert_equal(back, snapshot)
    assert back.apply(Delta(Position("épöque", 2**40 + 1), Cells(), NOW))


@given(some, st.lists(some, max_size=4))
def test_pack_knows_what_changed_since_the_last(first: list[Any], more: list[list[Any]]) -> None:
    """Packing again costs only the changes, and gives the same bytes as packing anew."""
    snapshot = load(Position("e", 0), NOW, first)
    assert_equal(Snapshot.unpack(snapshot.pack()), snapshot)
    for seq, decisions in enumerate(more, 1):
        snapshot.apply(delta(seq, *decisions))
        back = Snapshot.unpack(snapshot.pack())
        assert_equal(back, snapshot)
        assert_equal(Snapshot.unpack(back.pack()), snapshot)


@given(
    loaded=some,
    room=st.sampled_from([None, 5 * CELL_BYTES, 40 * CELL_BYTES]),
    again=st.booleans(),
    step=st.integers(1, 4),
    between=st.lists(st.one_of(st.just(None), some), max_size=12),
)
def test_commits_during_packing_are_not_packed(
    loaded: list[Any], room: int | None, again: bool, step: int, between: list[list[Any] | None]
) -> None:
    """Wherever they come, and even if they drop a window: the bytes are those of the beginning."""
    snapshot = load(Position("e", 0), NOW, loaded)
    if again:
        snapshot.pack()  # unchanged periods are not packed again
    snapshot.room = room
    before = Snapshot.unpack(
        snapshot.pack() if again else load(Position("e", 0), NOW, loaded).pack()
    )
    with snapshot.packing() as packing:
        steps = packing.steps(step)
        for decisions in between:
            if decisions is None:
                next(steps, None)
            else:
                snapshot.apply(delta(snapshot.position.seq + 1, *decisions))
        for _ in steps:
            pass
    assert_equal(Snapshot.unpack(b"".join(packing.pieces())), before)
    # And what was kept of it is right for the next time.
    after = Snapshot.unpack(snapshot.pack())
    assert_equal(after, snapshot)


def test_large_snapshot_is_packed_in_steps() -> None:
    """A cell that a commit changes during the packing is packed once, too."""
    cells = 5 * CELLS_PER_PACK_STEP
    many = [kept(n, model=f"m{n}") for n in range(cells)]
    snapshot = Snapshot(Position("e", 0), NOW)
    snapshot.apply(delta(1, *many))
    with snapshot.packing() as packing:
        steps = sum(1 for _ in packing.steps())
    assert steps >= 3 * cells / (2 * CELLS_PER_PACK_STEP)  # total, hour and minute
    (*_, total, _, _, keys) = msgpack.decode(b"".join(packing.pieces()))
    assert len(total) == len(keys) == cells


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-1],
        lambda packed: packed[1:],
        lambda packed: packed.replace(b"hybrid", b"hybr\xffd"),
        lambda _: b"",
        lambda _: b"{}",
        lambda packed: msgpack.encode([*msgpack.decode(packed)[:-1], []]),
    ],
    ids=["cut", "shifted", "not text", "empty", "json", "a key missing"],
)
def test_unpack_refuses_what_pack_did_not_write(damage: Callable[[bytes], bytes]) -> None:
    """Other content of a cache raises ValueError."""
    with pytest.raises(ValueError):
        Snapshot.unpack(damage(load(Position("e", 1), NOW, [kept()]).pack()))


@given(st.binary(max_size=40))
def test_unpack_raises_nothing_but_value_error(packed: bytes) -> None:
    """Any bytes are unpacked or raise ValueError."""
    with pytest.raises(ValueError):
        Snapshot.unpack(packed)


# -- memory -------------------------------------------------------------------------------------

rooms = st.sampled_from([0, 5, 20, 60, 150, 400]).map(lambda cells: cells * CELL_BYTES)


@example(
    room=3_500,
    script=[
        [{"strategy": "hybrid", "provider": "gemini", "timestamp": -300_000_000}],
        [
            {"strategy": "hybrid", "provider": "gemini", "timestamp": 0},
            {"strategy": "hybrid", "provider": "gemini", "timestamp": -3_540_000_000},
        ],
        3_540_000_000,
    ],
)
@given(room=rooms, script=st.lists(st.one_of(commits, ticks, st.none()), min_size=3, max_size=10))
def test_every_window_that_has_room_equals_a_count(room: int, script: list[Any]) -> None:
    """No window is wrong, and the held cells stay within the room."""
    history = CommitHistory(NOW)
    history.snapshot = Snapshot(Position("e", 0), NOW, room=room)
    for step in script:
        if isinstance(step, list):
            history.commit(step)
        elif step is None:
            history.snapshot = Snapshot.unpack(history.snapshot.pack(), room)
        else:
            history.now = max(history.now + step, history.snapshot.taken - MINUTE)
        snapshot = history.snapshot
        assert snapshot.size <= max(room, len(snapshot.total) * CELL_BYTES)
        assert snapshot.covered == BOUNDED[: len(snapshot.covered)]
        for window in WINDOWS:
            if snapshot.covers(window, history.now, rate=True):
                history.check(window)
            elif window != "all":
                # The minutes of a shorter window may be all that there are, once time has gone on.
                with suppress(NotHeld):
                    counted = cells_in(snapshot, window, history.now)
                    assert sum(each.count for each in counted.values()) == history.count(window)


def test_longest_window_goes_first() -> None:
    """It takes the hours and minutes that only it needs; other windows stay."""
    snapshot = Snapshot(Position("e", 0), NOW, room=70 * CELL_BYTES)
    covered = []
    for seq in range(1, 12):
        week_ago, hour_ago = NOW - 7 * DAY + HOUR, NOW - 40 * MINUTE
        new = [kept(seq, model=f"m{seq}", decided=at) for at in (week_ago, hour_ago, NOW)]
        snapshot.apply(delta(seq, *new))
        covered.append(snapshot.covered)
    assert covered[0] == BOUNDED
    assert covered[-1] == ("5m", "1h", "24h")
    with pytest.raises(NotHeld):
        snapshot.hour((NOW - 7 * DAY + HOUR) // HOUR)
    assert len(snapshot.minute(NOW // MINUTE)) == 11


def test_endless_keys_in_minute_after_minute_take_no_more_than_the_room() -> None:
    """The limit is of cells, not minutes, in past, present and future."""
    room = 1_000 * CELL_BYTES
    snapshot = Snapshot(Position("e", 0), NOW, room=room)
    for seq in range(1, 41):
        moment = NOW + (seq - 20) * MINUTE
        new = [kept(n, model=f"m{n}", decided=moment) for n in range(100)]
        snapshot.apply(delta(seq, *new))
        assert snapshot.size <= room
        assert snapshot.cells <= 1_000
    assert sum(sums.count for sums in snapshot.total.values()) == 4_000


def test_far_future_is_not_held() -> None:
    """It is in the total; the snapshot is loaded again before its time comes."""
    snapshot = Snapshot(Position("e", 0), NOW)
    snapshot.apply(delta(1, *[kept(n, decided=NOW + 4 * HOUR + n * HOUR) for n in range(20)]))
    assert len(snapshot.total) == 1
    assert snapshot.cells == 1


def test_packed_form_says_which_windows_it_covers() -> None:
    """A node takes from another's snapshot the windows for which it has room."""
    snapshot = load(Position("e", 1), NOW, [kept(n, model=f"m{n}") for n in range(50)])
    assert Snapshot.unpack(snapshot.pack()).covered == BOUNDED
    snapshot.cover(("5m", "1h"))
    assert Snapshot.unpack(snapshot.pack()).covered == ("5m", "1h")
    small = Snapshot.unpack(snapshot.pack(), room=60 * CELL_BYTES)
    assert small.total == snapshot.total
    assert small.size <= 60 * CELL_BYTES


def test_form_of_another_version_is_refused() -> None:
    """Its rows may mean something else, so the cache counts as empty."""
    parts: list[Any] = msgpack.decode(load(Position("e", 1), NOW, [kept()]).pack())
    for other in ([*parts[1:3], *parts[4:]], [FORM + 1, *parts[1:]]):
        with pytest.raises(ValueError):
            Snapshot.unpack(msgpack.encode(other))
    with pytest.raises(ValueError):
        Snapshot.unpack(msgpack.encode([*parts[:3], ["2h"], *parts[4:]]))
