"""One `Handshakes` answers everyone: nothing of one request is left for the next."""

from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.extensions.permessage_deflate import PerMessageDeflate

from routecast.edge.handshake import Agreement, Handshakes, parse

SPOKEN = ("routecast.v1.json", "routecast.v1.msgpack")
KEY = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
UPGRADE = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]

Lines = list[tuple[str, str]]


def lines(name: str, *values: str) -> st.SearchStrategy[Lines]:
    """Draw a header that may be missing, or be there with one of some values."""
    return st.sampled_from([[], *([(name, value)] for value in values)])


requests = st.tuples(
    st.sampled_from([UPGRADE, UPGRADE[:1], UPGRADE[1:], UPGRADE[:2]]),
    st.sampled_from([[KEY], [], [("Sec-WebSocket-Key", "short")], [KEY, KEY]]),
    lines("Sec-WebSocket-Protocol", "routecast.v1.json", "mqtt", "mqtt, routecast.v1.msgpack"),
    lines(
        "Sec-WebSocket-Extensions",
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits; server_max_window_bits=10",
        "permessage-deflate; what=this",
        "x-unknown",
        "=",
    ),
).map(lambda parts: [line for part in parts for line in part])


def answer(handshakes: Handshakes, request: Lines) -> Agreement:
    pairs = [(name.lower().encode(), value.encode()) for name, value in request]
    return handshakes.answer(parse(b"/ws/metrics", pairs))


def told(agreement: Agreement) -> object:
    """Return all that an answer tells, but for its date."""
    response, subprotocol, extensions = agreement
    headers = [line for line in response.headers.raw_items() if line[0] != "Date"]
    if response.status_code != 101:
        return response.status_code, headers, response.body
    return headers, subprotocol, [repr(each) for each in extensions]


@given(st.lists(requests, min_size=1, max_size=6), st.booleans())
def test_it_answers_as_if_each_request_were_the_first(crowd: list[Lines], compress: bool) -> None:
    one = Handshakes(SPOKEN, compress=compress)
    for request in crowd:
        fresh = Handshakes(SPOKEN, compress=compress)
        assert told(answer(one, request)) == told(answer(fresh, request))


def test_what_is_agreed_on() -> None:
    handshakes = Handshakes(SPOKEN, compress=True)
    offer = [*UPGRADE, KEY, ("Sec-WebSocket-Extensions", "permessage-deflate")]

    response, subprotocol, (deflate,) = answer(
        handshakes, [*offer, ("Sec-WebSocket-Protocol", "mqtt, routecast.v1.json")]
    )
    assert response.status_code == 101
    assert response.headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455
    assert subprotocol == "routecast.v1.json" == response.headers["Sec-WebSocket-Protocol"]
    assert isinstance(deflate, PerMessageDeflate)
    assert not deflate.local_no_context_takeover

    # The default stream's frames are made once for all: each stands alone.
    response, subprotocol, (deflate,) = answer(handshakes, offer)
    assert subprotocol is None
    assert "Sec-WebSocket-Protocol" not in response.headers
    assert isinstance(deflate, PerMessageDeflate)
    assert deflate.local_no_context_takeover

    assert answer(Handshakes(SPOKEN, compress=False), offer).extensions == []


def test_a_request_keeps_its_headers_as_they_came() -> None:
    request = parse(b"/ws/metrics?x=%20\xff", [(b"x-a", b"1"), (b"X-A", b"2"), (b"host", b"h\xe9")])
    assert request.headers == Headers([("x-a", "1"), ("X-A", "2"), ("host", "hé")])
    assert request.path == "/ws/metrics?x=%20ÿ"
