"""Views: reading the parameters that a client asks for."""

from contextlib import suppress
from random import Random
from typing import Any
from unicodedata import normalize
from urllib.parse import quote, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routecast.core.rollup import Key
from routecast.core.view import View, ViewSubscription, parse_query
from routecast.errors import BadParameter
from routecast.protocol import DEFAULT_FIELDS, FIELDS, WINDOWS

KEY = Key("search", "hybrid", "gemini", "flash", "high", "success")


def test_no_parameters_give_the_default_stream() -> None:
    """It is the whole document of all decisions; the caller chooses the interval."""
    assert parse_query("") == ViewSubscription(View(DEFAULT_FIELDS, window="all"), 5.0)
    assert parse_query("", interval=2.5).interval == 2.5
    assert not parse_query("").view.filtered


def test_filters_have_a_size() -> None:
    """Longer and more names take more bytes; a view without filters takes none."""
    none, one = View(), View(strategy=frozenset({"a"}))
    longer, more = View(strategy=frozenset({"a" * 100})), View(strategy=frozenset("ab"))
    both = View(strategy=frozenset({"a"}), project=frozenset({"a"}))
    assert none.size == 0 < one.size < more.size < longer.size < both.size
    assert longer.size - one.size == 99


def test_every_parameter_is_read() -> None:
    """Filters may be given more than once."""
    asked = parse_query(
        b"interval=0.5&fields=cost,total_decisions&window=24h&strategy=a&strategy=b"
        b"&provider=%C3%A4+%E2%98%82&model=m%26m&project=p"
    )
    assert asked == ViewSubscription(
        View(
            fields=("total_decisions", "cost"),
            strategy=frozenset({"a", "b"}),
            provider=frozenset({"ä ☂"}),
            model=frozenset({"m&m"}),
            project=frozenset({"p"}),
            window="24h",
        ),
        0.5,
    )


@pytest.mark.parametrize("interval", ["0.1", "60", "60.0", "5.0", "26.74723725127578"])
def test_any_interval_of_the_range_is_accepted(interval: str) -> None:
    """The range is 0.1 to 60 seconds, both ends included."""
    assert parse_query(f"interval={interval}").interval == float(interval)


@pytest.mark.parametrize("window", WINDOWS)
def test_each_window_is_accepted(window: str) -> None:
    """The values are those of the contract."""
    assert parse_query(f"window={window}").view.window == window


INTERVAL = "interval: must be a number of seconds from 0.1 to 60"
WINDOW = "window: must be one of all, 5m, 1h, 24h, 7d"


@pytest.mark.parametrize(
    ("query", "parameter", "error"),
    [
        ("interval=0.09", "interval", INTERVAL),
        ("interval=60.1", "interval", INTERVAL),
        ("interval=-1", "interval", INTERVAL),
        ("interval=nan", "interval", INTERVAL),
        ("interval=inf", "interval", INTERVAL),
        ("interval=", "interval", INTERVAL),
        ("interval=fast", "interval", INTERVAL),
        ("interval=1e1", "interval", INTERVAL),
        ("interval=1_0", "interval", INTERVAL),
        ("interval=+5", "interval", INTERVAL),
        ("interval=%D9%A3", "interval", INTERVAL),  # an Arabic 3
        ("interval=1&interval=1", "interval", "interval: must be given once"),
        ("window=1d", "window", WINDOW),
        ("window=", "window", WINDOW),
        ("window=5M", "window", WINDOW),
        ("window=1h&window=5m", "window", "window: must be given once"),
        ("fields=", "fields", f"fields: '' is not one of {', '.join(FIELDS)}"),
        ("fields=cost,price", "fields", f"fields: 'price' is not one of {', '.join(FIELDS)}"),
        ("strategy=", "strategy", "strategy: must be 1 to 128 characters"),
        ("model=" + "m" * 129, "model", "model: must be 1 to 128 characters"),
        ("&".join(f"project={n}" for n in range(101)), "project", "project: at most 100 values"),
        ("provider=%ff", "query", "query: must be UTF-8, with at most 1,000 parameters"),
        ("x" * 7001, "query", "query: must be at most 7,000 characters in all"),
        ("x&" * 1001, "query", "query: must be UTF-8, with at most 1,000 parameters"),
    ],
)
def test_bad_parameter_is_named(query: str, parameter: str, error: str) -> None:
    """The error has its name, and what it must be."""
    with pytest.raises(BadParameter) as refused:
        parse_query(query)
    assert (refused.value.parameter, str(refused.value)) == (parameter, error)


