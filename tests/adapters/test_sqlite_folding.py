"""Folding in SQLite: the sums of series near their limit are exact at any moment."""

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.adapters.store.sqlite import deltas, folding
from routecast.adapters.store.sqlite.commit import commit, exact_totals
from routecast.adapters.store.sqlite.writer import Writer
from routecast.core.rollup import Key
from tests.support.decisions import NOW, kept

NAMES = ["a", "b", "c"]

actions = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.lists(st.sampled_from(NAMES), min_size=1, max_size=9)),
        st.tuples(st.just("fold"), st.just([])),
        st.tuples(st.just("forget"), st.just([])),
        st.tuples(st.just("ask"), st.lists(st.sampled_from(NAMES), min_size=1, unique=True)),
    ),
    max_size=25,
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parts of 2 cells, of which few are remembered and others are read again."""
    monkeypatch.setattr(deltas, "PART_CELLS", 2)
    monkeypatch.setattr(folding, "STEP_CELLS", 2)
    monkeypatch.setattr(folding, "REMEMBERED_CELLS", 3)


@given(actions)
def test_exact_totals_include_all_commits(steps: list[tuple[str, list[str]]]) -> None:
    """Any part may be folded, and totals may be asked for at any time."""
    costs: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        writer = Writer(Path(place) / "routecast.db", create=True)
        writer.open()
        number = 0
        for action, names in steps:
            if action == "commit":
                sent = [kept(number + n, strategy=name) for n, name in enumerate(names)]
                number += len(sent)
                commit(writer, [sent], NOW)
                costs.update(dict.fromkeys(names, 0))
                for one in sent:
                    costs[one.strategy] += one.cost or 0
            elif action == "fold":
                writer.fold()
            elif action == "forget":
                writer.forget()
            else:
                keys = {Key(*kept(strategy=name)[1:7]) for name in names}
                totals = exact_totals(writer, keys)
                assert {key.strategy: totals[key].cost_sum for key in keys} == {
                    name: costs[name] for name in names
                }
        writer.close()
