"""Turns: with whom a tick begins, of those it serves. Any of them, so nobody is always last."""

import random
from collections.abc import Iterable
from typing import TypeVar

Served = TypeVar("Served")


def random_start(count: int) -> int:
    """Return a random place to begin with, of `count`; 0 when there is none."""
    return random.randrange(count) if count > 1 else 0


def rotated(everyone: Iterable[Served]) -> list[Served]:
    """Return all in their order, begun at any of them."""
    served = list(everyone)
    start = random_start(len(served))
    return served[start:] + served[:start]
