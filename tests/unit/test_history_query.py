"""History queries: reading the parameters, and choosing the buckets."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.history import (
    GROUPS,
    HISTORY_FIELDS,
    HistoryQuery,
    Plan,
    history_query,
    parse_history,
    plan,
)
from routecast.core.view import View
from routecast.errors import BadParameter
from tests.support.decisions import DAY, HOUR, MINUTE, NOW, SECOND

YEAR = 365 * DAY
LISTED = ", ".join(HISTORY_FIELDS)


# -- reading ------------------------------------------------------------------------------------


def test_nothing_asked_is_the_last_hour() -> None:
    """The default is counts and costs of all decisions, in at most 300 points."""
    assert parse_history("") == HistoryQuery(
        None, None, 300, None, ("count", "cost"), View(), follow=False
    )
    buckets = plan(parse_history(""), NOW).buckets
    assert (buckets.step, buckets.points) == (60, 61)


def test_every_parameter_is_read() -> None:
    """Times are RFC 3339 or Unix seconds, fields have one order, and filters may repeat."""
    assert parse_history(
        b"from=2026-01-31T12:34:56.789123Z&to=1769862900.5&points=17&group_by=model"
        b"&fields=errors,count&fields=cost&strategy=a&strategy=b&project=p"
    ) == HistoryQuery(
        NOW,
        1_769_862_900_500_000,
        17,
        "model",
        ("count", "cost", "errors"),
        View(strategy=frozenset({"a", "b"}), project=frozenset({"p"})),
    )


@pytest.mark.parametrize(
    "moment",
    [
        "2026-01-31T12:34:56.789123Z",
        "2026-01-31T12:34:56.789123%2B00:00",
        "2026-01-31T12:34:56.789123+00:00",  # a plus sign left as it is, read as a blank
        "2026-01-31T13:34:56.789123+01:00",
        "2026-01-31T07:34:56.789123-05:00",
        "1769862896.789123",
    ],
)
def test_a_moment_can_be_written_in_many_ways(moment: str) -> None:
    """A moment may have any offset."""
    assert parse_history(f"from={moment}").start == NOW


RANGE = "must be from 1970 to 9999"
POINTS = "points: must be an integer from 1 to 2,000"
MOMENT = "must be RFC 3339 with an offset, such as Z, or Unix seconds"


@pytest.mark.parametrize(
    ("query", "parameter", "error"),
    [
        ("points=0", "points", POINTS),
        ("points=2001", "points", POINTS),
        ("points=1000000", "points", POINTS),
        ("points=-1", "points", POINTS),
        ("points=1.5", "points", POINTS),
        ("points=", "points", POINTS),
        ("points=1e2", "points", POINTS),
        ("points=" + "9" * 5000, "points", POINTS),
        ("points=%D9%A3", "points", POINTS),  # an Arabic 3
        ("points=1&points=1", "points", "points: must be given once"),
        ("from=yesterday", "from", f"from: {MOMENT}"),
        ("from=", "from", f"from: {MOMENT}"),
        ("from=nan", "from", f"from: {MOMENT}"),
        ("to=inf", "to", f"to: {MOMENT}"),
        ("to=1e9", "to", f"to: {MOMENT}"),
        ("to=2026-01-31T12:34:56", "to", f"to: {MOMENT}"),
        ("from=2026-02-30T00:00:00Z", "from", f"from: {MOMENT}"),
        ("from=20260101T000000Z", "from", f"from: {MOMENT}"),
        ("from=2026-01-01T00:00:00%2B00:00:01", "from", f"from: {MOMENT}"),
        ("from=2026-01-01T00:00Z", "from", f"from: {MOMENT}"),
        ("from=2026-W01-1T00:00:00Z", "from", f"from: {MOMENT}"),
        ("from=2026-01-01%F0%9F%92%A300:00:00Z", "from", f"from: {MOMENT}"),
        ("from=2026-01-01%0000:00:00Z", "from", f"from: {MOMENT}"),
        ("from=-1", "from", f"from: {RANGE}"),
        ("from=1969-12-31T23:59:59Z", "from", f"from: {RANGE}"),
        ("to=9999-12-31T23:59:59Z", "to", f"to: {RANGE}"),
        ("to=999999999999", "to", f"to: {RANGE}"),
        ("from=5&to=5", "from", "from: must be before `to`"),
        ("from=6&to=5", "from", "from: must be before `to`"),
        ("group_by=project", "group_by", f"group_by: must be one of {', '.join(GROUPS)}"),
        ("group_by=", "group_by", f"group_by: must be one of {', '.join(GROUPS)}"),
        ("group_by=model&group_by=model", "group_by", "group_by: must be given once"),
        ("fields=", "fields", f"fields: '' is not one of {LISTED}"),
        ("fields=count,price", "fields", f"fields: 'price' is not one of {LISTED}"),
        ("strategy=", "strategy", "strategy: must be 1 to 128 characters"),
        ("&".join(f"model={n}" for n in range(101)), "model", "model: at most 100 values"),
        ("groupby=model", "groupby", "groupby: no such parameter; did you mean group_by?"),
        ("form=5", "form", "form: no such parameter; did you mean from?"),
        ("step=60", "step", "step: no such parameter; `points` chooses the step"),
    ],
)
def test_bad_parameter_is_named(query: str, parameter: str, error: str) -> None:
    """The error has the parameter's name, and what it must be."""
    with pytest.raises(BadParameter) as refused:
        parse_history(query)
    assert (refused.value.parameter, str(refused.value)) == (parameter, error)


def test_a_range_that_has_not_begun_is_refused() -> None:
    """A range without an end, which is now, must not begin later."""
    with pytest.raises(BadParameter, match="from: must be before `to`, which is now"):
        plan(parse_history(f"from={NOW / 10**6 + 1}"), NOW)


