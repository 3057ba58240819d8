"""`Handshakes`: one object serves all clients, and a request does not change later answers."""

from base64 import b64encode, urlsafe_b64encode
from hashlib import sha1

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers

from routecast.edge.ws.handshake import REMEMBERED_TERMS, Agreement, Handshakes, UpgradeRequest
from routecast.errors import BadHead

SPOKEN = ("routecast.v1.json", "routecast.v1.msgpack")
KEY = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
UPGRADE = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]

Lines = list[tuple[str, str]]


def lines(name: str, *values: str) -> st.SearchStrategy[Lines]:
    """Draw a header field that is absent, or has one of some values."""
    return st.sampled_from([[], *([(name, value)] for value in values)])


requests = st.tuples(
    st.sampled_from([UPGRADE, UPGRADE[:1], UPGRADE[1:], UPGRADE[:2]]),
    st.sampled_from([[KEY], [], [("Sec-WebSocket-Key", "short")], [KEY, KEY]]),
    st.sampled_from([[], [("Cookie", "a=1")], [("Cookie", "a=1"), ("Cookie", "b=2")]]),
    st.sampled_from(
        [[], [("Origin", "http://a")], [("Origin", "http://a"), ("Origin", "http://b")]]
    ),
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


def asked(request: Lines) -> UpgradeRequest:
    fields = [(name.lower().encode(), value.encode()) for name, value in request]
    return UpgradeRequest("GET", b"/ws/metrics", fields)


def answer(handshakes: Handshakes, request: Lines) -> Agreement:
    return handshakes.answer(asked(request))


def parts_of(agreement: Agreement) -> object:
    """Return all parts of an answer except its date."""
    lines = [line for line in agreement.answer.split(b"\r\n") if not line.startswith(b"Date: ")]
    return lines, agreement[1:]


def headers(agreement: Agreement) -> Headers:
    """Return the headers of an answer with status 101."""
    head, _, body = agreement.answer.decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    assert (status, body, agreement.accepted) == ("HTTP/1.1 101 Switching Protocols", "", True)
    return Headers([(name, value) for name, _, value in (line.partition(": ") for line in lines)])


@given(st.lists(requests, min_size=1, max_size=6), st.booleans())
def test_it_answers_as_if_each_request_were_the_first(crowd: list[Lines], compress: bool) -> None:
    """Each answer is the one that `websockets` makes from the whole request alone."""
    one = Handshakes(SPOKEN, compress=compress)
    for request in crowd:
        fresh = Handshakes(SPOKEN, compress=compress)
        assert parts_of(answer(one, request)) == parts_of(fresh.negotiate(asked(request).fields))


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=2, max_size=4))
def test_each_key_has_its_own_answer(nonces: list[bytes]) -> None:
    """The answer is that of RFC 6455, 4.2.2, also for terms that are remembered."""
    handshakes = Handshakes(SPOKEN, compress=True)
    for nonce in nonces:
        key = b64encode(nonce)
        agreement = answer(handshakes, [*UPGRADE, ("Sec-WebSocket-Key", key.decode())])
        digest = sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        assert headers(agreement)["Sec-WebSocket-Accept"] == b64encode(digest).decode()


def test_the_number_of_remembered_terms_is_limited() -> None:
    """Forgotten terms are agreed on again."""
    handshakes = Handshakes(SPOKEN, compress=True)
    for number in range(2 * REMEMBERED_TERMS):
        wanted = [*UPGRADE, KEY, ("Sec-WebSocket-Extensions", f"x-{number}")]
        assert answer(handshakes, wanted).accepted
    assert handshakes.remembered == REMEMBERED_TERMS


def bearer(token: str) -> str:
    """Return the subprotocol that carries a token, as the JavaScript client makes it."""
    return f"routecast.bearer.{urlsafe_b64encode(token.encode()).decode().rstrip('=')}"


