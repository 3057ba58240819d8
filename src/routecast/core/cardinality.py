"""Limits on distinct names: names over a limit count as `other`, so memory has a bound.

A name counts towards its limit once a decision with it is committed. From the acceptance of a
decision until the outcome of its commit is known, its new names are reserved. So the limits hold,
however many decisions wait, and a commit that fails or stores nothing new uses no room.
"""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence, Set
from operator import itemgetter
from typing import Final, Generic, TypeVar

from routecast.core.decision import DecisionRecord, fields_between
from routecast.core.rollup import Key

T = TypeVar("T", bound=Hashable)

OTHER: Final = "other"
# The parts of a key that producers name, in the order of `DecisionRecord` and `Key`.
NAMED: Final = ("project", "strategy", "provider", "model")
COMBINATION: Final = "combination"

# The names of a decision.
Combination = tuple[str, str, str, str]
# Names that an operator folded into `other`, by part.
FoldedNames = Mapping[str, Collection[str]]
# New combinations of names in decisions that wait for a commit.
Reserved = Set[Combination]

# The names of a decision, and of a key.
_names_of: Final[Callable[[DecisionRecord], Combination]] = itemgetter(
    fields_between(NAMED[0], NAMED[-1])
)
_names_of_key: Final[Callable[[Key], Combination]] = itemgetter(slice(len(NAMED)))

_FREE: Final = frozenset((OTHER, ""))  # they need no room: `other` itself, and no name


def fold_names(decisions: Iterable[DecisionRecord], folded: FoldedNames) -> list[DecisionRecord]:
    """Return decisions with names that an operator folded replaced by `other`."""
    by_part = [folded.get(part, ()) for part in NAMED]
    return [_folded(decision, by_part) for decision in decisions]


def _folded(decision: DecisionRecord, folded: Iterable[Collection[str]]) -> DecisionRecord:
    pairs = zip(_names_of(decision), folded, strict=True)
    project, strategy, provider, model = (OTHER if name in gone else name for name, gone in pairs)
    return _named(decision, (project, strategy, provider, model))


def _named(decision: DecisionRecord, names: Combination) -> DecisionRecord:
    if _names_of(decision) == names:
        return decision
    project, strategy, provider, model = names
    return decision._replace(project=project, strategy=strategy, provider=provider, model=model)


