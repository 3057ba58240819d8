"""Breakdowns: their sums follow a snapshot, step by step, and stay equal to it."""

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routecast.core import breakdown
from routecast.core.breakdown import Breakdown, Breakdowns, break_down
from routecast.core.metrics import Baseline, document
from routecast.core.snapshot import COVERAGE, HOUR, Snapshot
from routecast.core.view import FILTERS as VIEW_FILTERS
from routecast.core.view import Selection, View
from routecast.errors import NotHeld
from routecast.protocol import FIELDS, WINDOWS, Position
from tests.support.commit_history import CommitHistory
from tests.support.decisions import DAY, MINUTE, NOW, sent_decisions
from tests.support.oracle import ALL_FIELDS, Prices, assert_agree, expect

FILTERS: list[dict[str, frozenset[str]]] = [
    {},
    {"strategy": frozenset({"hybrid", "nobody's"})},
    {"provider": frozenset({"gemini", "claude"}), "model": frozenset({"flash"})},
    {"project": frozenset({"search"})},
    {"project": frozenset({"default", "chat", "nobody's"}), "strategy": frozenset({"hybrid"})},
]
VIEWS = [View(FIELDS, window=window, **chosen) for window in WINDOWS for chosen in FILTERS]
PROJECT_VIEWS = [view for view in VIEWS if view.project and view.window in ("all", "5m")]
BASELINE = Baseline("big", 3 * 10**9, 15 * 10**9)

offsets = st.one_of(
    st.sampled_from([0, -5, -6, -59, -60, -61]).map(lambda minutes: minutes * MINUTE),
    st.sampled_from([-23, -24, -25, -167, -168, -169]).map(lambda hours: hours * HOUR),
    st.integers(-2 * HOUR, 5 * MINUTE),
    st.integers(-8 * DAY, DAY),
)
of_projects = st.builds(
    lambda sent, project: {**sent, "project": project},
    sent_decisions(offsets),
    st.sampled_from(["default", "search", "chat", "ads"]),
)
script = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.lists(of_projects, min_size=1, max_size=6)),
        st.tuples(st.just("tick"), st.sampled_from([-MINUTE, 1, MINUTE, 6 * MINUTE, HOUR])),
        st.tuples(st.just("step"), st.tuples(st.sampled_from(VIEWS), st.integers(1, 4))),
        st.tuples(st.just("load"), st.booleans()),
    ),
    min_size=6,
    max_size=25,
)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakdown, "CELLS_PER_STEP", 1)


def finished(held: Breakdowns, snapshot: Snapshot, selection: Selection, now: int) -> Breakdown:
    while True:
        made = held.ready(snapshot, selection, now, steps=3)
        if made is not None:
            return made


def check(history: CommitHistory, held: Breakdowns, view: View) -> None:
    """Assert that a view's document is what the oracle counts."""
    made = [finished(held, history.snapshot, each, history.now) for each in view.selections]
    filters = {name: getattr(view, name) for name in VIEW_FILTERS}
    assert_agree(
        document(view, made, history.now, BASELINE),
        expect(
            history.facts,
            now=history.now,
            fields=ALL_FIELDS,
            filters={name: names for name, names in filters.items() if names is not None},
            window=view.window,
            baseline=Prices("big", 3, 15),
        ),
    )


@settings(max_examples=200)
@given(start=st.integers(0, HOUR), actions=script)
def test_every_view_equals_a_count_whatever_happens_between_two_steps(
    start: int, actions: list[tuple[str, Any]]
) -> None:
    """It holds with commits, ticks and reloads between steps, also without the memory of before."""
    history, held = CommitHistory(NOW + start), Breakdowns()
    for action, given_ in actions:
        if action == "commit":
            history.commit(given_)
        elif action == "tick":
            history.now = max(history.now + given_, history.snapshot.taken - MINUTE)
            if history.now - history.snapshot.taken >= COVERAGE:
                history.reload()
        elif action == "step":
            view, steps = given_
            for selection in view.selections:
                held.ready(history.snapshot, selection, history.now, steps)
        else:
            before = history.snapshot
            history.reload()
            if given_:
                history.snapshot.continues(before)
    for view in VIEWS:
        check(history, held, view)


@settings(max_examples=100)
@given(
    commits=st.lists(
        st.tuples(
            st.lists(of_projects, min_size=1, max_size=12),
            st.lists(st.tuples(st.sampled_from(PROJECT_VIEWS), st.integers(1, 9)), max_size=4),
        ),
        max_size=8,
    )
)
def test_views_of_projects_follow_commits_of_mixed_projects(commits: list[Any]) -> None:
    """Each counts all decisions of its own projects, wherever the others are in their steps."""
    history, held = CommitHistory(), Breakdowns()
    for view in PROJECT_VIEWS:
        check(history, held, view)
    for sent, turns in commits:
        history.commit(sent)
        for view, steps in turns:
            for selection in view.selections:
                held.ready(history.snapshot, selection, history.now, steps)
    for view in PROJECT_VIEWS:
        check(history, held, view)


