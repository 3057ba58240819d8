"""Bounds on distinct names: what is over them folds into `other`, so memory has an end."""

from collections.abc import Iterable
from typing import Final

from routecast.core.decision import Decision
from routecast.core.rollup import Key

OTHER: Final = "other"


class Names:
    """The names seen so far, of each part of a key and of their combinations.

    `limit` bounds the distinct projects, strategies, providers and models, each; `combinations`
    bounds the distinct (project, strategy, provider, model).
    """

    def __init__(self, limit: int, combinations: int) -> None:
        self._limit = limit
        self._combinations = combinations
        self._known: set[tuple[str, str, str, str]] = set()
        self._parts: tuple[set[str], ...] = (set(), set(), set(), set())

    def learn(self, keys: Iterable[Key]) -> None:
        """Take note of names that are stored already; they are never folded."""
        known = self._known
        for key in keys:
            if key[:4] not in known:
                self._remember(key[:4])

    def fold(self, decision: Decision) -> Decision:
        """Return the decision, with names that are over a bound replaced by `other`."""
        names = decision[1:5]
        if names in self._known:
            return decision
        bounded = self._bound(names)
        self._remember(bounded)
        if bounded == names:
            return decision
        project, strategy, provider, model = bounded
        identity = decision.id
        if project != decision.project:
            # Ids are a project's own: those of projects folded together must not meet.
            identity = f"{decision.project}/{identity}"
        return decision._replace(
            id=identity, project=project, strategy=strategy, provider=provider, model=model
        )

    def _bound(self, names: tuple[str, str, str, str]) -> tuple[str, str, str, str]:
        project, strategy, provider, model = (
            name if not name or name in seen or len(seen) < self._limit else OTHER
            for name, seen in zip(names, self._parts, strict=True)
        )
        bounded = (project, strategy, provider, model)
        if bounded in self._known or len(self._known) < self._combinations:
            return bounded
        return (project, OTHER, OTHER, OTHER)

    def _remember(self, names: tuple[str, str, str, str]) -> None:
        self._known.add(names)
        for name, seen in zip(names, self._parts, strict=True):
            seen.add(name)
