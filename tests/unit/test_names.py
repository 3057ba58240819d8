"""Names: bounded whatever comes, and what is known never folds."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from routecast.core.names import OTHER, Names
from routecast.core.rollup import Key
from tests.support.decisions import kept

few = st.sampled_from([*"abcdefgh", OTHER])
parts = st.fixed_dictionaries(
    {"project": few, "strategy": few, "provider": few, "model": few | st.just("")}
)


def named(*names: str) -> dict[str, str]:
    return dict(zip(("project", "strategy", "provider", "model"), names, strict=True))


@given(st.lists(parts, max_size=80), st.integers(1, 5), st.integers(1, 12))
def test_bounds_hold_whatever_comes(sent: list[dict[str, str]], limit: int, series: int) -> None:
    """At most `limit` names of each part and `other`; no model is no name.

    Over the bound of combinations, one more for each project is left.
    """
    names = Names(limit, series)
    folded = [names.fold(kept(n, **one)) for n, one in enumerate(sent)]
    for place in range(1, 5):
        seen = {decision[place] for decision in folded}
        assert len(seen - {OTHER, ""}) <= limit
    assert len({decision[1:5] for decision in folded}) <= series + limit + 1


@given(st.lists(parts, max_size=40), st.lists(parts, max_size=40))
def test_known_names_never_fold(stored: list[dict[str, Any]], sent: list[dict[str, Any]]) -> None:
    """What is stored already, or was let in once, stays what it is, however full it gets."""
    names = Names(3, 5)
    names.learn(Key(*kept(**one)[1:7]) for one in stored)
    let_in = [one for one in sent if names.fold(kept(**one)) == kept(**one)]
    for one in (*stored, *let_in):
        decision = kept(**one)
        assert names.fold(decision) is decision


@given(st.lists(parts, max_size=40))
def test_folding_changes_names_and_nothing_else(sent: list[dict[str, str]]) -> None:
    """A decision counts as much under `other`; the name it had is gone, never another's."""
    names = Names(2, 4)
    for number, one in enumerate(sent):
        before = kept(number, **one)
        after = names.fold(before)
        for name, old, new in zip(before._fields, before, after, strict=True):
            if name == "id" and after.project != before.project:
                assert new == f"{before.project}/{old}"
            else:
                assert new == old or (name in one and new == OTHER)


def test_name_over_the_limit_folds_alone() -> None:
    """The parts that are within their bounds keep their names."""
    names = Names(1, 100)
    names.fold(kept(1, **named("p", "s", "v", "m")))
    folded: Any = names.fold(kept(2, **named("p", "s", "new", "m")))
    assert folded[1:5] == ("p", "s", OTHER, "m")


def test_ids_of_projects_that_fold_together_do_not_meet() -> None:
    """An id is its project's own, whatever the project is counted under."""
    names = Names(1, 100)
    names.fold(kept(1, project="first"))
    folded = [names.fold(kept(1, project=project)) for project in ("second", "third")]
    assert [decision.project for decision in folded] == [OTHER, OTHER]
    assert len({decision.id for decision in folded}) == 2


def test_combination_over_the_limit_folds_within_its_project() -> None:
    """Whose it is stays known."""
    names = Names(100, 1)
    names.fold(kept(1, **named("p", "s", "v", "m")))
    folded = names.fold(kept(2, **named("p", "s", "v", "n")))
    assert folded[1:5] == ("p", OTHER, OTHER, OTHER)


def test_no_model_is_never_folded() -> None:
    """Unknown is not `other`."""
    names = Names(1, 100)
    names.fold(kept(1, **named("p", "s", "v", "m")))
    assert names.fold(kept(2, **named("p", "s", "v", ""))).model == ""