class _Limited(Generic[T]):
    """Distinct values: the committed ones, and those reserved for running commits."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.committed: set[T] = set()
        self._reserved: Counter[T] = Counter()
        self._new: set[T] = set()  # reserved and not committed

    def admits(self, value: T) -> bool:
        """Whether a value is known already, or there is room for it."""
        if value in self.committed or value in self._new:
            return True
        return len(self.committed) + len(self._new) < self.limit

    @property
    def is_full(self) -> bool:
        """Whether the committed values alone leave no room."""
        return len(self.committed) >= self.limit

    def commit(self, value: T) -> None:
        self.committed.add(value)
        self._new.discard(value)

    def reserve(self, value: T) -> None:
        self._reserved[value] += 1
        if value not in self.committed:
            self._new.add(value)

    def release(self, value: T) -> None:
        self._reserved[value] -= 1
        if not self._reserved[value]:
            del self._reserved[value]
            self._new.discard(value)

    def clear(self) -> None:
        """Forget the committed values, but not the reserved ones."""
        self.committed.clear()
        self._new.update(self._reserved)


class CardinalityLimiter:
    """The names in use: of each part of a key, and of their combinations.

    `limit` is the maximum number of distinct names of each part (project, strategy, provider,
    model), besides `other`. `combinations` is the maximum number of distinct combinations of them,
    and `per_project` of those of one project; None is no limit. `on_full` is called with a part of
    `NAMED`, or COMBINATION, when committed names reach its limit; `on_full_project` is called with
    a project.
    """

    def __init__(
        self,
        limit: int,
        combinations: int,
        on_full: Callable[[str], None] = lambda _: None,
        *,
        per_project: int | None = None,
        on_full_project: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._parts: tuple[_Limited[str], ...] = tuple(_Limited(limit) for _ in NAMED)
        self._combinations: _Limited[Combination] = _Limited(combinations)
        self._limits: dict[str, _Limited[str] | _Limited[Combination]] = {
            **dict(zip(NAMED, self._parts, strict=True)),
            COMBINATION: self._combinations,
        }
        self._per_project = per_project
        self._projects: dict[str, _Limited[Combination]] = {}  # the combinations of each
        self._folded: tuple[frozenset[str], ...] = (frozenset(),) * len(NAMED)
        self._on_full = on_full
        self._on_full_project = on_full_project
        self._reported: set[str] = set()
        self._reported_projects: set[str] = set()

    # -- use of the limits ----------------------------------------------------------------------

    @property
    def limits(self) -> dict[str, int]:
        """The limit of each part of `NAMED`, and of COMBINATION."""
        return {part: limited.limit for part, limited in self._limits.items()}

    @property
    def full(self) -> dict[str, int]:
        """The limits that committed names have reached: new names there count as `other`."""
        return {part: found.limit for part, found in self._limits.items() if found.is_full}

    def used(self, part: str) -> int:
        """Return the number of committed names of a part of `NAMED`, or of COMBINATION."""
        return len(self._limits[part].committed)

    # -- committed names ------------------------------------------------------------------------

    def learn(self, keys: Iterable[Key]) -> None:
        """Record committed names; they are never replaced."""
        known = self._combinations.committed
        for key in keys:
            names = _names_of_key(key)
            if names not in known:
                self._combinations.commit(names)
                for name, part in zip(names, self._parts, strict=True):
                    if name not in _FREE:
                        part.commit(name)
                if (project := self._limited_project(names)) is not None:
                    project.commit(names)
                    self._report_full_project(names[0], project)
        self._report_full()

    def renew(self, keys: Iterable[Key], folded: FoldedNames) -> None:
        """Replace all committed names by those of these keys, and the names that were folded."""
        for limited in (*self._limits.values(), *self._projects.values()):
            limited.clear()
        self._folded = tuple(frozenset(folded.get(part, ())) for part in NAMED)
        self.learn(keys)

    def _report_full(self) -> None:
        full = self.full.keys()
        for part in full - self._reported:
            self._on_full(part)
        self._reported = set(full)

    def _report_full_project(self, name: str, project: _Limited[Combination]) -> None:
        if project.is_full and name not in self._reported_projects:
            self._reported_projects.add(name)
            self._on_full_project(name)

    def _limited_project(self, names: Combination) -> _Limited[Combination] | None:
        """Return the combinations of the project of these names; None if it has no limit."""
        if self._per_project is None:
            return None
        project = self._projects.get(names[0])
        if project is None:
            project = self._projects[names[0]] = _Limited(self._per_project)
        return project

    # -- reserved names -------------------------------------------------------------------------

    def reserve(
        self, decisions: Sequence[DecisionRecord], held: Reserved = frozenset()
    ) -> tuple[list[DecisionRecord], Reserved]:
        """Return decisions with names over a limit replaced by `other`, and what was reserved.

        Call `release` with the second value once the outcome of their commit is known, after
        `learn` if they were committed. `held` are the names that were reserved earlier for
        decisions of the same commit.
        """
        known = self._combinations.committed
        bounded: dict[Combination, tuple[Combination, Combination]] = {}
        reserved: set[Combination] = set()
        counted = []
        for decision in decisions:
            names = _names_of(decision)
            if names not in known:
                found = bounded.get(names)
                if found is None:
                    found = bounded[names] = self._bound(names)
                    new = found[1]
                    if new not in known and new not in held and new not in reserved:
                        reserved.add(new)
                        self._reserve(new)
                counted.append(_named(decision, found[0]))
            else:
                counted.append(decision)
        return counted, reserved

    def release(self, reserved: Reserved) -> None:
        """Release what `reserve` reserved."""
        for names in reserved:
            self._combinations.release(names)
            if (project := self._limited_project(names)) is not None:
                project.release(names)
            for name, part in zip(names, self._parts, strict=True):
                if name not in _FREE:
                    part.release(name)

    def _reserve(self, names: Combination) -> None:
        self._combinations.reserve(names)
        if (project := self._limited_project(names)) is not None:
            project.reserve(names)
        for name, part in zip(names, self._parts, strict=True):
            if name not in _FREE:
                part.reserve(name)

    def _bound(self, names: Combination) -> tuple[Combination, Combination]:
        """Return names within the limits, and the names that a commit will count them as.

        The first ones keep folded names: the store replaces them with `other`, unless an operator
        stopped folding them a moment ago. In the second ones they are `other`, which needs no room.
        """
        project, strategy, provider, model = (
            name if name in _FREE or (name not in folded and part.admits(name)) else OTHER
            for name, folded, part in zip(names, self._folded, self._parts, strict=True)
        )
        counted = (project, strategy, provider, model)
        limits = (self._combinations, self._limited_project(counted))
        if not all(limit is None or limit.admits(counted) for limit in limits):
            counted = (project, OTHER, OTHER, OTHER)
        project, strategy, provider, model = (
            name if name in folded else found
            for name, found, folded in zip(names, counted, self._folded, strict=True)
        )
        return (project, strategy, provider, model), counted
