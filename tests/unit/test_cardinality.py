"""Limits of names: they always hold, and a committed name keeps its place."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from routecast.core.cardinality import (
    COMBINATION,
    NAMED,
    OTHER,
    CardinalityLimiter,
    Reserved,
    fold_names,
)
from routecast.core.decision import DecisionRecord, identity_of
from routecast.core.rollup import Key
from tests.support.decisions import kept

LIMIT, COMBINATIONS, PER_PROJECT = 3, 6, 4

few = st.sampled_from([*"abcdefgh", OTHER])
parts = st.fixed_dictionaries(
    {"project": few, "strategy": few, "provider": few, "model": few | st.just("")}
)
batches = st.lists(parts, min_size=1, max_size=12)


def named(*names: str) -> dict[str, str]:
    return dict(zip(NAMED, names, strict=True))


def counted(names: CardinalityLimiter, *sent: dict[str, str]) -> list[DecisionRecord]:
    """Return decisions with the names under which they count; their commit is still to come."""
    return names.reserve([kept(n, **one) for n, one in enumerate(sent)])[0]


def committed(names: CardinalityLimiter, *sent: dict[str, str]) -> list[DecisionRecord]:
    """Return decisions with the names under which they count, after their commit."""
    decisions, reserved = names.reserve([kept(n, **one) for n, one in enumerate(sent)])
    names.learn(key(one) for one in decisions)
    names.release(reserved)
    return decisions


def key(decision: DecisionRecord) -> Key:
    return Key(*decision[1:7])


class Traffic(RuleBasedStateMachine):
    """Batches that wait, and commits that succeed, fail, or store nothing new."""

    def __init__(self) -> None:
        super().__init__()
        self.names = CardinalityLimiter(LIMIT, COMBINATIONS, per_project=PER_PROJECT)
        self.waiting: list[tuple[list[DecisionRecord], Reserved]] = []
        self.stored: set[Key] = set()
        self.folded: dict[str, set[str]] = {}
        self.slack = 0  # waiting combinations that a fold renamed

    @rule(sent=batches)
    def submit(self, sent: list[dict[str, str]]) -> None:
        """A batch waits for its commit."""
        decisions, reserved = self.names.reserve([kept(**one) for one in sent])
        self.waiting.append((fold_names(decisions, self.folded), reserved))

    @rule(which=st.integers(0, 100), new=st.integers(0, 12))
    def commit(self, which: int, new: int) -> None:
        """A commit ends that stored the first `new` decisions of a batch; none if it failed."""
        if not self.waiting:
            return
        decisions, reserved = self.waiting.pop(which % len(self.waiting))
        keys = {key(one) for one in decisions[:new]}
        self.stored |= keys
        self.names.learn(keys)
        self.names.release(reserved)

    @rule(part=st.sampled_from(NAMED), name=st.sampled_from([*"abcdefgh"]), remember=st.booleans())
    def fold(self, part: str, name: str, *, remember: bool) -> None:
        """An operator folds a name while batches wait, and the store folds it in all of them."""
        folded = {part: {name}}
        self.stored = {
            key(one) for one in fold_names([kept(**k._asdict()) for k in self.stored], folded)
        }
        self.folded = folded if remember else {}
        self.names.renew(self.stored, self.folded)
        self.waiting = [(fold_names(batch, folded), held) for batch, held in self.waiting]
        self.slack += len({one[1:5] for batch, _ in self.waiting for one in batch})

    @invariant()
    def limits_hold(self) -> None:
        """Committed and waiting names together are within the limits."""
        keys = {*self.stored, *(key(one) for batch, _ in self.waiting for one in batch)}
        for place in range(len(NAMED)):
            assert len({one[place] for one in keys} - {OTHER, ""}) <= LIMIT
        combinations = {one[:4] for one in keys if one[1:4] != (OTHER,) * 3}
        assert len(combinations) <= COMBINATIONS + self.slack
        by_project = Counter(project for project, *_ in combinations)
        assert all(count <= PER_PROJECT + self.slack for count in by_project.values())

    @invariant()
    def only_committed_names_are_counted(self) -> None:
        """Names that only wait are not counted."""
        for place, part in enumerate(NAMED):
            assert self.names.used(part) == len({one[place] for one in self.stored} - {OTHER, ""})

    def teardown(self) -> None:
        """When no batch waits, all room that committed names do not need is free."""
        for _, reserved in self.waiting:
            self.names.release(reserved)
        fresh = CardinalityLimiter(LIMIT, COMBINATIONS, per_project=PER_PROJECT)
        fresh.learn(self.stored)
        sent = [named(*letters) for letters in zip("abcd", "efgh", "badc", "hgfe", strict=True)]
        self.names.renew(self.stored, {})
        assert counted(self.names, *sent) == counted(fresh, *sent)


def test_limits_hold_in_any_order_of_events() -> None:
    """Events are submits, commits, failures and folds."""
    run_state_machine_as_test(
        Traffic, settings=settings(max_examples=20, stateful_step_count=20, deadline=None)
    )


@given(st.lists(parts, max_size=40), st.lists(parts, max_size=40))
def test_committed_names_are_never_replaced(
    stored: list[dict[str, Any]], sent: list[dict[str, Any]]
) -> None:
    """A stored name stays although its limit is reached."""
    names = CardinalityLimiter(3, 5)
    names.learn(key(kept(**one)) for one in stored)
    let_in = [one for one in sent if committed(names, one)[0] == kept(0, **one)]
    for one in (*stored, *let_in):
        decision = kept(**one)
        assert names.reserve([decision])[0][0] is decision


@given(batches)
def test_only_names_are_replaced(sent: list[dict[str, str]]) -> None:
    """A decision under `other` has the same numbers, id and owner as before."""
    for number, after in enumerate(counted(CardinalityLimiter(2, 4), *sent)):
        before = kept(number, **sent[number])
        assert identity_of(after) == identity_of(before) == (f"d{number}", before.project)
        for name, old, new in zip(before._fields, before, after, strict=True):
            assert new == old or (name in NAMED and new == OTHER)


def test_name_over_the_limit_is_replaced_alone() -> None:
    """Parts within their limits keep their names."""
    names = CardinalityLimiter(1, 100)
    sent = named("p", "s", "v", "m"), named("p", "s", "new", "m")
    assert counted(names, *sent)[1][1:5] == ("p", "s", OTHER, "m")


def test_combination_over_the_limit_is_replaced_within_its_project() -> None:
    """The decision keeps its project."""
    names = CardinalityLimiter(100, 1)
    sent = named("p", "s", "v", "m"), named("p", "s", "v", "n")
    assert counted(names, *sent)[1][1:5] == ("p", OTHER, OTHER, OTHER)


def test_a_project_cannot_use_the_room_of_another() -> None:
    """Its further combinations count as `other`, within its limit and within that of all."""
    told: list[str] = []
    names = CardinalityLimiter(100, 100, per_project=3, on_full_project=told.append)
    sent = [named("ann", "s", "v", f"m{n}") for n in range(10)]
    others = [named("bob", "s", "v", f"n{n}") for n in range(3)]
    found = committed(names, *sent, *others)
    assert [one[1:5] for one in found] == [
        *(("ann", "s", "v", f"m{n}") for n in range(3)),
        *[("ann", OTHER, OTHER, OTHER)] * 7,
        *(("bob", "s", "v", f"n{n}") for n in range(3)),
    ]
    assert sorted(told) == ["ann", "bob"]
    assert counted(names, named("bob", "s", "v", "n0"))[0].model == "n0"
    names.renew([], {})
    assert counted(names, named("ann", "s", "v", "m9"))[0].model == "m9"


def test_an_unknown_model_is_never_replaced() -> None:
    """Unknown is not `other`, and takes no room."""
    names = CardinalityLimiter(1, 100)
    first, second = counted(names, named("p", "s", "v", ""), named("p", "s", "v", "m"))
    assert (first.model, second.model) == ("", "m")


def test_other_takes_no_room() -> None:
    """A decision whose name is `other` does not count towards the limit."""
    names = CardinalityLimiter(1, 100)
    assert committed(names, named("p", OTHER, "v", ""), named("p", "s", "v", ""))[1].strategy == "s"
    assert names.used("strategy") == 1


def test_names_that_were_not_stored_take_no_room() -> None:
    """A batch of duplicates, and one whose commit failed, free their room."""
    names = CardinalityLimiter(1, 100)
    _, reserved = names.reserve([kept(strategy="spent")])
    assert counted(names, {"strategy": "meanwhile"})[0].strategy == OTHER
    names.release(reserved)
    assert committed(names, {"strategy": "true"})[0].strategy == "true"


def test_folded_names_take_no_room() -> None:
    """The store replaces folded names, because it knows at once when a fold is undone."""
    names = CardinalityLimiter(1, 1)
    names.renew([], {"model": {"old"}})
    found = counted(names, {"model": "old"}, {"model": "m"}, {"model": "n"})
    assert [one[1:5] for one in found] == [
        ("default", "hybrid", "gemini", "old"),
        ("default", OTHER, OTHER, OTHER),
        ("default", OTHER, OTHER, OTHER),
    ]
    names = CardinalityLimiter(1, 100)
    names.renew([], {"model": {"old"}})
    found = counted(names, {"model": "old"}, {"model": "m"}, {"model": "n"})
    assert [one.model for one in found] == ["old", "m", OTHER]


def test_reaching_a_limit_is_reported_once() -> None:
    """It is reported for each part, again only after a `renew`; waiting names do not count."""
    told: list[str] = []
    names = CardinalityLimiter(2, 3, told.append)
    _, reserved = names.reserve([kept(model="a"), kept(model="b")])
    assert (told, names.full) == ([], {})
    names.learn([key(kept(model="a")), key(kept(model="b"))])
    names.release(reserved)
    assert (told, names.full) == (["model"], {"model": 2})
    names.learn([key(kept(model=""))])
    assert (told, names.full) == (["model", COMBINATION], {"model": 2, COMBINATION: 3})
    names.renew([], {})
    assert names.full == {}
    names.learn([key(kept(model="a")), key(kept(model="b"))])
    assert told == ["model", COMBINATION, "model"]


@pytest.mark.parametrize("part", NAMED)
def test_operators_fold_one_part(part: str) -> None:
    """The other parts, the id and the owner stay."""
    decision = kept(1)
    (folded,) = fold_names([decision], {part: {getattr(decision, part)}})
    assert folded == decision._replace(**{part: OTHER})
    assert fold_names([decision], {part: {"another"}}) == [decision]