def test_a_commit_costs_what_it_added() -> None:
    """An up-to-date breakdown reads only the cells of new commits."""
    history = CommitHistory()
    history.commit([{"strategy": f"s{n}", "provider": "p", "timestamp": 0} for n in range(50)])
    held, selection = Breakdowns(), Selection(None)
    assert held.ready(history.snapshot, selection, NOW, steps=40) is None
    assert finished(held, history.snapshot, selection, NOW).total.count == 50
    history.commit([{"strategy": "s1", "provider": "p", "timestamp": 0}])
    made = held.ready(history.snapshot, selection, NOW, steps=2)
    assert made is not None
    assert made.total.count == 51


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([{"strategy": f"x{n}", "timestamp": 0} for n in range(100)], id="series"),
        pytest.param(
            [{"strategy": "s", "timestamp": -HOUR - n * MINUTE} for n in range(100)], id="minutes"
        ),
    ],
)
def test_a_large_commit_is_looked_at_in_steps(others: list[dict[str, Any]]) -> None:
    """Reading cells and minutes takes time also if none of them counts."""
    history, held = CommitHistory(), Breakdowns()
    history.commit([{"strategy": "s", "provider": "p", "timestamp": 0}])
    (selection,) = View(("total_decisions",), window="5m", strategy=frozenset({"s"})).selections
    assert finished(held, history.snapshot, selection, NOW).total.count == 1
    history.commit([{**one, "provider": "p"} for one in others])
    assert held.ready(history.snapshot, selection, NOW, steps=90) is None
    assert finished(held, history.snapshot, selection, NOW).total.count == 1


def test_a_view_of_a_project_reads_its_own_cells() -> None:
    """The cells of a commit are sorted by project once, however many views there are."""
    history, held = CommitHistory(), Breakdowns()
    everyone = [{"strategy": "s", "provider": "p", "project": f"p{n}"} for n in range(100)]
    history.commit([{**one, "timestamp": 0} for one in everyone])
    views = [View(project=frozenset({f"p{n}", "p0"})) for n in range(1, 5)]
    selections = [view.selections[0] for view in views]
    for selection in selections:
        assert finished(held, history.snapshot, selection, NOW).total.count == 2
    history.commit([{**one, "timestamp": 0} for one in everyone])
    # They take turns to sort: one goes on where another one stopped.
    assert held.ready(history.snapshot, selections[0], NOW, steps=40) is None
    assert held.ready(history.snapshot, selections[1], NOW, steps=40) is None
    for selection in (*selections[2:], *selections[:2]):
        made = held.ready(history.snapshot, selection, NOW, steps=24)
        assert made is not None
        assert made.total.count == 4


def test_a_minute_costs_what_entered_and_left() -> None:
    """A window that moves by a minute does not add up its other minutes again."""
    history = CommitHistory()
    for minute in range(-60, 1):
        history.commit([{"strategy": "s", "provider": "p", "timestamp": minute * MINUTE}])
    held, selection = Breakdowns(), Selection(60)
    assert finished(held, history.snapshot, selection, NOW).total.count == 61
    made = held.ready(history.snapshot, selection, NOW + MINUTE, steps=3)
    assert made is not None
    assert made.total.count == 60


def test_a_breakdown_takes_no_memory_for_the_keys_it_has_read() -> None:
    """Its memory depends on its sums, which are few here, and not on the number of keys."""
    history = CommitHistory()
    same = {"strategy": "s", "provider": "p", "timestamp": 0}
    history.commit([{**same, "project": f"p{n}"} for n in range(1_000)])
    made = finished(Breakdowns(), history.snapshot, Selection(None), NOW)
    assert made.total.count == 1_000
    assert sum(sys.getsizeof(getattr(made, name)) for name in made.__slots__) < 4_096


def test_a_window_that_the_snapshot_lacks_is_refused() -> None:
    """A window whose minutes are not held raises `NotHeld`; the total needs no minutes."""
    snapshot, held = Snapshot(Position("e", 0), NOW), Breakdowns()
    late = NOW + COVERAGE
    with pytest.raises(NotHeld):
        held.ready(snapshot, Selection(5), late)
    assert held.ready(snapshot, Selection(None), late) is not None


def test_the_least_recently_used_breakdown_is_dropped() -> None:
    """All breakdowns together hold at most `max_sums` sums."""
    history = CommitHistory()
    history.commit([{"strategy": f"s{n}", "provider": "p", "timestamp": 0} for n in range(10)])
    held = Breakdowns(max_sums=30)
    for length in (None, 5, 60):
        finished(held, history.snapshot, Selection(length), NOW)
    assert held.ready(history.snapshot, Selection(60), NOW, steps=1) is not None
    assert held.ready(history.snapshot, Selection(None), NOW, steps=1) is None


def test_empty_names_leave_a_window() -> None:
    """A name whose count falls to 0 is dropped, and not shown with a 0."""
    history, selection = CommitHistory(), Selection(5)
    history.commit([{"strategy": "s", "provider": "p", "model": "m", "timestamp": -5 * MINUTE}])
    held = Breakdowns()
    assert finished(held, history.snapshot, selection, NOW).strategies
    made = finished(held, history.snapshot, selection, NOW + MINUTE)
    parts = (made.strategies, made.models, made.providers, made.bands, made.statuses)
    assert parts == ({}, {}, {}, {}, {})
    assert made.total == break_down(Snapshot(Position("e", 0), NOW), selection, NOW).total