def test_unknown_parameters_are_ignored() -> None:
    """Pages and proxies may add their own, for example to bypass a cache."""
    query = "nocache=1&_=17&t=3&v=2&utm_source=mail&ticket=x&interval=2"
    assert parse_query(query) == parse_query("interval=2")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("field", "fields"),
        ("strategies", "strategy"),
        ("Strategy", "strategy"),
        ("provdier", "provider"),
        ("models", "model"),
        ("projects", "project"),
        ("windows", "window"),
        ("intervall", "interval"),
    ],
)
def test_a_misspelt_parameter_is_refused(name: str, meant: str) -> None:
    """Ignoring it would give numbers that the client did not ask for."""
    with pytest.raises(BadParameter, match=f"{name}: no such parameter; did you mean {meant}?"):
        parse_query(f"window=1h&{name}=x")


def test_spelling_is_checked_for_a_limited_number_of_names() -> None:
    """A thousand unknown names cost no more than twenty."""
    many = "&".join(f"x{n}" for n in range(20))
    assert parse_query(f"{many}&strategies=x") == parse_query("")


def test_error_does_not_repeat_a_long_name() -> None:
    """A client's text is shortened in the answer."""
    with pytest.raises(BadParameter) as refused:
        parse_query("fields=" + "x" * 5000)
    assert len(str(refused.value)) < 500


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)


@given(st.lists(st.sampled_from(FIELDS), min_size=1), st.lists(names, min_size=1), st.randoms())
@example(["total_decisions"], ["\N{CJK COMPATIBILITY IDEOGRAPH-2F802}"], Random(1))
def test_equal_queries_are_equal_views(
    fields: list[str], values: list[str], random: object
) -> None:
    """Order, repetition and quoting in the query make no difference."""
    shuffled = [*values, values[0]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = urlencode([("fields", ",".join(fields)), *(("strategy", value) for value in values)])
    other = "&".join(
        [
            *(f"strategy={quote(value)}" for value in shuffled),
            *(f"fields={name}" for name in reversed(fields)),
        ]
    )
    assert parse_query(one) == parse_query(other)
    assert hash(parse_query(one).view) == hash(parse_query(other).view)
    stored = {normalize("NFC", value) for value in values}  # see `texts.spellings`
    assert parse_query(one).view.strategy == {*values, *stored}


@given(st.text() | st.binary())
def test_any_query_is_read_or_refused(query: str | bytes) -> None:
    """Only `BadParameter` is raised."""
    asked = None
    with suppress(BadParameter):
        asked = parse_query(query)
    assert asked is None or 0.1 <= asked.interval <= 60


@pytest.mark.parametrize("part", ["strategy", "provider", "model", "project"])
def test_filter_matches_its_part_of_a_key(part: str) -> None:
    """A key matches if its part is one of the values."""

    def view(*values: str) -> View:
        filters: dict[str, Any] = {part: frozenset(values)}
        return View(**filters)

    mine: str = getattr(KEY, part)
    assert view(mine, "x").matches(KEY)
    assert not view(*(set(KEY) - {mine})).matches(KEY)
    assert not view().matches(KEY)
    assert view(mine).filtered


def test_all_filters_must_match() -> None:
    """Values of one filter are alternatives, and all filters must match."""
    view = View(strategy=frozenset({"hybrid"}), provider=frozenset({"claude"}))
    assert not view.matches(KEY)
    assert view.matches(KEY._replace(provider="claude"))
