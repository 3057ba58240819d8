"""Messages as shared bytes: around each client's id, plain or deflated, they are whole messages."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.message import ENCODINGS, JSON, Encoding, Message
from routecast.edge.wire import MAX_IDS, spliced, spliced_deflated
from routecast.protocol import DeltaOut, ErrorOut, Position, SnapshotOut, _Message
from tests.unit.test_wire import client, read

POSITION = Position("2172da84ecb2c9f1", 4700)
# A document with what is looked for when a message is cut in two.
TRICKY = {'"id":""': {"id": "", "\xa2id\xa0": 1}, "id": ""}
LARGE = {f"strategy-{number}": {"count": number, "avg_cost": 0.0025} for number in range(50)}
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)


def messages() -> dict[str, _Message]:
    shared = {"position": POSITION, "source": "live", "age_ms": 0, "timestamp": "now"}
    return {
        "snapshot": SnapshotOut(id="", data=LARGE, **shared),
        "delta": DeltaOut(id="", base=4699, data=TRICKY, **shared),
        "error": ErrorOut(id="", code="unavailable", message='"id":"" ☂', retryable=True),
    }


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
@pytest.mark.parametrize("kind", messages())
@given(identity=ids)
def test_the_id_is_spliced_in(encoding: Encoding, kind: str, identity: str) -> None:
    """Byte by byte what encoding the message with that id gives."""
    whole = messages()[kind]
    expected = encoding.encode(msgspec.structs.replace(whole, id=identity))
    message = Message(encoding, whole)  # type: ignore[arg-type]  # -- one of the server's
    assert message.body(identity) == expected
    ((opcode, data),) = read(client(inflates=False), spliced(message, identity))
    assert (opcode.name == "BINARY", data) == (encoding.binary, expected)
    ((opcode, data),) = read(client(inflates=True), spliced_deflated(message, identity))
    assert (opcode.name == "BINARY", data) == (encoding.binary, expected)


def test_clients_of_one_id_share_their_bytes() -> None:
    """The second is given the very bytes of the first; of strange ids few are kept."""
    message = Message(JSON, messages()["snapshot"])  # type: ignore[arg-type]  # -- one of the server's
    for make, kept in ((spliced, message.plain), (spliced_deflated, message.deflated)):
        assert make(message, "main") is kept["main"]
        for number in range(10 * MAX_IDS):
            make(message, f"{number}")
        assert len(kept) <= MAX_IDS + 1


def test_only_what_gains_is_deflated() -> None:
    """A short message is sent as it is; a long one shrinks, its id being but a small part."""
    shared = messages()
    small = Message(JSON, ErrorOut(id="", code="x", message="y", retryable=True))
    large = Message(JSON, shared["snapshot"])  # type: ignore[arg-type]  # -- one of the server's
    assert spliced_deflated(small, "main") == spliced(small, "main")
    assert len(spliced_deflated(large, "main")) < len(spliced(large, "main")) / 2
