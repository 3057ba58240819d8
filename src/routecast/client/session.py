"""`ClientSession`: a client's side of routecast.v1, without I/O: messages in, messages out.

One `ClientSession` lives as long as its client, over any number of connections:

- `opened` returns the messages for a new connection: they request each topic from its position.
- `receive` handles a message, and returns the messages to send because of it.
- `add` and `remove` return the messages to send on the open connection, if there is one.

A topic is the subscription or history of one id. It never shows an incomplete document: a delta
whose base is not the held position is dropped, and the topic requests a snapshot.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

import msgspec

from routecast.client.document import ReceivedDocument
from routecast.patch import apply
from routecast.protocol import (
    ClientMessage,
    DeltaOut,
    ErrorOut,
    Goodbye,
    HistoryOut,
    Position,
    Refresh,
    ServerMessage,
    SnapshotOut,
    Subscribe,
    TokenExpiring,
    Unsubscribe,
)

TopicMessage = SnapshotOut | DeltaOut | HistoryOut
# The error that the server sent for a topic.
Failure = ErrorOut | None


class Effect(Enum):
    """The effect of a message on a topic."""

    APPLIED = auto()
    IGNORED = auto()
    SUBSCRIBE_AGAIN = auto()  # it does not fit the document that is held


class Topic(Protocol):
    """The subscription or history of one id."""

    id: str
    failure: Failure

    def request(self) -> ClientMessage:
        """Return the message that requests it, from its position."""

    def receive(self, message: TopicMessage) -> Effect:
        """Apply a message."""

    @property
    def over(self) -> bool:
        """Whether no more messages come."""


class SubscribedView:
    """A subscription: `held` is the base of the next delta, `visible` the document for the user.

    They differ only after a reconnect to a node that lags behind: the visible document never goes
    back within an epoch.
    """

    over: Final = False

    def __init__(self, asked: Subscribe) -> None:
        self.id = asked.id
        self.asked = asked
        self.failure: Failure = None
        self.held: ReceivedDocument | None = None
        self.visible: ReceivedDocument | None = None
        self._awaiting_snapshot = False

    def request(self) -> Subscribe:
        """Request deltas from the position held; a snapshot after a delta that did not fit."""
        position = None if self._awaiting_snapshot or self.held is None else self.held.position
        return msgspec.structs.replace(self.asked, position=position)

    def receive(self, message: TopicMessage) -> Effect:
        """Apply a snapshot, or a delta from the position held."""
        if isinstance(message, HistoryOut):
            return Effect.IGNORED
        if isinstance(message, SnapshotOut):
            data = message.data
            self._awaiting_snapshot = False
        elif self.held is not None and _follows(message, self.held.position):
            data = apply(self.held.data, message.data)
        else:
            # Deltas that were sent before do not fit either: subscribe again only once.
            effect = Effect.IGNORED if self._awaiting_snapshot else Effect.SUBSCRIBE_AGAIN
            self._awaiting_snapshot = True
            return effect
        about = (message.timestamp, message.position, message.source, message.age_ms)
        self.held = ReceivedDocument(data, *about)
        if self.visible is not None and _before(message.position, self.visible.position):
            return Effect.IGNORED
        self.show(self.held)
        return Effect.APPLIED

    def show(self, held: ReceivedDocument) -> None:
        """Make a document visible."""
        self.visible, self.failure = held, None


def _follows(delta: DeltaOut, held: Position | None) -> bool:
    return held is not None and (held.epoch, held.seq) == (delta.position.epoch, delta.base)


def _before(position: Position, visible: Position | None) -> bool:
    return visible is not None and position.epoch == visible.epoch and position.seq < visible.seq


class ClientSession:
    """All topics of one client.

    `changed` is called with each topic that has changed. `new_token` is called when the token of
    the connection expires; it returns None if there is no new one.
    """

    def __init__(
        self,
        changed: Callable[[Topic], None],
        new_token: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._topics: dict[str, Topic] = {}
        self._changed = changed
        self._new_token = new_token
        self._open = False
        self.goodbye: Goodbye | None = None

    def opened(self) -> list[ClientMessage]:
        """Record a new connection; return the messages to send on it."""
        self._open = True
        self.goodbye = None
        return [topic.request() for topic in self._topics.values()]

    def closed(self) -> None:
        """Record that the connection is lost."""
        self._open = False

    def add(self, topic: Topic) -> list[ClientMessage]:
        """Add a topic; return the messages to send."""
        self._topics[topic.id] = topic
        return [topic.request()] if self._open else []

    def remove(self, topic: Topic) -> list[ClientMessage]:
        """Remove a topic; return the messages to send."""
        known = self._topics.pop(topic.id, None) is not None
        return [Unsubscribe(topic.id)] if known and self._open and not topic.over else []

    def receive(self, message: ServerMessage) -> list[ClientMessage]:
        """Handle a message; return the messages to send. Unknown ids are ignored."""
        match message:
            case Goodbye():
                self.goodbye = message
            case TokenExpiring():
                token = self._new_token()
                return [] if token is None else [Refresh(token)]
            case SnapshotOut() | DeltaOut() | HistoryOut():
                if topic := self._topics.get(message.id):
                    return self._deliver(topic, message)
            case ErrorOut(id=str(name)):
                if topic := self._topics.get(name):
                    topic.failure = message
                    if not message.retryable:
                        del self._topics[name]
                    self._changed(topic)
        return []

    def _deliver(self, topic: Topic, message: TopicMessage) -> list[ClientMessage]:
        match topic.receive(message):
            case Effect.APPLIED:
                if topic.over:
                    del self._topics[topic.id]
                self._changed(topic)
            case Effect.SUBSCRIBE_AGAIN:
                return [Unsubscribe(topic.id), topic.request()]
            case Effect.IGNORED:
                pass
        return []
