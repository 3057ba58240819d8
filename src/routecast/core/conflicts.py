"""Conflicts: decisions whose id is known already, of another decision.

A decision that is sent again is the same as before: the status, the cost and the model that were
sent then. One that is not is lost, since an id counts once; so it is counted apart.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from routecast.core.cardinality import OTHER
from routecast.core.decision import DecisionRecord, identity_of


class Content(NamedTuple):
    """What is compared of a decision: `cost` in nano-dollars, None where it is unknown."""

    status: str
    model: str
    cost: int | None


def content_of(decision: DecisionRecord) -> Content:
    """Return what is compared of a decision."""
    return Content(decision.status, decision.model, decision.cost)


def differs(sent: DecisionRecord, kept: Content) -> bool:
    """Whether a decision is another one than the kept one that has its id.

    A cost that the server found itself is not compared: prices change, and may not be looked up
    while too many new models come. Nor is a model that counts as `other`: which one it was is not
    known.
    """
    if sent.status != kept.status or (sent.cost_sent and sent.cost != kept.cost):
        return True
    return sent.model != kept.model and OTHER not in (sent.model, kept.model)


def count_conflicts(
    batches: Sequence[Iterable[DecisionRecord]],
    stored: Mapping[tuple[str, str], Content],
    full: Collection[tuple[str, str]] = (),
) -> list[int]:
    """Return how many decisions of each batch are in conflict with the one that has their id.

    `stored` has what was known before, by identity; of what was not, the first mention is kept.
    `full` are identities that were not kept at all.
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
