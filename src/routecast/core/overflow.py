"""Overflow: which decisions do not fit into their sums. A database has 64 bits for each sum.

Few series ever come near that limit. A store knows the series with a sum over half of it, and reads
exact sums only for commits that add to those.
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Final

from routecast.core.decision import DecisionRecord, identity_of
from routecast.core.rollup import Cells, Key, Sums, key_of

LARGEST_SUM: Final = 2**63 - 1
# A series is near its limit if one of its sums over all time is this large.
NEAR: Final = 2**62
# While commits that are not folded yet add no more than this to any sum, every series that is not
# near its limit has room.
MOST_UNFOLDED_SUM: Final = LARGEST_SUM - NEAR

# The sums that can become large, and the names of their fields on the wire. Counts are at most the
# number of decisions, and the metered sums at most these.
SUMS: Final = ("confidence_sum", "cost_sum", "latency_sum", "input_tokens", "output_tokens")
_SUMMED_FIELDS: Final = ("confidence", "cost", "latency_ms", "input_tokens", "output_tokens")
_sums_of: Final = attrgetter(*SUMS)
_values_of: Final = attrgetter("confidence", "cost", "latency", "input_tokens", "output_tokens")

# The decisions that did not fit: by id and project, the field whose sum has no room.
Full = dict[tuple[str, str], str]


def find_full(decisions: Iterable[DecisionRecord], totals: Mapping[Key, Sums]) -> Full:
    """Return the decisions that do not fit into the totals of their series, taken in this order.

    A decision that does not fit takes no room: a smaller one after it may fit. `totals` has the
    sums over all time, by key, of every series that has decisions.
    """
    full: Full = {}
    held: dict[tuple[str, ...], list[int]] = {
        key: list(_sums_of(sums)) for key, sums in totals.items()
    }
    for decision in decisions:
        key = key_of(decision)
        sums = held.get(key) or [0] * len(SUMS)
        after = [a + (b or 0) for a, b in zip(sums, _values_of(decision), strict=True)]
        if max(after) <= LARGEST_SUM:
            held[key] = after
        else:
            field = next(
                f for f, value in zip(_SUMMED_FIELDS, after, strict=True) if value > LARGEST_SUM
            )
            full[identity_of(decision)] = field
    return full


def field_without_room(sums: Sums, added: Sums) -> str | None:
    """Return the field whose sum has no room for the added sums; None if all fit."""
    pairs = zip(_SUMMED_FIELDS, _sums_of(sums), _sums_of(added), strict=True)
    return next((field for field, a, b in pairs if a + b > LARGEST_SUM), None)


def most_added(cells: Cells) -> int:
    """Return an upper bound of what adding cells adds to a sum of any series."""
    return sum(sums.largest for sums in cells)