@given(st.text(max_size=60), st.sampled_from(["from", "to", "points", "group_by", "fields"]))
def test_any_text_is_read_or_refused(value: str, name: str) -> None:
    """Any text is read, or refused with the parameter's name."""
    refused = None
    try:
        parse_history(f"{name}={quote(value)}")
    except BadParameter as error:
        refused = error.parameter
    assert refused in (None, name)


def test_messages_are_checked_alike() -> None:
    """A message may have no fields at all, which a query string cannot."""
    with pytest.raises(BadParameter, match="fields: must name some of"):
        history_query(fields=[])


# -- choosing -----------------------------------------------------------------------------------

STEPS = [60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 14_400, 21_600, 43_200, 86_400]
STEPS += [2 * 86_400, *(7 * 86_400 * 2**n for n in range(12))]

ends = st.integers(1, 7900 * YEAR)
lengths = st.one_of(
    st.integers(1, DAY), st.integers(1, 40 * DAY), st.integers(1, 10 * YEAR), st.just(7000 * YEAR)
)


def planned(start: int, end: int, points: int, **more: Any) -> Plan:
    return plan(history_query(start=start, end=end, points=points), NOW, **more)


@given(ends, lengths, st.integers(1, 2000), st.sampled_from([0, 3600]))
def test_buckets_cover_the_range_as_finely_as_they_may(
    end: int, length: int, points: int, least: int
) -> None:
    """None is outside the range, and the next finer step would make too many."""
    start = max(0, end - length)
    found = planned(start, end, points, least_step=least)
    first, step, count = found.buckets
    assert 1 <= count <= points
    assert first * SECOND <= start < (first + step) * SECOND
    assert (found.buckets.end - step) * SECOND < end <= found.buckets.end * SECOND
    assert found.period == ("minute" if step < 3600 else "hour")
    assert step >= least
    finer = [one for one in STEPS if least <= one < step][-1:]
    for one in finer:
        offset = 3 * 86_400  # buckets are counted from a Monday
        needed = -(-(end // SECOND + offset + 1) // one) - (start // SECOND + offset) // one
        assert needed + 1 > points or (one < 3600 and length > 2 * DAY)


@given(ends, lengths, st.integers(1, 2000), st.integers(1, DAY))
def test_buckets_are_the_same_for_everyone(end: int, length: int, points: int, later: int) -> None:
    """Buckets of a step begin at its multiples; days at midnight, and weeks on Monday."""
    start = max(0, end - length)
    one, other = (planned(start + n, end + n, points).buckets for n in (0, later))
    if one.step == other.step:
        assert (other.first - one.first) % one.step == 0
    if one.step % 86_400 == 0:
        assert one.first % 86_400 == 0
    if one.step % (7 * 86_400) == 0 and one.first >= 0:
        assert datetime.fromtimestamp(one.first, UTC).weekday() == 0


@pytest.mark.parametrize(
    ("length", "points", "step", "period"),
    [
        (HOUR, 300, 60, "minute"),
        (DAY, 300, 300, "minute"),
        (2 * DAY, 300, 600, "minute"),
        (7 * DAY, 300, 3600, "hour"),
        (30 * DAY, 300, 10_800, "hour"),
        (365 * DAY, 400, 86_400, "hour"),
        (10 * YEAR, 600, 7 * 86_400, "hour"),
        (HOUR, 2, 3600, "hour"),
    ],
)
def test_common_ranges(length: int, points: int, step: int, period: str) -> None:
    """Ranges that dashboards use have the expected steps."""
    found = planned(NOW - length, NOW, points)
    assert (found.buckets.step, found.period) == (step, period)


@pytest.mark.parametrize(
    ("points", "step"), [(1, 3600), (2, 1800), (6, 600), (12, 300), (30, 120), (60, 60)]
)
@given(end=st.integers(HOUR, 7900 * YEAR))
def test_the_default_hour_fits_in_as_many_buckets_as_it_has(
    points: int, step: int, end: int
) -> None:
    """The bucket in which the hour ends is included, wherever it ends."""
    for now, to in ((end - 1, None), (NOW, end)):
        buckets = plan(history_query(end=to, points=points), now).buckets
        assert (buckets.step, buckets.points) == (step, points)
        assert (buckets.end - step) * SECOND < end <= buckets.end * SECOND


def test_a_range_that_was_said_is_covered() -> None:
    """An hour that touches 61 minutes does not fit into 60 buckets of a minute."""
    assert planned(NOW - HOUR, NOW, 60).buckets.step == 120


def test_without_minutes_there_are_hours() -> None:
    """A range whose minutes are dropped has hours."""
    found = planned(NOW - HOUR, NOW, 300, least_step=3600)
    assert (found.buckets.step, found.buckets.points) == (3600, 2)


def test_a_history_that_follows_reaches_to_now() -> None:
    """The buckets of a followed history end after now, whatever end was asked for."""
    for end in (None, NOW - HOUR):
        asked = history_query(start=NOW - 2 * HOUR, end=end, follow=True)
        assert plan(asked, NOW).buckets.end * SECOND > NOW
    on_the_minute = NOW // MINUTE * MINUTE
    assert plan(asked, on_the_minute).buckets.end * SECOND > on_the_minute
    asked = history_query(start=NOW - 2 * HOUR, end=NOW + HOUR, follow=True)
    assert plan(asked, NOW).buckets.end * SECOND >= NOW + HOUR


def test_queries_with_equal_buckets_have_equal_plans() -> None:
    """The same query a moment later, within the same bucket, has the same plan."""
    asked = parse_history(urlencode({"points": 10, "fields": "cost,count"}))
    assert plan(asked, NOW) == plan(parse_history("points=10"), NOW + MINUTE // 2)
