"""Versions: a view's document at one position, and the messages that bring a client to it.

Recent versions are kept as bases of patches: for the next version, for clients that fell behind,
and for clients that reconnect. If a client's base is not kept any more, it is sent a snapshot.
"""

from collections import OrderedDict
from typing import Any, Final

import msgspec
from msgspec import UNSET

from routecast.core.decision import SECOND
from routecast.core.document import EncodedDocument, error_document, finish
from routecast.core.message import Encoding, Message
from routecast.core.view import View
from routecast.patch import Document, diff, without_nulls
from routecast.protocol import (
    FETCH_FAILED,
    DeltaOut,
    ErrorCode,
    ErrorOut,
    Position,
    SnapshotOut,
    Source,
    rfc3339,
)

# The memory of all versions together, in bytes; the least recently used one is dropped first.
MAX_VERSION_BYTES: Final = 32 * 1024 * 1024
# About the bytes of a version besides its document and its view's filters. So at most 32,768
# versions are kept.
OVERHEAD: Final = 1_024
# A message that is younger than this, in microseconds, is sent to other members that need the same.
FRESH_MESSAGE: Final = SECOND // 20

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


# The stamps of the sums that a document was made of; () if they are unknown.
Stamps = tuple[int, ...]
# The base of a message, its encoding, and the interval that it names because it is stretched.
_MessageKey = tuple["Version | None", Encoding, float | None]


class DocumentState:
    """The numbers that a document was made of: their position, source and age.

    `time_key` is `View.time_key`; `as_of` is the time at which the numbers were known to be the
    newest, in microseconds since 1970.
    """

    __slots__ = ("as_of", "position", "source", "time_key")

    def __init__(self, position: Position, time_key: int, source: Source, as_of: int) -> None:
        self.position = position
        self.time_key = time_key
        self.source = source
        self.as_of = as_of

    def is_of(self, position: Position, source: Source) -> bool:
        """Whether the numbers have this position and source."""
        return self.position == position and self.source == source


class Version:
    """A view's document in one state. `state` is None if no source could answer."""

    __slots__ = (
        "body",
        "full",
        "made",
        "may_be_held",
        "messages",
        "number",
        "size",
        "stamps",
        "state",
        "view",
    )

    def __init__(
        self,
        view: View,
        number: int,
        made: int,
        state: DocumentState | None,
        body: bytes | None,
        stamps: Stamps,
    ) -> None:
        self.view = view
        self.number = number  # rises with each new version of any view
        self.made = made  # in microseconds since 1970
        self.state = state
        self.body = body  # the document as JSON; None once it is dropped
        self.stamps = stamps
        self.may_be_held = False  # whether a client may have it as its base
        # In bytes. The filters count for each version, because each may have its own copy of them:
        # a client that reconnects sends its view again.
        self.size = len(body or b"") + view.size + OVERHEAD
        self.messages: dict[_MessageKey, tuple[int, Message]] = {}
        # The document of the default stream, and when it was made.
        self.full: tuple[int, EncodedDocument] | None = None

    def still_valid_for(self, state: DocumentState) -> bool:
        """Whether a state gives this same document. If so, this version takes its `as_of`."""
        ours = self.state
        if ours is None or not ours.is_of(state.position, state.source):
            return False
        if ours.time_key != state.time_key:
            return False
        ours.as_of = state.as_of
        return True

    def still_holds(self, stamps: Stamps, time_key: int) -> bool:
        """Whether sums with these stamps give this same document for a time key."""
        if self.state is None or self.body is None or not stamps:
            return False
        return self.stamps == stamps and self.state.time_key == time_key

    def differs(self, base: "Version") -> bool:
        """Whether a client that has `base` must receive this version."""
        ours, theirs = self.state, base.state
        if ours is None or theirs is None:
            return ours is not theirs
        return self.body is not base.body or self.body is None or ours.source != theirs.source


