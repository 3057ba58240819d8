"""Messages of routecast.v1 as shared bytes: with each client's id they are whole messages."""

import gc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate

from routecast.core.message import (
    ENCODINGS,
    JSON,
    MAX_IDS,
    MSGPACK,
    WINDOW_BYTES,
    Encoding,
    Message,
)
from routecast.edge.ws.frames import MAX_VARIANTS, WINDOW_BITS, deflated, plain
from routecast.protocol import DeltaOut, ErrorOut, Position, ServerMessage, SnapshotOut
from tests.unit.test_frames import client, read

POSITION = Position("2172da84ecb2c9f1", 4700)
# A document with the bytes at which a message is split for its id.
TRICKY = {'"id":""': {"id": "", "\xa2id\xa0": 1}, "id": ""}
LARGE = {f"strategy-{number}": {"count": number, "avg_cost": 0.0025} for number in range(50)}
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)


def messages() -> dict[str, ServerMessage]:
    shared: Any = {"position": POSITION, "source": "live", "age_ms": 0, "timestamp": "now"}
    return {
        "snapshot": SnapshotOut(id="", data=LARGE, **shared),
        "delta": DeltaOut(id="", base=4699, data=TRICKY, **shared),
        "error": ErrorOut(id="", code="unavailable", message='"id":"" ☂', retryable=True),
    }


def reading(*, inflates: bool) -> ClientProtocol:
    """Return a client that keeps the context of its messages, as clients do."""
    protocol = client(inflates=False)
    if inflates:
        protocol.extensions = [PerMessageDeflate(False, True, WINDOW_BITS, WINDOW_BITS)]
    return protocol


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
@pytest.mark.parametrize("kind", messages())
@given(identity=ids)
def test_the_id_is_spliced_in(encoding: Encoding, kind: str, identity: str) -> None:
    """The bytes are those of encoding the message with the id."""
    whole = messages()[kind]
    expected = encoding.encode(msgspec.structs.replace(whole, id=identity))
    message = Message(encoding, whole)
    named = message.for_id(identity)
    assert named.body == expected
    ((opcode, data),) = read(client(inflates=False), plain(named))
    assert (opcode.name == "BINARY", data) == (encoding.binary, expected)
    packed = deflated(named)
    for protocol in (client(inflates=True), reading(inflates=True)):
        ((opcode, data),) = read(protocol, packed)
        assert (opcode.name == "BINARY", data) == (encoding.binary, expected)


@given(st.lists(st.tuples(st.sampled_from(["snapshot", "delta", "error"]), ids), max_size=40))
def test_each_client_can_decompress_its_messages(said: list[tuple[str, str]]) -> None:
    """Kinds, ids and order may be any; a message may refer to the last one of its client."""
    shared = {kind: Message(JSON, message) for kind, message in messages().items()}
    for leave_out in (0, 2, 3):  # three clients with different messages
        protocol, before = reading(inflates=True), None
        for number, (kind, identity) in enumerate(said, 1):
            if leave_out and not number % leave_out:
                continue
            message = shared[kind]
            named = message.for_id(identity)
            data = deflated(named, before)
            ((_, body),) = read(protocol, data)
            assert body == named.body
            if data is not plain(named):
                before = named.sent


def test_a_repeated_message_is_compressed_by_the_last_one() -> None:
    """A message like the one before it becomes very small."""
    one, two = (Message(JSON, messages()["delta"]) for _ in range(2))
    before = one.for_id("main")
    first = deflated(before)
    second = deflated(two.for_id("main"), before.sent)
    assert len(second) < len(first) / 5


def test_a_large_message_is_compressed_once_for_all() -> None:
    """It cannot refer to the one before; the next message refers to its end."""
    data = {f"strategy-{number}": {"count": number * 7919} for number in range(2_000)}
    shared: Any = {"position": POSITION, "source": "live", "age_ms": 0, "timestamp": "now"}
    large = Message(JSON, SnapshotOut(id="", data=data, **shared)).for_id("main")
    assert len(large.body) > WINDOW_BYTES
    small = Message(JSON, messages()["snapshot"]).for_id("main")
    protocol, before = reading(inflates=True), None
    for named in (small, large, small, large, large, small):
        packed = deflated(named, before)
        ((_, body),) = read(protocol, packed)
        assert body == named.body
        assert named is small or packed is deflated(large)
        before = named.sent
    assert len(large.sent.end) == WINDOW_BYTES


def test_clients_of_one_id_share_their_bytes() -> None:
    """The second client gets the same bytes object; few unusual ids are kept."""
    message, other = (Message(JSON, messages()["snapshot"]) for _ in range(2))
    named, before = message.for_id("main"), other.for_id("main").sent
    assert plain(named) is plain(named)
    for last in (None, before):
        first = deflated(named, last)
        assert deflated(named, last) is first
    for number in range(10 * MAX_IDS):
        message.for_id(f"{number}")
        deflated(named, other.for_id(f"{number}").sent)
    assert len(message.by_id) <= MAX_IDS + 1
    assert len(named.forms) <= MAX_VARIANTS + 2


def test_messages_are_freed_at_once() -> None:
    """Reference counts free them; the garbage collector would find them only after hours."""
    gc.collect()
    gc.disable()
    try:
        for message in messages().values():
            shared = Message(JSON, message)
            for identity in ("main", "other"):
                deflated(shared.for_id(identity), shared.for_id("main").sent)
            del shared
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_only_large_messages_are_deflated() -> None:
    """A short message is sent plain; a long one becomes smaller, and its id matters little."""
    for encoding in (JSON, MSGPACK):
        small = Message(encoding, ErrorOut(id="", code="x", message="y", retryable=True))
        large = Message(encoding, messages()["snapshot"])
        for message, gains in ((small, False), (large, True)):
            named = message.for_id("main")
            packed = deflated(named)
            assert (packed is plain(named)) is not gains
            assert (len(packed) < len(plain(named)) / 2) is gains


def test_integers_beyond_64_bits() -> None:
    """JSON has them exactly; MessagePack cannot, and has floats."""
    large = {"tokens": {"input": 2**80 + 1, "output": 2**64 - 1}, "series": [[2**70, 3, None]]}
    shared: Any = {"position": POSITION, "source": "live", "age_ms": 0, "timestamp": "now"}
    snapshot = SnapshotOut(id="", data=large, **shared)
    text = Message(JSON, snapshot).for_id("a").body
    assert msgspec.json.decode(text)["data"] == large
    read = msgspec.msgpack.decode(Message(MSGPACK, snapshot).for_id("a").body)
    assert read["data"] == {
        "tokens": {"input": float(2**80), "output": 2**64 - 1},
        "series": [[float(2**70), 3, None]],
    }
    assert (read["type"], read["id"]) == ("snapshot", "a")
