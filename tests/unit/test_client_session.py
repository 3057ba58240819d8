"""The client's session of routecast.v1: it only ever holds documents that the server had."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.client.document import ReceivedDocument
from routecast.client.session import ClientSession, SubscribedView, Topic
from routecast.protocol import (
    DeltaOut,
    ErrorOut,
    Filters,
    Goodbye,
    Position,
    ServerMessage,
    SnapshotOut,
    Subscribe,
    Unsubscribe,
)
from tests.support.wire import GOLDEN

Document = dict[str, Any]


def snapshot(seq: int, data: Document, epoch: str = "e") -> SnapshotOut:
    return SnapshotOut("main", Position(epoch, seq), "live", 0, data, f"at {seq}")


def delta(base: int, seq: int, data: Document, epoch: str = "e") -> DeltaOut:
    return DeltaOut("main", base, Position(epoch, seq), "live", 0, data, f"at {seq}")


class Following:
    """A session with one view on an open connection."""

    def __init__(self, asked: Subscribe | None = None) -> None:
        self.news: list[Topic] = []
        self.session = ClientSession(self.news.append)
        self.view = SubscribedView(asked or Subscribe("main"))
        self.session.opened()
        self.session.add(self.view)

    def receive(self, message: ServerMessage) -> list[Any]:
        return self.session.receive(message)

    @property
    def visible(self) -> ReceivedDocument:
        assert self.view.visible is not None
        return self.view.visible


@pytest.fixture
def following() -> Following:
    return Following()


# -- golden messages ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, case in GOLDEN.items() if "before" in case])
def test_golden_delta_leads_to_its_document(name: str, following: Following) -> None:
    """By the client's own merge, from the document before; as JSON and as msgpack."""
    case = GOLDEN[name]
    message = msgspec.convert(case["message"], ServerMessage)
    assert isinstance(message, DeltaOut)
    before = snapshot(message.base, case["before"], message.position.epoch)
    following.receive(before)
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(case["message"]), type=ServerMessage)
    assert packed == message
    assert following.receive(packed) == []
    about = (message.timestamp, message.position, message.source, message.age_ms)
    assert following.visible == ReceivedDocument(case["after"], *about)
    assert before.data == case["before"]


@pytest.mark.parametrize("name", [n for n, c in GOLDEN.items() if c["direction"] == "server"])
def test_golden_messages_are_understood(name: str, following: Following) -> None:
    """None is a surprise; what is for an id that is not known changes nothing."""
    message = msgspec.convert(GOLDEN[name]["message"], ServerMessage)
    answers = following.receive(message)
    assert bool(answers) == isinstance(message, DeltaOut)
    if isinstance(message, SnapshotOut):
        assert following.visible.data == GOLDEN[name]["message"]["data"]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("subscribe", Subscribe("main")),
        (
            "subscribe-all",
            Subscribe(
                "main",
                ["total_decisions", "cost", "latency_ms"],
                Filters(["hybrid", "complexity"], ["gemini"], ["gemini-2.5-pro"], ["default"]),
                "1h",
                0.5,
            ),
        ),
    ],
)
def test_golden_subscribes_are_what_it_sends(name: str, asked: Subscribe) -> None:
    """And again on the next connection, from the position it holds."""
    following = Following(asked)
    wanted = GOLDEN[name]["message"]
    if position := wanted.get("position"):
        following.receive(snapshot(position["seq"], {}, position["epoch"]))
    following.session.closed()
    assert [msgspec.to_builtins(message) for message in following.session.opened()] == [wanted]


# -- positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [delta(2, 3, {"a": 9}), delta(0, 3, {"a": 9}), delta(1, 2, {"a": 9}, epoch="other")]
)
def test_a_delta_from_another_base_is_never_applied(following: Following, wrong: DeltaOut) -> None:
    """It asks for all of it, once; what follows the wrong one does not count either."""
    following.receive(snapshot(1, {"a": 1}))
    assert following.receive(wrong) == [Unsubscribe("main"), Subscribe("main")]
    assert following.receive(delta(3, 4, {"a": 10})) == []
    assert following.visible.data == {"a": 1}
    following.receive(snapshot(5, {"a": 11}))
    following.receive(delta(5, 6, {"a": 12}))
    assert following.visible.data == {"a": 12}
    assert len(following.news) == 3


