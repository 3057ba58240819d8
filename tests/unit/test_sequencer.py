"""The sequencer: a table of its answers, and each delta is applied once and in order."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routecast.core.delta import Delta
from routecast.core.rollup import Cells
from routecast.core.sequencer import Action, DeltaSequencer, Gap
from routecast.protocol import Position
from tests.support.decisions import NOW, cells_of, kept

APPLY, WAIT, FETCH, RELOAD = Action

GRACE = 0.5
EPOCH = "e"


def delta(seq: int, epoch: str = EPOCH, cells: int = 0) -> Delta:
    """Return a delta of a number of cells."""
    of = [kept(strategy=f"s{number}") for number in range(cells)]
    return Delta(Position(epoch, seq), cells_of(of) if of else Cells({}), NOW)


class Owner:
    """Owns a state, the list of the applied deltas, and does what the sequencer says."""

    def __init__(self, sequencer: DeltaSequencer | None = None) -> None:
        self.sequencer = sequencer or DeltaSequencer(GRACE)
        self.now = 100.0
        self.applied: list[tuple[str, int]] = []
        self.large: Delta | None = None  # what is being applied

    # -- events, each with the answer to it

    def delta(self, seq: int, epoch: str = EPOCH) -> Action:
        """A delta comes, and is applied at once if it may be."""
        action = self.sequencer.receive(found := delta(seq, epoch), self.now)
        if action is APPLY:
            self._apply(found)
        return action

    def large_delta(self, seq: int) -> Action:
        """A delta comes that takes long to apply: `finish` ends that."""
        action = self.sequencer.receive(found := delta(seq), self.now)
        if action is APPLY:
            self.large = found
        return action

    def finish(self, _: object = None) -> Action:
        """The large delta is applied."""
        assert self.large is not None
        large, self.large = self.large, None
        self._apply(large)
        return self.sequencer.next_action(self.now)

    def announce(self, seq: int, epoch: str = EPOCH) -> Action:
        """Another node announces a position."""
        return self.sequencer.announce(Position(epoch, seq), self.now)

    def sleep(self, seconds: float) -> Action:
        """Time passes."""
        self.now += seconds
        return self.sequencer.next_action(self.now)

    def fetch(self, seqs: Sequence[int]) -> Action:
        """The gap's deltas are fetched; [] where the database has none."""
        gap = self.sequencer.gap
        assert gap is not None
        for seq in seqs:
            self.delta(seq)
        if not seqs:
            return self.sequencer.nothing_after(gap, self.now)
        return self.sequencer.fetched(gap, self.now)

    def begin_load(self, _: object = None) -> Action:
        """Loading begins."""
        self.sequencer.begin_load()
        return self.sequencer.next_action(self.now)

    def end_load(self, seq: int, epoch: str = EPOCH) -> Action:
        """A state is loaded."""
        self.applied = [(epoch, number) for number in range(1, seq + 1)]
        following = self.sequencer.loaded(Position(epoch, seq), self.now)
        if following is not None:
            self._apply(following)
        return self.sequencer.next_action(self.now)

    def fail_load(self, _: object = None) -> Action:
        """No state could be loaded."""
        self.sequencer.load_failed()
        return self.sequencer.next_action(self.now)

    def load(self, seq: int, epoch: str = EPOCH) -> Action:
        """A state is loaded, and nothing comes meanwhile."""
        self.begin_load()
        return self.end_load(seq, epoch)

    def crash(self, _: object = None) -> Action:
        """A delta could not be applied as a whole."""
        self.sequencer.forget()
        self.applied, self.large = [], None
        return self.sequencer.next_action(self.now)

    def _apply(self, found: Delta | None) -> None:
        while found is not None:
            self.applied.append((found.position.epoch, found.position.seq))
            found = self.sequencer.applied()

    @property
    def seq(self) -> int | None:
        """How far the state is; None without one."""
        return None if self.sequencer.position is None else self.sequencer.position.seq


# Each step: an event, its argument, the answer to it, and the seq that the state then has.
Step = tuple[str, object, Action, int | None]

