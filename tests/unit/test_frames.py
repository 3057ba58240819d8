"""WebSocket frames: a client decodes the document from them, plain or deflated."""

import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from routecast.core.document import EncodedDocument
from routecast.edge.ws.frames import (
    DEFLATE_FROM,
    PING,
    PONG_HEAD,
    PONG_SIZE,
    WINDOW_BITS,
    deflated,
    plain,
)

SMALL = b'{"total_decisions":1}'
LARGE = b'{"%s":1}' % (b"strategy" * 200)


def client(*, inflates: bool) -> ClientProtocol:
    """Return a client of another implementation, after its handshake."""
    protocol = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN)
    if inflates:
        protocol.extensions = [PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)]
    return protocol


def read(protocol: ClientProtocol, data: bytes) -> list[tuple[Opcode, bytes]]:
    protocol.receive_data(data)
    frames = protocol.events_received()
    assert all(isinstance(frame, WireFrame) and frame.fin for frame in frames)
    return [(frame.opcode, bytes(frame.data)) for frame in frames if isinstance(frame, WireFrame)]


@pytest.mark.parametrize("body", [SMALL, LARGE, "{“名”:1}".encode()])
def test_every_client_reads_the_same(body: bytes) -> None:
    """Each client can read the shared bytes again and again."""
    frame = EncodedDocument(body, None, None)
    inflating, other = client(inflates=True), client(inflates=False)
    for _ in range(3):
        assert read(inflating, deflated(frame)) == [(Opcode.TEXT, body)]
        assert read(other, plain(frame)) == [(Opcode.TEXT, body)]


def test_bytes_are_made_once() -> None:
    """The second connection gets the same bytes object as the first."""
    frame = EncodedDocument(LARGE, None, None)
    assert deflated(frame) is deflated(frame)
    assert plain(frame) is plain(frame)


def test_only_large_frames_are_deflated() -> None:
    """A small frame is sent plain to all clients; a large one becomes smaller."""
    assert len(SMALL) < DEFLATE_FROM < len(LARGE)
    small, large = EncodedDocument(SMALL, None, None), EncodedDocument(LARGE, None, None)
    assert deflated(small) is plain(small)
    assert len(deflated(large)) < len(plain(large)) / 2


def test_the_usual_answer_to_a_ping_is_known_by_its_bytes() -> None:
    """Most of what clients send are such pongs, so they need no parser."""
    protocol = client(inflates=False)
    read(protocol, PING)
    (answer,) = protocol.data_to_send()
    assert len(answer) == PONG_SIZE
    assert answer.startswith(PONG_HEAD)
