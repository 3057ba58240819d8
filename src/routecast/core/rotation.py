"""Rotation: work that serves many begins with a random one, so that none is always last."""

import random
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def random_start(count: int) -> int:
    """Return a random index below `count`; 0 if `count` is 0."""
    return random.randrange(count) if count > 1 else 0


def rotated(items: Iterable[T]) -> list[T]:
    """Return all items in their order, beginning with a random one."""
    all_items = list(items)
    start = random_start(len(all_items))
    return all_items[start:] + all_items[:start]
