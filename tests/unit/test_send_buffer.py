"""The send buffer: the messages that wait for the bus, within its limit."""

from hypothesis import given
from hypothesis import strategies as st

from routecast.adapters.bus.send_buffer import (
    BATCH_BYTES,
    MAX_WAITING_BYTES,
    BusMessage,
    DropOldestBuffer,
)
from routecast.protocol import Position


def message(seq: int, size: int = 0) -> BusMessage:
    return BusMessage(Position("e", seq), bytes(size))


def seqs(messages: list[BusMessage]) -> list[int]:
    return [one.position.seq for one in messages]


def test_messages_come_out_in_order() -> None:
    """Each comes out once."""
    outbox = DropOldestBuffer()
    for seq in range(10):
        outbox.put(message(seq))
    assert seqs(outbox.take()) == list(range(10))
    assert not outbox
    assert outbox.take() == []


def test_a_batch_is_limited_in_bytes() -> None:
    """A message larger than the limit is a batch of its own."""
    outbox = DropOldestBuffer()
    for seq in range(3):
        outbox.put(message(seq, 2 * BATCH_BYTES))
    assert seqs(outbox.take()) == [0]
    assert seqs(outbox.take()) == [1]


def test_messages_that_are_put_back_come_first() -> None:
    """They keep their order, and come before later messages."""
    outbox = DropOldestBuffer()
    outbox.put(message(1))
    outbox.put(message(2))
    taken = outbox.take()
    outbox.put(message(3))
    outbox.put_back(taken)
    assert seqs(outbox.take()) == [1, 2, 3]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, MAX_WAITING_BYTES // 3)),
            st.tuples(st.sampled_from(["take", "take and put back"]), st.just(0)),
        ),
        max_size=40,
    )
)
def test_oldest_are_dropped_and_counted(steps: list[tuple[str, int]]) -> None:
    """The rest is within the limit and the newest, and every other message was sent or counted."""
    dropped: list[None] = []
    outbox = DropOldestBuffer(lambda: dropped.append(None))
    put = sent = 0
    for step, size in steps:
        if step == "put":
            outbox.put(message(put, size))
            put += 1
        else:
            taken = outbox.take()
            if step == "take":
                sent += len(taken)
            else:
                outbox.put_back(taken)
        assert put == sent + len(outbox) + len(dropped)
    left: list[BusMessage] = []
    while outbox:
        left += outbox.take()
    assert sum(one.size for one in left) <= MAX_WAITING_BYTES
    assert seqs(left) == list(range(put - len(left), put))
