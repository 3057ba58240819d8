"""Pages of several nodes become one page, as if one node had all connections."""

from hypothesis import given
from hypothesis import strategies as st

from routecast.core.connection_pages import NodePage, merge_pages
from routecast.core.connections_query import Place

PLACES = st.lists(
    st.lists(st.builds(Place, st.integers(-3, 0), st.integers(0, 10**6)), max_size=12), max_size=4
)


def page_of(node: str, places: list[Place], after: Place | None, size: int) -> NodePage[str]:
    """Return a node's page, which may be shorter than was asked for."""
    rest = [place for place in sorted(set(places)) if after is None or place > after]
    shown = rest[:size]
    following = shown[-1] if len(rest) > len(shown) else None
    return NodePage(node, len(set(places)), following, shown, [str(place) for place in shown])


@given(PLACES, st.integers(1, 5), st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_every_connection_is_on_one_page(
    nodes: list[list[Place]], limit: int, sizes: list[int]
) -> None:
    """In order, whatever part of a page each node has."""
    everything = {place for places in nodes for place in places}
    nodes = [  # ids of nodes differ
        [place for place in places if not any(place in other for other in nodes[:number])]
        for number, places in enumerate(nodes)
    ]
    seen: list[str] = []
    after: Place | None = None
    while True:
        pages = [
            page_of(str(number), places, after, min(limit, size))
            for number, (places, size) in enumerate(zip(nodes, sizes, strict=False))
        ]
        merged = merge_pages(pages, limit)
        assert len(merged.connections) <= limit
        assert merged.total == sum(len(set(places)) for places in nodes)
        seen += merged.connections
        if merged.next is None:
            break
        assert after is None or merged.next > after
        after = merged.next
    assert seen == [str(place) for place in sorted(everything)]