TABLE: dict[str, list[Step]] = {
    "deltas in order": [
        ("load", 0, WAIT, 0),
        ("delta", 1, APPLY, 1),
        ("delta", 2, APPLY, 2),
        ("sleep", 60, WAIT, 2),
    ],
    "a delta that comes again is applied once": [
        ("load", 2, WAIT, 2),
        ("delta", 3, APPLY, 3),
        ("delta", 3, WAIT, 3),
        ("delta", 1, WAIT, 3),
        ("sleep", 60, WAIT, 3),
    ],
    "deltas in a wrong order wait for those before them": [
        ("load", 0, WAIT, 0),
        ("delta", 4, WAIT, 0),
        ("delta", 2, WAIT, 0),
        ("delta", 2, WAIT, 0),
        ("delta", 1, APPLY, 2),
        ("delta", 3, APPLY, 4),
        ("sleep", 60, WAIT, 4),
    ],
    "a missing delta is fetched after the grace period": [
        ("load", 0, WAIT, 0),
        ("delta", 2, WAIT, 0),
        ("sleep", 0.4, WAIT, 0),
        ("delta", 3, WAIT, 0),
        ("sleep", 0.1, FETCH, 0),
        ("fetch", [1, 2, 3], WAIT, 3),
        ("delta", 4, APPLY, 4),
    ],
    "a missing delta that comes late is not fetched": [
        ("load", 0, WAIT, 0),
        ("delta", 2, WAIT, 0),
        ("sleep", 0.4, WAIT, 0),
        ("delta", 1, APPLY, 2),
        ("sleep", 0.1, WAIT, 2),
        ("delta", 4, WAIT, 2),  # the grace period begins anew
        ("sleep", 0.4, WAIT, 2),
        ("sleep", 0.1, FETCH, 2),
    ],
    "the last delta is lost, and a position shows it": [
        ("load", 1, WAIT, 1),
        ("announce", 1, WAIT, 1),
        ("announce", 2, WAIT, 1),
        ("sleep", 0.5, FETCH, 1),
        ("fetch", [2], WAIT, 2),
    ],
    "the position of a node that is behind changes nothing": [
        ("load", 5, WAIT, 5),
        ("announce", 6, WAIT, 5),
        ("announce", 3, WAIT, 5),
        ("sleep", 0.5, FETCH, 5),
    ],
    "a position that no commit has is believed no longer": [
        ("load", 5, WAIT, 5),
        ("announce", 9, WAIT, 5),
        ("sleep", 0.5, FETCH, 5),
        ("fetch", [], WAIT, 5),
        ("sleep", 60, WAIT, 5),
        ("announce", 5, WAIT, 5),
        ("announce", 9, WAIT, 5),
    ],
    "what is missing after a fetch has a grace period of its own": [
        ("load", 0, WAIT, 0),
        ("announce", 3, WAIT, 0),
        ("sleep", 0.5, FETCH, 0),
        ("fetch", [1], WAIT, 1),
        ("sleep", 0.5, FETCH, 1),
        ("fetch", [2, 3], WAIT, 3),
    ],
    "a fetch that brings nothing new ends in a load": [
        ("load", 1, WAIT, 1),
        ("delta", 4, WAIT, 1),
        ("sleep", 0.5, FETCH, 1),
        ("fetch", [3, 4], RELOAD, 1),
        ("load", 4, WAIT, 4),
    ],
    "nothing can be applied without a state": [
        ("delta", 1, WAIT, None),
        ("announce", 1, WAIT, None),
        ("sleep", 0, RELOAD, None),
    ],
    "deltas that come while loading are applied to what is loaded": [
        ("begin_load", None, WAIT, None),
        ("delta", 2, WAIT, None),
        ("delta", 3, WAIT, None),
        ("end_load", 1, WAIT, 3),
    ],
    "deltas that are in what is loaded are not applied again": [
        ("begin_load", None, WAIT, None),
        ("delta", 1, WAIT, None),
        ("delta", 2, WAIT, None),
        ("end_load", 2, WAIT, 2),
    ],
    "a gap while loading is known of once it is loaded": [
        ("begin_load", None, WAIT, None),
        ("delta", 2, WAIT, None),
        ("sleep", 60, WAIT, None),
        ("end_load", 0, WAIT, 0),
        ("sleep", 0.5, FETCH, 0),
        ("fetch", [1, 2], WAIT, 2),
    ],
    "a load that failed is asked for again": [
        ("begin_load", None, WAIT, None),
        ("delta", 2, WAIT, None),
        ("fail_load", None, RELOAD, None),
        ("load", 1, WAIT, 2),
    ],
    "a state in step goes on while another one is loaded": [
        ("load", 1, WAIT, 1),
        ("begin_load", None, WAIT, 1),
        ("delta", 3, WAIT, 1),
        ("delta", 2, APPLY, 3),
        ("delta", 4, APPLY, 4),
        ("end_load", 1, WAIT, 4),
        ("delta", 5, APPLY, 5),
    ],
    "a state that is older than the one before it catches up": [
        ("load", 1, WAIT, 1),
        ("delta", 2, APPLY, 2),
        ("load", 1, WAIT, 1),
        ("sleep", 0.5, FETCH, 1),
    ],
    "a renewal that failed leaves what there is": [
        ("load", 1, WAIT, 1),
        ("begin_load", None, WAIT, 1),
        ("delta", 2, APPLY, 2),
        ("fail_load", None, WAIT, 2),
        ("sleep", 60, WAIT, 2),
        ("delta", 3, APPLY, 3),
    ],
    "a delta of another epoch shows at once that the state is of the past": [
        ("load", 5, WAIT, 5),
        ("delta", (6, "new"), RELOAD, 5),
        ("delta", (7, "new"), WAIT, 5),
        ("begin_load", None, WAIT, 5),
        ("end_load", (6, "new"), WAIT, 7),
    ],
    "a position of another epoch has the database asked": [
        ("load", 5, WAIT, 5),
        ("announce", (2, "new"), WAIT, 5),
        ("sleep", 0.5, FETCH, 5),
        ("fetch", [], WAIT, 5),
        ("sleep", 60, WAIT, 5),
    ],
    "deltas of another epoch are not applied to what is loaded": [
        ("begin_load", None, WAIT, None),
        ("delta", (2, "old"), WAIT, None),
        ("end_load", 1, WAIT, 1),
        ("sleep", 60, WAIT, 1),
    ],
    "what comes while a large delta is applied follows it": [
        ("load", 0, WAIT, 0),
        ("large_delta", 1, APPLY, 0),
        ("delta", 1, WAIT, 0),
        ("delta", 2, WAIT, 0),
        ("announce", 3, WAIT, 0),
        ("sleep", 60, WAIT, 0),
        ("delta", 3, WAIT, 0),
        ("finish", None, WAIT, 3),
    ],
    "what is missing after a large delta is fetched": [
        ("load", 0, WAIT, 0),
        ("large_delta", 1, APPLY, 0),
        ("announce", 2, WAIT, 0),
        ("sleep", 60, WAIT, 0),
        ("finish", None, FETCH, 1),
    ],
    "an epoch that ends while a large delta is applied": [
        ("load", 0, WAIT, 0),
        ("large_delta", 1, APPLY, 0),
        ("delta", (2, "new"), RELOAD, 0),
        ("finish", None, RELOAD, 1),
        ("load", (2, "new"), WAIT, 2),
    ],
    "a state that holds a part of a delta is of no use": [
        ("load", 0, WAIT, 0),
        ("large_delta", 1, APPLY, 0),
        ("crash", None, RELOAD, None),
        ("load", 1, WAIT, 1),
    ],
}


