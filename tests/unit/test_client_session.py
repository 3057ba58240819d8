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
    Refresh,
    ServerMessage,
    SnapshotOut,
    Subscribe,
    TokenExpiring,
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
    """The client's merge gives the golden document, from JSON and from msgpack."""
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
    """Every message of a server is accepted; one for an unknown id changes nothing."""
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
def test_it_sends_the_golden_subscribes(name: str, asked: Subscribe) -> None:
    """It sends them again on the next connection, with the position that it holds."""
    following = Following(asked)
    wanted = GOLDEN[name]["message"]
    if position := wanted.get("position"):
        following.receive(snapshot(position["seq"], {}, position["epoch"]))
    following.session.closed()
    assert [msgspec.to_builtins(message) for message in following.session.opened()] == [wanted]


@pytest.mark.parametrize(
    ("token", "sent"), [(None, []), ("new", [Refresh("new")])], ids=["none", "new"]
)
def test_it_refreshes_a_token_that_expires(token: str | None, sent: list[Refresh]) -> None:
    """It asks for a new token; without one it sends nothing."""
    session = ClientSession(lambda _: None, lambda: token)
    session.opened()
    assert session.receive(TokenExpiring(30_000)) == sent


# -- positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [delta(2, 3, {"a": 9}), delta(0, 3, {"a": 9}), delta(1, 2, {"a": 9}, epoch="other")]
)
def test_a_delta_from_another_base_is_never_applied(following: Following, wrong: DeltaOut) -> None:
    """It subscribes again, once; deltas that follow the wrong one are ignored."""
    following.receive(snapshot(1, {"a": 1}))
    assert following.receive(wrong) == [Unsubscribe("main"), Subscribe("main")]
    assert following.receive(delta(3, 4, {"a": 10})) == []
    assert following.visible.data == {"a": 1}
    following.receive(snapshot(5, {"a": 11}))
    following.receive(delta(5, 6, {"a": 12}))
    assert following.visible.data == {"a": 12}
    assert len(following.news) == 3


def test_a_delta_before_any_snapshot_is_never_applied(following: Following) -> None:
    """Without a document, a delta makes it subscribe again."""
    assert following.receive(delta(0, 1, {"a": 1})) == [Unsubscribe("main"), Subscribe("main")]
    assert following.view.visible is None


def test_the_same_position_may_come_again(following: Following) -> None:
    """A window moves also without new decisions."""
    following.receive(snapshot(1, {"a": 1}))
    following.receive(delta(1, 1, {"a": 2}))
    following.receive(delta(1, 1, {"a": 3}))
    assert following.visible.data == {"a": 3}


def test_the_visible_document_never_goes_back(following: Following) -> None:
    """Documents of a node that lags are applied, and visible once it has caught up."""
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
    """Return a merge patch that need not be the smallest."""
    changed: Document = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            changed[name] = {key: None for key in old if key not in value} | value
        elif value != old:
            changed[name] = value
    return changed


@given(st.lists(documents, min_size=2, max_size=6), st.data())
def test_after_any_loss_it_shows_a_document_of_the_server(
    history: list[Document], data: st.DataObject
) -> None:
    """With any bases, positions and losses, the visible document is that of its position."""
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


def test_a_temporary_error_leaves_the_subscription(following: Following) -> None:
    """`failure` is set until the next document."""
    following.receive(snapshot(1, {}))
    following.receive(ErrorOut(id="main", code="unavailable", message="no", retryable=True))
    assert following.view.failure is not None
    following.receive(delta(1, 2, {}))
    assert following.view.failure is None


def test_a_final_error_ends_the_subscription(following: Following) -> None:
    """The client neither subscribes again nor unsubscribes."""
    following.receive(ErrorOut(id="main", code="bad_request", message="no", retryable=False))
    assert following.news == [following.view]
    assert following.session.remove(following.view) == []
    assert following.session.opened() == []


def test_goodbye_is_kept_until_the_next_connection(following: Following) -> None:
    """The code that opens connections reads it."""
    following.receive(Goodbye(1012, 250))
    assert following.session.goodbye == Goodbye(1012, 250)
    following.session.closed()
    following.session.opened()
    assert following.session.goodbye is None


def test_a_removed_view_is_unsubscribed_on_an_open_connection(following: Following) -> None:
    """Messages for it that were on their way are ignored."""
    assert following.session.remove(following.view) == [Unsubscribe("main")]
    assert following.receive(snapshot(1, {})) == []
    assert following.news == []
    following.session.add(following.view)
    following.session.closed()
    assert following.session.remove(following.view) == []