def test_a_token_is_neither_remembered_nor_answered() -> None:
    """Clients with different tokens share one set of terms."""
    handshakes = Handshakes(SPOKEN, compress=True)
    for number in range(3):
        offer = f"{bearer(f'secret-{number}')}, routecast.v1.json"
        request = asked([*UPGRADE, KEY, ("Sec-WebSocket-Protocol", offer)])
        agreement = handshakes.answer(request)
        assert request.credential == f"secret-{number}"
        assert headers(agreement)["Sec-WebSocket-Protocol"] == "routecast.v1.json"
        assert agreement == handshakes.answer(
            asked([*UPGRADE, KEY, ("Sec-WebSocket-Protocol", "routecast.v1.json")])
        )
        assert not any("bearer" in str(field) for field in (request.terms(), request.fields))
    assert handshakes.remembered == 1


def test_a_token_alone_asks_for_the_default_stream() -> None:
    """The other lines of the field stay, in their order."""
    handshakes = Handshakes(SPOKEN, compress=True)
    request = asked([*UPGRADE, KEY, ("Sec-WebSocket-Protocol", bearer("secret"))])
    assert "Sec-WebSocket-Protocol" not in headers(handshakes.answer(request))
    assert request.credential == "secret"
    several = [("Sec-WebSocket-Protocol", value) for value in ("mqtt", bearer("secret"), "x, y")]
    request = asked([*UPGRADE, KEY, *several])
    assert request.get_all(b"sec-websocket-protocol") == ["mqtt", "x, y"]
    assert request.credential == "secret"


@given(st.text('ab ,;"\\=\t', max_size=8), st.text('ab ,;"\\=\t', max_size=8))
def test_no_answer_contains_a_token(before: str, after: str) -> None:
    """Not even the text of an error about the field that it is in."""
    handshakes = Handshakes(SPOKEN, compress=True)
    offer = f"{before}{bearer('secret')}{after}"
    request = asked([*UPGRADE, KEY, ("Sec-WebSocket-Protocol", offer)])
    agreement = handshakes.answer(request)
    assert bearer("secret").encode()[17:] not in agreement.answer
    assert b"bearer" not in str(request.terms()).encode()


def test_the_field_authorization_has_a_credential_too() -> None:
    """It comes without a subprotocol, from clients other than browsers."""
    assert asked([*UPGRADE, KEY, ("Authorization", "Bearer secret")]).credential == "secret"
    assert asked([*UPGRADE, KEY]).credential is None
    both = [("Authorization", "Bearer a"), ("Sec-WebSocket-Protocol", bearer("a"))]
    with pytest.raises(BadHead):
        asked([*UPGRADE, KEY, *both]).credential  # noqa: B018  # -- it raises


def test_the_agreed_subprotocol_and_compression() -> None:
    handshakes = Handshakes(SPOKEN, compress=True)
    offer = [*UPGRADE, KEY, ("Sec-WebSocket-Extensions", "permessage-deflate")]

    agreement = answer(handshakes, [*offer, ("Sec-WebSocket-Protocol", "mqtt, routecast.v1.json")])
    response = headers(agreement)
    assert response["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455
    assert agreement.subprotocol == "routecast.v1.json" == response["Sec-WebSocket-Protocol"]
    assert agreement[3:] == (True, True, True)

    # Frames of the default stream are shared, so a client can read each of them alone.
    agreement = answer(handshakes, offer)
    assert agreement.subprotocol is None
    assert "Sec-WebSocket-Protocol" not in headers(agreement)
    assert agreement[3:] == (True, True, False)

    # A window size of its own would need frames of its own.
    small = ("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=10")
    assert answer(handshakes, [*UPGRADE, KEY, small])[3:] == (True, False, False)

    assert answer(Handshakes(SPOKEN, compress=False), offer)[3:] == (False, False, False)
    # A refusal agrees on nothing.
    assert answer(handshakes, [*offer, KEY])[1:] == (False, None, False, False, False)


def test_a_request_has_its_fields_unchanged() -> None:
    """Bytes beyond ASCII are read as ISO-8859-1; a field may come twice."""
    fields = [(b"x-a", b"1"), (b"host", b"h\xe9"), (b"x-a", b"2")]
    request = UpgradeRequest("GET", b"/ws/metrics?x=%20\xff", fields)
    assert request.get_all(b"x-a") == ["1", "2"]
    assert request.get(b"host") == "hé"
    assert b"x-a" in request
    assert b"x-b" not in request
    assert request.get(b"x-b") is None
    assert request.get_all(b"x-b") == []
    assert request.terms() is None
