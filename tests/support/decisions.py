"""Builders of decisions for tests, and Hypothesis strategies.

"Sent" decisions are JSON objects as a producer writes them, for the oracle and the server. "Kept"
ones are the server's records, in integers.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from routecast.core.decision import DecisionRecord, Rules
from routecast.core.decode import decode
from routecast.core.decode_fields import BrokenDecision
from routecast.core.histogram import EDGES
from routecast.core.rollup import Cells, Key, Sums
from routecast.services.decision_batch import DecisionBatch
from tests.support.oracle import tally

SECOND = 10**6
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# 2026-01-31T12:34:56.789123Z: in the middle of an hour, of a minute, of a second.
NOW = 1_769_862_896_789_123


# -- one decision -------------------------------------------------------------------------------


def kept(number: int = 0, **given: Any) -> DecisionRecord:
    """Return a decision as the store gets it: `number` makes its id, `given` replaces fields."""
    fields: dict[str, Any] = {
        "id": f"d{number}",
        "project": "default",
        "strategy": "hybrid",
        "provider": "gemini",
        "model": "flash",
        "band": "high",
        "status": "success",
        "decided": NOW,
        "confidence": 850_000,
        "cost": 2_300_000,
        "latency": 120_000,
        "input_tokens": 100,
        "output_tokens": 20,
        "fallback": False,
        "reason": None,
    }
    fields |= given
    return DecisionRecord(**{"owner": fields["project"], **fields})


def batch_of(decisions: Sequence[DecisionRecord]) -> DecisionBatch:
    """Return decisions as `Ingest` gets them, in a batch whose decisions are all good."""
    batch = DecisionBatch((), Rules(), NOW)
    batch.decisions = list(decisions)
    return batch


def keep(sent: Sequence[Mapping[str, Any]], received: int, rules: Rules | None = None) -> Any:
    """Decode and normalise decisions, from JSON to integers; all must be good."""
    rules = rules or Rules()
    read = decode(json.dumps(sent).encode(), lines=False)
    good = [
        rules.normalise(item, received) for item in read if not isinstance(item, BrokenDecision)
    ]
    assert len(good) == len(sent)
    return good


# -- many: as sent ------------------------------------------------------------------------------

# Few names, so that series have several decisions; some sort or print in unusual ways.
STRATEGIES = ("hybrid", "complexity", "cost", "Ärger ☂", "a")
PROVIDERS = ("gemini", "claude", "cerebras", "openrouter")
MODELS = ("", "flash", "sonnet", "flash-8b")
PROJECTS = ("default", "search")


def _grain(unit: float, top: int) -> st.SearchStrategy[float]:
    """Numbers in steps of half a unit, so that rounding has ties to break."""
    return st.integers(0, top).map(lambda steps: steps * unit / 2)


confidences = st.one_of(
    st.none(),
    st.sampled_from(["high", "medium", "low", 0, 1, 0.5, 0.8]),
    st.floats(0, 1),
    _grain(1e-6, 2 * 10**6),
)
costs = st.one_of(st.none(), st.floats(0, 9000), _grain(1e-9, 10**8), st.integers(0, 9000))
latencies = st.one_of(st.none(), st.floats(0, 6e8), _grain(1e-3, 10**6), st.integers(0, 10**5))
tokens = st.one_of(st.none(), st.integers(0, 200_000))


def sent_decisions(moments: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of decisions as sent; `moments` gives their timestamps."""
    return st.fixed_dictionaries(
        {
            "strategy": st.sampled_from(STRATEGIES),
            "provider": st.sampled_from(PROVIDERS),
            "timestamp": moments,
        },
        optional={
            "model": st.sampled_from(MODELS),
            "confidence": confidences,
            "cost": costs,
            "latency_ms": latencies,
            "input_tokens": tokens,
            "output_tokens": tokens,
            "status": st.sampled_from(["success", "error"]),
            "fallback": st.booleans(),
            "project": st.sampled_from(PROJECTS),
        },
    )


# -- many: as kept ------------------------------------------------------------------------------


def kept_decisions(
    ids: st.SearchStrategy[str], moments: st.SearchStrategy[int]
) -> st.SearchStrategy[DecisionRecord]:
    """Return a strategy of decisions in integers."""
    fields = st.fixed_dictionaries(_fields(ids, moments))
    over = st.booleans()  # whether the project is over the limit of names
    return st.builds(
        lambda given, over: DecisionRecord(
            **{**given, "owner": given["project"], "project": "other" if over else given["project"]}
        ),
        fields,
        over,
    )


def _fields(
    ids: st.SearchStrategy[str], moments: st.SearchStrategy[int]
) -> dict[str, st.SearchStrategy[Any]]:
    return {
        "id": ids,
        "project": st.sampled_from(PROJECTS),
        "strategy": st.sampled_from(STRATEGIES),
        "provider": st.sampled_from(PROVIDERS[:2]),
        "model": st.sampled_from(MODELS[:2]),
        "band": st.sampled_from(["high", "low", "none"]),
        "status": st.sampled_from(["success", "error"]),
        "decided": moments,
        "confidence": st.none() | st.integers(0, 10**6),
        "cost": st.none() | st.integers(0, 10**13),
        "latency": st.none() | st.integers(0, 604_800 * 10**6),
        "input_tokens": tokens,
        "output_tokens": tokens,
        "fallback": st.booleans(),
        "reason": st.none()
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    }


# -- sums ---------------------------------------------------------------------------------------


def cells_of(decisions: Iterable[DecisionRecord]) -> Cells:
    """Return the cells of some decisions."""
    cells = Cells()
    cells.add(decisions)
    return cells


def assert_sums(cells: Mapping[Key, Sums], decisions: Iterable[DecisionRecord]) -> None:
    """Assert that a bucket holds exactly the sums of these decisions, and no other key."""
    expected = tally(decisions)
    assert set(cells) == set(expected)
    for key, want in expected.items():
        have = cells[Key(*key)]
        scalars = {name: value for name, value in vars(want).items() if name != "latencies"}
        assert {name: getattr(have, name) for name in scalars} == scalars, key
        bins = {
            number: sum(EDGES[number] <= latency < EDGES[number + 1] for latency in want.latencies)
            for number in have.latency_bins
        }
        assert have.latency_bins == bins
        assert sum(bins.values()) == have.latency_count
