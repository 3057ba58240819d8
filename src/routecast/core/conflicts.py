"""Conflicts: decisions with the id of another decision.

A decision that is sent again has the same status, cost and model as before. One that has not is
lost, because an id counts once; so it is counted separately.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from routecast.core.cardinality import OTHER
from routecast.core.decision import DecisionRecord, identity_of


class Content(NamedTuple):
    """The compared values of a decision: `cost` in nano-dollars, None if it is unknown."""

    status: str
    model: str
    cost: int | None


def content_of(decision: DecisionRecord) -> Content:
    """Return the compared values of a decision."""
    return Content(decision.status, decision.model, decision.cost)


def differs(sent: DecisionRecord, kept: Content) -> bool:
    """Whether a decision differs from the stored one that has its id.

    A cost that the server looked up is not compared: prices change, and are not looked up while too
    many new models come. A model that counts as `other` is not compared either: its name is
    unknown.
    """
    if sent.status != kept.status or (sent.cost_sent and sent.cost != kept.cost):
        return True
    return sent.model != kept.model and OTHER not in (sent.model, kept.model)


def count_conflicts(
    batches: Sequence[Iterable[DecisionRecord]],
    stored: Mapping[tuple[str, str], Content],
    full: Collection[tuple[str, str]] = (),
) -> list[int]:
    """Return how many decisions of each batch conflict with the one that has their id.

    `stored` are the decisions known before, by identity; of the others, the first one in the
    batches counts. `full` are identities that were not stored at all.
    """
    kept = dict(stored)
    counts = []
    for batch in batches:
        found = 0
        for decision in batch:
            identity = identity_of(decision)
            known = kept.get(identity)
            if known is None:
                kept[identity] = content_of(decision)
            elif identity not in full and differs(decision, known):
                found += 1
        counts.append(found)
    return counts