class Versions:
    """Recent versions of all views."""

    def __init__(self, max_bytes: int = MAX_VERSION_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._number = 0
        self._newest: dict[View, Version] = {}
        self._held: OrderedDict[Version, None] = OrderedDict()
        self._by_position: dict[tuple[View, Position], Version] = {}

    def newest(self, view: View) -> Version | None:
        """Return the last version of a view, None if it is not kept."""
        version = self._newest.get(view)
        if version is not None:
            self._held.move_to_end(version)
        return version

    def drop_messages(self, view: View) -> None:
        """Drop the messages of a view that fewer clients follow now; bases of clients are kept.

        If other clients still follow it, their messages are made again.
        """
        newest = self._newest.get(view)
        if newest is not None and not newest.may_be_held:
            self._forget(newest)
        elif newest is not None:
            newest.messages.clear()
            newest.full = None

    def at_position(self, view: View, position: Position) -> Version | None:
        """Return the version that a client was sent at a position; None if it is not known."""
        version = self._by_position.get((view, position))
        if version is not None:
            self._held.move_to_end(version)
            version.may_be_held = True  # a client received it, from this process or another one
        return version

    def add(
        self,
        view: View,
        now: int,
        state: DocumentState | None,
        document: Document | None,
        stamps: Stamps = (),
    ) -> Version:
        """Add the newest document of a view; return its version.

        `state` and `document` are None if no source could answer. `stamps` are those of the sums
        that the document was made of (`Breakdown.stamp`).
        """
        body = None if document is None else _encode(document)
        return self._add(view, now, state, body, stamps)

    def carry(self, newest: Version, now: int, state: DocumentState) -> Version:
        """Record a newer state with the same document as the newest version; return its version.

        If no client was sent the newest version, that one gets the state. So commits that do not
        change a view's document do not displace the bases of other views.
        """
        if newest.may_be_held:
            return self._add(newest.view, now, state, newest.body, newest.stamps)
        before = newest.state
        if before is not None and self._by_position.get((newest.view, before.position)) is newest:
            del self._by_position[newest.view, before.position]
        newest.state, newest.full = state, None
        if newest.view.timeless:
            self._by_position[newest.view, state.position] = newest
        return newest

    def _add(
        self, view: View, now: int, state: DocumentState | None, body: bytes | None, stamps: Stamps
    ) -> Version:
        before = self._newest.get(view)
        if before is not None:
            if before.body == body:
                if state and before.state and before.state.is_of(state.position, state.source):
                    before.state, before.stamps = state, stamps  # only time has passed
                    return before
                body = before.body  # the same object: `differs` compares by identity
            before.messages.clear()
            before.full = None
            if not before.may_be_held:  # no client has it, so it is no base
                self._forget(before)
        self._number += 1
        version = Version(view, self._number, now, state, body, stamps)
        self._newest[view] = version
        self._held[version] = None
        self._bytes += version.size
        if state is not None and view.timeless:
            self._by_position[view, state.position] = version
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._held)))
        return version

    def _forget(self, version: Version) -> None:
        del self._held[version]
        self._bytes -= version.size
        if self._newest.get(version.view) is version:
            del self._newest[version.view]
        if version.state is not None:
            view_position = version.view, version.state.position
            if self._by_position.get(view_position) is version:
                del self._by_position[view_position]
        version.body = version.full = None
        version.messages.clear()


def message(
    version: Version,
    base: Version | None,
    encoding: Encoding,
    now: int,
    stretched: float | None = None,
) -> Message | None:
    """Return the message that brings a client from `base` to a version, with an empty id.

    `base` is None for a client that holds nothing. `stretched` is the interval, in seconds, that
    the subscription really gets, if that is longer than the requested one.

    The message is a delta if the base is kept and its patch is smaller than the document, otherwise
    a snapshot. It is an error if no source could answer. Returns None if the version was dropped.
    """
    version.may_be_held = True
    key = base, encoding, stretched
    made, held = version.messages.get(key, (0, None))
    if held is None or not 0 <= now - made < FRESH_MESSAGE:
        made_now = _message(version, base, encoding, now, stretched)
        if made_now is None:
            return None
        held = Message(encoding, *made_now)
        version.messages[key] = now, held
    return held


def _message(
    version: Version, base: Version | None, encoding: Encoding, now: int, stretched: float | None
) -> tuple[SnapshotOut | DeltaOut | ErrorOut, int] | None:
    """Return the message, and the bytes by which its patch is smaller than the document."""
    state = version.state
    if state is None:
        error = ErrorOut(id="", code=ErrorCode.UNAVAILABLE, message=FETCH_FAILED, retryable=True)
        return error, 0
    if version.body is None:
        return None
    document = without_nulls(_decode(version.body))
    age = max(0, now - state.as_of) // 1000
    if base is not None and base.body is not None and _can_patch(base.state, state):
        patch = diff(without_nulls(_decode(base.body)), document)
        saved = len(encoding.encode(document)) - len(encoding.encode(patch))
        if saved > 0:
            assert base.state is not None
            delta = DeltaOut(
                id="",
                base=base.state.position.seq,
                position=state.position,
                source=state.source,
                age_ms=age,
                data=patch,
                timestamp=rfc3339(now),
                interval=UNSET if stretched is None else stretched,
            )
            return delta, saved
    snapshot = SnapshotOut(
        id="",
        position=state.position,
        source=state.source,
        age_ms=age,
        data=document,
        timestamp=rfc3339(now),
        interval=UNSET if stretched is None else stretched,
    )
    return snapshot, 0


def full_document(version: Version, now: int) -> EncodedDocument | None:
    """Return a version's document for the default stream; None if the version was dropped."""
    if version.full is None or not 0 <= now - version.full[0] < FRESH_MESSAGE:
        state = version.state
        if state is None:
            document = error_document(now)
        elif version.body is None:
            return None
        else:
            document = finish(version.body[:-1], now, state.source, state.position)
        version.full = now, document
    return version.full[1]


def _can_patch(base: DocumentState | None, to: DocumentState) -> bool:
    """Whether a patch may lead from one state to another: not back, and within one epoch."""
    if base is None:
        return False
    before, after = base.position, to.position
    return before.epoch == after.epoch and before.seq <= after.seq
