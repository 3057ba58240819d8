"""Rotation: a random first item for work that serves many, so that none is always last."""

import random
from collections.abc import Iterable
from typing import TypeVar

Served = TypeVar("Served")


def random_start(count: int) -> int:
    """Return a random index below `count`; 0 if `count` is 0."""
    return random.randrange(count) if count > 1 else 0


def rotated(everyone: Iterable[Served]) -> list[Served]:
    """Return all items in their order, beginning with a random one."""
    served = list(everyone)
    start = random_start(len(served))
    return served[start:] + served[:start]
