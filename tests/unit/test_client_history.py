"""Histories in the client: merged messages equal one whole answer."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.client.history import History, HistoryRequest, joined
from routecast.client.session import Effect
from routecast.protocol import GetHistory, HistoryOut, Position, ServerMessage, rfc3339
from tests.support.wire import GOLDEN

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def history(first: int, series: dict[str, list[int]], step: int = 60) -> History:
    """Return minutes from number `first` on, with the field `count`."""
    points = len(next(iter(series.values()), []))
    columns: dict[str, Any] = {key: {"count": values} for key, values in series.items()}
    return History(START + first * MINUTE, step, points, columns, Position("e", first))


def test_the_golden_history_is_read() -> None:
    """Times, columns and unknown values are read."""
    request = HistoryRequest(GetHistory("h1", START), 300, lambda: 0.0)
    message = msgspec.convert(GOLDEN["history"]["message"], ServerMessage)
    assert isinstance(message, HistoryOut)
    assert request.receive(message) is Effect.APPLIED
    assert request.over
    assert request.held is not None
    assert request.held.series["hybrid"] == {"count": [4, 0, 2], "cost": [0.0092, None, 0.0046]}
    assert request.held.times == [datetime(2026, 1, 31, 12, 32 + n, tzinfo=UTC) for n in range(3)]


def test_an_update_replaces_the_buckets_from_its_first_one_on() -> None:
    """An update may repeat the unfinished bucket, or go further back after a late decision."""
    held = history(0, {"a": [1, 2, 3]})
    assert joined(held, history(2, {"a": [4, 5]}), 10) == msgspec.structs.replace(
        history(0, {"a": [1, 2, 4, 5]}), position=Position("e", 2)
    )
    assert joined(held, history(1, {"a": [7, 3]}), 10).series == {"a": {"count": [1, 7, 3]}}
    assert joined(held, history(3, {"a": [9]}), 10).series == {"a": {"count": [1, 2, 3, 9]}}


def test_the_newest_buckets_are_kept() -> None:
    """There are at most as many as were asked for."""
    grown = joined(history(0, {"a": [1, 2, 3]}), history(3, {"a": [4, 5]}), 3)
    assert (grown.start, grown.points) == (START + 2 * MINUTE, 3)
    assert grown.series == {"a": {"count": [3, 4, 5]}}


def test_a_series_may_begin_or_be_left_out() -> None:
    """Buckets without values of a series have a count of 0 and an unknown average."""
    held = history(0, {"a": [1]})
    news = msgspec.structs.replace(
        history(1, {"b": [2]}), series={"b": {"count": [2], "avg_cost": [0.5]}}
    )
    assert joined(held, news, 10).series == {
        "a": {"count": [1, 0]},
        "b": {"count": [0, 2], "avg_cost": [None, 0.5]},
    }


@pytest.mark.parametrize(
    "news",
    [history(5, {"a": [1]}), history(-1, {"a": [1]}), history(0, {"a": [1]}, step=120)],
    ids=["a hole", "earlier", "another step"],
)
def test_an_update_that_cannot_be_joined_replaces_all(news: History) -> None:
    """A server sends such an update only as a full answer."""
    assert joined(history(0, {"a": [1, 2]}), news, 10) == news


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8), st.integers(1, 6))
def test_joined_updates_equal_one_answer(told: list[tuple[int, int]], most: int) -> None:
    """This holds for updates of any length from any earlier bucket."""
    truth = [100 + n for n in range(3)]
    held = joined(history(0, {"a": truth}), history(0, {"a": truth}), most)
    for back, more in told:
        truth += [100 + len(truth) + n for n in range(more)]
        first = max(len(truth) - more - back, len(truth) - most, 0)
        held = joined(held, history(first, {"a": truth[first:]}), most)
    assert held.series["a"]["count"] == truth[-most:]


def test_after_a_reconnect_it_asks_for_the_buckets_it_keeps() -> None:
    """It asks from its first bucket on, or later if that one is too old by now."""
    asked = GetHistory("h1", START, points=5, follow=True)
    now = START.timestamp() + 3 * 60
    request = HistoryRequest(asked, 5, lambda: now)
    assert request.request() == asked
    series = [{"key": "all", "count": [1, 2, 3]}]
    since = rfc3339(round(START.timestamp() * 1e6))
    request.receive(HistoryOut("h1", Position("e", 1), 60, since, 3, series))
    assert not request.over
    assert request.request() == asked
    now += 10 * 60
    assert request.request() == msgspec.structs.replace(asked, from_=START + 9 * MINUTE)
