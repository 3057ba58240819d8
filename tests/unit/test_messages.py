"""Messages from clients: the same messages come out, however the bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate

from routecast.edge.ws.frames import WINDOW_BITS
from routecast.edge.ws.messages import MessageAssembler
from routecast.protocol import CloseCode
from tests.support.raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, deflate, frame

RESERVED_FOR_DEFLATE = 4
messages = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.binary(max_size=300)


def received(assembler: MessageAssembler, *pieces: bytes) -> list[str | bytes]:
    return [message for piece in pieces for message in assembler.receive(piece)]


@given(st.lists(messages, max_size=5), st.integers(1, 50), st.randoms())
def test_messages_survive_any_cut(sent: list[str | bytes], size: int, random: object) -> None:
    """Each message comes out once, whole and in order, with any frames and pieces."""
    data = b""
    for message in sent:
        body = message.encode() if isinstance(message, str) else message
        cut = random.randint(0, len(body))  # type: ignore[attr-defined]
        opcode = TEXT if isinstance(message, str) else BINARY
        data += frame(opcode, body[:cut], fin=False)
        data += frame(PING, b"in between") + frame(CONTINUATION, body[cut:])
    assembler = MessageAssembler([])
    assert received(assembler, *(data[at : at + size] for at in range(0, len(data), size))) == sent
    assert assembler.to_send() == frame(PONG, b"in between", masked=False) * len(sent)
    assert assembler.frames == 3 * len(sent)
    assert assembler.idle


def test_it_is_idle_only_between_messages() -> None:
    """A parser that is dropped inside a message would read the rest as a frame."""
    assembler = MessageAssembler([])
    data = frame(TEXT, b"a message in one frame")
    assert assembler.idle
    for at in range(1, len(data)):
        assert received(assembler, data[at - 1 : at]) == []
        assert not assembler.idle
    assert received(assembler, data[-1:]) == ["a message in one frame"]
    assert assembler.idle
    received(assembler, frame(TEXT, b"half of one ", fin=False))
    assert not assembler.idle


def test_deflated_messages_are_inflated() -> None:
    """No message needs the context of the one before."""
    assembler = MessageAssembler([PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)])
    packed = frame(TEXT, deflate(b"hello hello hello"), reserved=RESERVED_FOR_DEFLATE)
    assert received(assembler, packed, packed) == ["hello hello hello"] * 2


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"\xff"), CloseCode.NOT_UTF8),
        (frame(TEXT, b"\xff", fin=False), CloseCode.NOT_UTF8),
        (frame(TEXT, b"x" * 101), CloseCode.TOO_BIG),
        (frame(TEXT, b"x" * 60, fin=False) + frame(CONTINUATION, b"x" * 60), CloseCode.TOO_BIG),
        (frame(TEXT, b"x", masked=False), 1002),
        (frame(CONTINUATION, b"of nothing"), 1002),
        (frame(3, b"no such opcode"), 1002),
        (frame(TEXT, b"x", reserved=RESERVED_FOR_DEFLATE), 1002),
    ],
)
def test_a_broken_rule_ends_the_connection(data: bytes, code: int) -> None:
    """It ends before the end of the message, with the code of the rule."""
    assembler = MessageAssembler([], max_message_bytes=100)
    assert received(assembler, data) == []
    assert assembler.finished
    assert assembler.close_code == code
    assert assembler.to_send().startswith(bytes([0x80 | CLOSE]))


def test_a_close_is_answered_with_its_code() -> None:
    """Frames before the close are answered first."""
    assembler = MessageAssembler([])
    closing = (1000).to_bytes(2)
    assert received(assembler, frame(PING, b"x") + frame(CLOSE, closing)) == []
    pong, close = frame(PONG, b"x", masked=False), frame(CLOSE, closing, masked=False)
    assert assembler.to_send() == pong + close
    assert (assembler.finished, assembler.close_code) == (True, 1000)