@pytest.mark.parametrize("steps", TABLE.values(), ids=TABLE.keys())
def test_table(steps: list[Step]) -> None:
    """Each event has the answer and the next state of the table."""
    owner = Owner()
    for number, (event, argument, answer, seq) in enumerate(steps):
        given = argument if isinstance(argument, tuple) else (argument,)
        found = getattr(owner, event)(*given)
        assert (number, event, found, owner.seq) == (number, event, answer, seq)
    if owner.sequencer.in_step:
        epoch = owner.applied[0][0] if owner.applied else EPOCH
        assert owner.applied == [(epoch, seq) for seq in range(1, (owner.seq or 0) + 1)]


def test_gap_reports_what_is_missing() -> None:
    """The gap is from the state's position to the newest known commit."""
    owner = Owner()
    owner.load(3)
    assert owner.sequencer.gap is None
    owner.announce(5)
    assert owner.sequencer.gap == Gap(Position(EPOCH, 3), 5)
    owner.delta(8)
    assert owner.sequencer.gap == Gap(Position(EPOCH, 3), 8)


def test_a_commit_heard_of_during_a_fetch_is_not_forgotten() -> None:
    """The database did not have it when it was read, but has it now."""
    owner = Owner()
    owner.load(1)
    owner.announce(2)
    owner.sleep(GRACE)
    gap = owner.sequencer.gap
    assert gap is not None
    owner.announce(3)
    assert owner.sequencer.nothing_after(gap, owner.now) is WAIT
    assert owner.sleep(GRACE) is FETCH


