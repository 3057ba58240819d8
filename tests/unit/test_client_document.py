"""Documents in the client: patching, order of keys, and typed attributes."""

import copy
from typing import Any

import msgspec
import pytest

from routecast.client import Cost, Performance, Source
from routecast.client.default_stream import query_of, receive
from routecast.client.document import ReceivedDocument, arranged, read
from routecast.client.session import SubscribedView
from routecast.patch import apply
from routecast.protocol import Filters, Position, Subscribe
from tests.support.wire import GOLDEN, PATCHES


@pytest.mark.parametrize("case", PATCHES, ids=lambda case: str(case["patch"]))
def test_examples_of_the_rfc(case: dict[str, Any]) -> None:
    """Golden patches give the golden results, and the patched document is not changed."""
    before = copy.deepcopy(case["before"])
    assert apply(before, case["patch"]) == case["after"]
    assert before == case["before"]


def test_a_document_is_read_with_names_and_types() -> None:
    """Absent fields are None or empty; fields that the client does not know are in `data`."""
    data = {**GOLDEN["snapshot-stale"]["message"]["data"], "future": 1}
    metrics = read(ReceivedDocument(data, "now", Position("e", 7), "stale", 4210))
    assert metrics.total_decisions == 150
    assert metrics.cost == Cost(1.25, 149, 1)
    assert metrics.avg_confidence is None
    assert metrics.strategy_performance == {}
    assert (metrics.timestamp, metrics.position) == ("now", Position("e", 7))
    assert (metrics.source, metrics.age_ms) == (Source.STALE, 4210)
    assert metrics.data == data


def test_names_come_largest_count_first() -> None:
    """Fields have the order of the contract, and names that of their counts, after any patch."""
    data = {
        "provider_usage": {"b": 1, "c": 2, "a": 1},
        "future": 0,
        "strategy_performance": {"x": {"count": 1}, "y": {"count": 2}},
        "total_decisions": 3,
    }
    assert msgspec.json.encode(arranged(data)) == (
        b'{"total_decisions":3,"strategy_performance":{"y":{"count":2},"x":{"count":1}},'
        b'"provider_usage":{"c":2,"a":1,"b":1},"future":0}'
    )
    assert list(read(ReceivedDocument(data, "")).strategy_performance) == ["y", "x"]
    assert read(ReceivedDocument(data, "")).strategy_performance["x"] == Performance(1)


# -- the default stream -------------------------------------------------------------------------


def test_a_subscription_becomes_a_query() -> None:
    """Each value of a filter is a parameter of its own; fields that were not given are left out."""
    asked = Subscribe("x", ["cost", "rate"], Filters(["a", "b"], project=["c"]), "5m", 0.5)
    assert query_of(asked) == [
        ("fields", "cost,rate"),
        ("interval", "0.5"),
        ("window", "5m"),
        ("strategy", "a"),
        ("strategy", "b"),
        ("project", "c"),
    ]
    assert query_of(Subscribe("x")) == []


def test_a_document_of_the_default_stream_has_the_same_shape() -> None:
    """Nulls are left out; after an error document, the document before it stays."""
    view = SubscribedView(Subscribe("x"))
    receive(view, b'{"avg_confidence":null,"latency_ms":{"avg":null,"p50":1},"timestamp":"t"}')
    assert view.visible == ReceivedDocument({"latency_ms": {"p50": 1}}, "t")
    receive(view, b'{"error":"Failed to fetch metrics","timestamp":"u"}')
    assert view.failure is not None
    assert view.failure.retryable
    assert view.visible == ReceivedDocument({"latency_ms": {"p50": 1}}, "t")
    receive(view, b'{"timestamp":"v"}')
    assert view.failure is None
