"""A client's side of routecast.v1, sans I/O: message in, what it holds afterwards, messages out.

One `ClientSession` lives as long as its client, over any number of connections:

- `opened` returns what to send on a new connection: each topic is asked for, from where it is.
- `receive` takes a message and returns what to send because of it.
- `add` and `remove` return what to send on the connection there is, if any.

A topic is what one id stands for. It never shows a document that it did not get whole: a delta
from any base but its own position is dropped, and it asks for a snapshot.
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
    ServerMessage,
    SnapshotOut,
    Subscribe,
    Unsubscribe,
)

News = SnapshotOut | DeltaOut | HistoryOut
# Why a topic has nothing for now, though the server is there: its code and its words.
Trouble = ErrorOut | None


class Effect(Enum):
    """What became of a message."""

    TAKEN = auto()
    IGNORED = auto()
    ASK_ANEW = auto()  # it does not fit what is held


class Topic(Protocol):
    """What one id stands for, and what is known of it."""

    id: str
    trouble: Trouble

    def request(self) -> ClientMessage:
        """Return what asks for it, from where it is."""

    def receive(self, message: News) -> Effect:
        """Take news of it."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""


class SubscribedView:
    """A subscription: `held` is what the server patches, `shown` what people see.

    The two differ only when another node, which lags behind, took over: what is shown never goes
    back within an epoch.
    """

    over: Final = False

    def __init__(self, asked: Subscribe) -> None:
        self.id = asked.id
        self.asked = asked
        self.trouble: Trouble = None
        self.held: ReceivedDocument | None = None
        self.shown: ReceivedDocument | None = None
        self._astray = False

    def request(self) -> Subscribe:
        """Ask from the position held; for all of it after a delta that did not fit."""
        position = None if self._astray or self.held is None else self.held.position
        return msgspec.structs.replace(self.asked, position=position)

    def receive(self, message: News) -> Effect:
        """Take a snapshot, or a delta from the position held."""
        if isinstance(message, HistoryOut):
            return Effect.IGNORED
        if isinstance(message, SnapshotOut):
            data = message.data
            self._astray = False
        elif self.held is not None and _follows(message, self.held.position):
            data = apply(self.held.data, message.data)
        else:
            # Of those that are on their way, none fits either: it asks once.
            effect = Effect.IGNORED if self._astray else Effect.ASK_ANEW
            self._astray = True
            return effect
        about = (message.timestamp, message.position, message.source, message.age_ms)
        self.held = ReceivedDocument(data, *about)
        if self.shown is not None and _before(message.position, self.shown.position):
            return Effect.IGNORED
        self.show(self.held)
        return Effect.TAKEN

    def show(self, held: ReceivedDocument) -> None:
        """Show a document as it is."""
        self.shown, self.trouble = held, None


def _follows(delta: DeltaOut, held: Position | None) -> bool:
    return held is not None and (held.epoch, held.seq) == (delta.position.epoch, delta.base)


def _before(position: Position, shown: Position | None) -> bool:
    return shown is not None and position.epoch == shown.epoch and position.seq < shown.seq


class ClientSession:
    """All topics of one client. `changed` is told of each that has news, good or bad."""

    def __init__(self, changed: Callable[[Topic], None]) -> None:
        self._topics: dict[str, Topic] = {}
        self._changed = changed
        self._open = False
        self.goodbye: Goodbye | None = None

    def opened(self) -> list[ClientMessage]:
        """A connection is there."""
        self._open = True
        self.goodbye = None
        return [topic.request() for topic in self._topics.values()]

    def closed(self) -> None:
        """The connection is gone."""
        self._open = False

    def add(self, topic: Topic) -> list[ClientMessage]:
        """Follow a topic."""
        self._topics[topic.id] = topic
        return [topic.request()] if self._open else []

    def remove(self, topic: Topic) -> list[ClientMessage]:
        """Follow it no longer."""
        known = self._topics.pop(topic.id, None) is not None
        return [Unsubscribe(topic.id)] if known and self._open and not topic.over else []

    def receive(self, message: ServerMessage) -> list[ClientMessage]:
        """Take a message. News of an id that is not known any more are ignored."""
        match message:
            case Goodbye():
                self.goodbye = message
            case SnapshotOut() | DeltaOut() | HistoryOut():
                if topic := self._topics.get(message.id):
                    return self._news(topic, message)
            case ErrorOut(id=str(name)):
                if topic := self._topics.get(name):
                    topic.trouble = message
                    if not message.retryable:
                        del self._topics[name]
                    self._changed(topic)
        return []

    def _news(self, topic: Topic, message: News) -> list[ClientMessage]:
        match topic.receive(message):
            case Effect.TAKEN:
                if topic.over:
                    del self._topics[topic.id]
                self._changed(topic)
            case Effect.ASK_ANEW:
                return [Unsubscribe(topic.id), topic.request()]
            case Effect.IGNORED:
                pass
        return []
