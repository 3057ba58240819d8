"""The query of `GET /v1/admin/connections`."""

import pytest

from routecast.core.connections_query import ConnectionsQuery, Place, parse_connections_query
from routecast.errors import BadParameter


def test_without_parameters_all_open_connections_are_asked_for() -> None:
    """The first page, by start."""
    assert parse_connections_query("") == ConnectionsQuery()


def test_every_parameter_is_read() -> None:
    """Parameters that are not known are ignored."""
    query = "subject=ann&address=192.0.2.1&protocol=sse&sort=lag&limit=7&after=3-12&_=1"
    assert parse_connections_query(query) == ConnectionsQuery(
        "ann", "192.0.2.1", "sse", "lag", 7, Place(-3, 12)
    )
    assert parse_connections_query("closed=true").closed
    query = parse_connections_query("node=a1&search=%20ANN&closed=true&code=4403")
    assert (query.node, query.search, query.code) == ("a1", "ann", 4403)
    assert parse_connections_query("search=").search is None
    assert parse_connections_query("id=00000000000000a").identity == 10


def test_a_place_is_read_as_it_was_written() -> None:
    """It is the parameter `after` of the next page."""
    for place in (Place(0, 1), Place(-12, 2**60), Place(-(2**63) + 1, 2**63 - 1)):
        assert parse_connections_query(f"after={place}").after == place


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=1e2", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "limit"),
        ("sort=age", "sort"),
        ("sort=start&closed=true", "sort"),
        ("protocol=ws", "protocol"),
        ("closed=1", "closed"),
        ("code=1000", "code"),
        ("id=x", "id"),
        ("closed=true&code=999", "code"),
        (f"search={'x' * 101}", "search"),
        ("after=x", "after"),
        ("after=1", "after"),
        ("after=-1-2", "after"),
        (f"after={2**63}-0", "after"),
        (f"after=0-{2**63}", "after"),
        ("adress=192.0.2.1", "adress"),
    ],
)
def test_an_invalid_parameter_is_named(query: str, parameter: str) -> None:
    """Also one that looks like a misspelt parameter."""
    with pytest.raises(BadParameter) as refused:
        parse_connections_query(query)
    assert refused.value.parameter == parameter


def test_all_filters_must_match() -> None:
    """A filter that is not given passes all; an empty subject is one."""
    assert ConnectionsQuery().matches("ann", "192.0.2.1", "sse")
    query = ConnectionsQuery(subject="", address="192.0.2.1", protocol="sse")
    assert query.matches("", "192.0.2.1", "sse")
    assert not query.matches("ann", "192.0.2.1", "sse")
    assert not query.matches("", "192.0.2.2", "sse")
    assert not query.matches("", "192.0.2.1", "default")