def test_position_is_announced_until_others_know_it() -> None:
    """Only a state that is in step announces its position."""
    owner = Owner()
    assert owner.sequencer.unannounced is None
    owner.load(1)
    assert owner.sequencer.unannounced is None  # it was read where others can read it
    owner.delta(2)
    assert owner.sequencer.unannounced == Position(EPOCH, 2)
    owner.announce(2)
    assert owner.sequencer.unannounced is None
    owner.announce(5)
    assert owner.sequencer.unannounced is None
    owner.announce(5, "other")
    assert owner.sequencer.unannounced == Position(EPOCH, 2)
    owner.delta(3, "other")
    assert owner.sequencer.unannounced is None


@pytest.mark.parametrize(
    "sequencer",
    [DeltaSequencer(GRACE, max_early=3), DeltaSequencer(GRACE, max_early_cells=3)],
    ids=["deltas", "cells"],
)
def test_deltas_over_the_limit_are_dropped_and_fetched_later(sequencer: DeltaSequencer) -> None:
    """The limit bounds the memory."""
    owner = Owner(sequencer)
    owner.begin_load()
    for seq in range(1, 9):
        sequencer.receive(delta(seq, cells=1), owner.now)
    assert len(sequencer._early) <= 3
    assert owner.end_load(0) is WAIT
    assert owner.seq == 0
    assert owner.sleep(GRACE) is FETCH
    assert owner.fetch(range(1, 9)) is WAIT
    assert owner.seq == 8


@pytest.mark.parametrize("end", ["end_load", "fail_load"])
def test_deltas_that_no_state_needs_are_not_kept(end: str) -> None:
    """Deltas that came during a load, successful or not, are applied and not kept."""
    owner = Owner()
    owner.load(0)
    owner.begin_load()
    owner.delta(1)
    owner.delta(2)
    assert len(owner.sequencer._early) == 2
    getattr(owner, end)(2)
    assert owner.seq == 2
    assert owner.sequencer._early == {}


# -- whatever happens ---------------------------------------------------------------------------