def test_a_delta_before_any_snapshot_is_never_applied(following: Following) -> None:
    """There is nothing it could change."""
    assert following.receive(delta(0, 1, {"a": 1})) == [Unsubscribe("main"), Subscribe("main")]
    assert following.view.visible is None


def test_the_same_position_may_come_again(following: Following) -> None:
    """Windows slide though nothing was decided."""
    following.receive(snapshot(1, {"a": 1}))
    following.receive(delta(1, 1, {"a": 2}))
    following.receive(delta(1, 1, {"a": 3}))
    assert following.visible.data == {"a": 3}


def test_what_is_shown_never_goes_back(following: Following) -> None:
    """A node that lags behind may take over: it is followed, and shown once it has caught up."""
    following.receive(snapshot(5, {"a": 5}))
    following.receive(snapshot(3, {"a": 3}))
    following.receive(delta(3, 4, {"a": 4}))
    assert following.visible.data == {"a": 5}
    following.receive(delta(4, 6, {"a": 6}))
    assert following.visible.data == {"a": 6}
    following.receive(snapshot(1, {"a": 1}, epoch="new"))
    assert following.visible.data == {"a": 1}


documents = st.dictionaries(
    st.sampled_from("abc"), st.integers(0, 3) | st.dictionaries(st.sampled_from("xy"), st.just(1))
)


def patch(before: Document, after: Document) -> Document:
    """Return a merge patch, as simple as may be."""
    changed: Document = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            changed[name] = {key: None for key in old if key not in value} | value
        elif value != old:
            changed[name] = value
    return changed


@given(st.lists(documents, min_size=2, max_size=6), st.data())
def test_whatever_is_lost_it_shows_what_the_server_had(
    history: list[Document], data: st.DataObject
) -> None:
    """Frames from any base to any position, some lost: the document is that of its position."""
    following = Following()
    places = st.integers(0, len(history) - 1)
    for _ in range(12):
        base, seq = data.draw(places), data.draw(places)
        if data.draw(st.booleans()):
            following.receive(snapshot(seq, history[seq]))
        else:
            following.receive(delta(base, seq, patch(history[base], history[seq])))
        if (visible := following.view.visible) is not None:
            assert visible.position is not None
            assert visible.data == history[visible.position.seq]


# -- errors, ends -------------------------------------------------------------------------------


def test_an_error_that_may_pass_leaves_the_subscription(following: Following) -> None:
    """It is told as trouble, until the next document."""
    following.receive(snapshot(1, {}))
    following.receive(ErrorOut(id="main", code="unavailable", message="no", retryable=True))
    assert following.view.failure is not None
    following.receive(delta(1, 2, {}))
    assert following.view.failure is None


def test_an_error_that_stays_ends_the_subscription(following: Following) -> None:
    """It is not asked for again, and its id is not unsubscribed."""
    following.receive(ErrorOut(id="main", code="bad_request", message="no", retryable=False))
    assert following.news == [following.view]
    assert following.session.remove(following.view) == []
    assert following.session.opened() == []


def test_goodbye_is_kept_until_the_next_connection(following: Following) -> None:
    """Whoever opens connections asks for it."""
    following.receive(Goodbye(1012, 250))
    assert following.session.goodbye == Goodbye(1012, 250)
    following.session.closed()
    following.session.opened()
    assert following.session.goodbye is None


def test_what_is_left_is_unsubscribed_where_there_is_a_connection(following: Following) -> None:
    """And news of it that were on their way are nobody's."""
    assert following.session.remove(following.view) == [Unsubscribe("main")]
    assert following.receive(snapshot(1, {})) == []
    assert following.news == []
    following.session.add(following.view)
    following.session.closed()
    assert following.session.remove(following.view) == []