class World:
    """A database that keeps its last deltas, and a bus that loses, repeats and reorders."""

    KEPT = 6

    def __init__(self) -> None:
        self.owner = Owner(DeltaSequencer(GRACE, max_early=4))
        self.epoch = 0
        self.commits = 0  # of the epoch
        self.read: tuple[int, int] | None = None  # by the load that is running

    def commit(self, _: int) -> None:
        self.commits += 1

    def deliver(self, back: int) -> None:
        """Deliver any delta of this epoch, new ones more often."""
        if self.commits and self.owner.large is None:
            self.owner.delta(max(1, self.commits - back), self._name)

    def deliver_large(self, back: int) -> None:
        """Deliver any delta, which takes long to apply."""
        if self.commits and self.owner.large is None and self.epoch == 0:
            self.owner.large_delta(max(1, self.commits - back))

    def deliver_while_applying(self, back: int) -> None:
        """Deliver any delta, whatever the owner does."""
        seq = max(1, self.commits - back)
        if self.commits:
            self.owner.delta(seq, self._name)

    def deliver_old(self, seq: int) -> None:
        """Deliver a delta of the epoch before, from a node that does not know the new one."""
        if self.epoch and self.owner.large is None:
            self.owner.delta(seq + 1, self._name_of(self.epoch - 1))

    def finish(self, _: int) -> None:
        """The large delta is applied."""
        if self.owner.large is not None:
            self.owner.finish()

    def announce(self, back: int) -> None:
        """A position, of a node that may be behind."""
        self.owner.announce(max(0, self.commits - back), self._name)

    def sleep(self, tenths: int) -> None:
        self.owner.sleep(tenths / 10)

    def begin_load(self, _: int) -> None:
        """The database is read, whether that was asked for or not."""
        if self.read is None:
            self.owner.begin_load()
            self.read = (self.epoch, self.commits)

    def end_load(self, kind: int) -> None:
        """What was read is here; or it is not."""
        if self.read is None or self.owner.large is not None:
            return
        (epoch, seq), self.read = self.read, None
        if kind == 0:
            self.owner.fail_load()
        else:
            self.owner.end_load(seq, self._name_of(epoch))

    def load(self, kind: int) -> None:
        """The database is read, and nothing comes meanwhile."""
        self.begin_load(0)
        self.end_load(kind)

    def fetch(self, _: int) -> None:
        """The owner does what it is asked to do now."""
        owner = self.owner
        if owner.sequencer.next_action(owner.now) is not FETCH:
            return
        gap = owner.sequencer.gap
        assert gap is not None
        if gap.after.epoch != self._name or gap.after.seq < self.commits - self.KEPT:
            owner.sequencer.lose_step()
        else:
            owner.fetch(range(gap.after.seq + 1, self.commits + 1))

    def crash(self, _: int) -> None:
        self.owner.crash()

    def begin_epoch(self, kind: int) -> None:
        """Replace the database at times by one that lacks the last commits."""
        if kind <= 1 and self.owner.large is None:
            self.epoch += 1
            self.commits = max(0, self.commits - kind)

    def heal(self) -> None:
        """Announce the newest position, and do all that is asked for."""
        if self.owner.large is not None:
            self.owner.finish()
        self.end_load(1)
        for _ in range(4):
            self.announce(0)
            self.sleep(10)
            self.fetch(0)
            if self.owner.sequencer.next_action(self.owner.now) is RELOAD:
                self.load(1)

    @property
    def _name(self) -> str:
        return self._name_of(self.epoch)

    def _name_of(self, epoch: int) -> str:
        return EPOCH if epoch == 0 else f"{EPOCH}{epoch}"

    def check(self) -> None:
        """Assert that the state has each delta up to its position once, in order, or is void."""
        sequencer = self.owner.sequencer
        if sequencer.in_step:
            assert sequencer.position is not None
            epoch, seq = sequencer.position.epoch, sequencer.position.seq
            assert self.owner.applied == [(epoch, number) for number in range(1, seq + 1)]


EVENTS = (
    *("commit", "deliver", "commit", "deliver", "deliver_large", "deliver_while_applying"),
    *("deliver_old", "finish", "announce", "sleep", "load", "begin_load", "end_load", "fetch"),
    *("crash", "begin_epoch"),
)
# Small numbers more often: the newest delta, the newest position.
events = st.tuples(st.sampled_from(EVENTS), st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5]))


@settings(max_examples=1_000)
@given(st.lists(events, min_size=10, max_size=60))
def test_every_delta_is_applied_once_and_in_order(happened: list[tuple[str, int]]) -> None:
    """This holds for any losses, repeats, orders and loads."""
    world = World()
    world.load(1)
    for name, number in happened:
        getattr(world, name)(number)
        world.check()
    world.heal()
    world.check()
    assert world.owner.sequencer.position == Position(world._name, world.commits)
    assert world.owner.sequencer.in_step
