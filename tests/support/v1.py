"""A client of routecast.v1 for tests: it merges documents and checks every message.

It shares no code with Routecast: patches are applied as RFC 7396 says.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from tests.support.server import Server

Document = dict[str, Any]
JSON, MSGPACK = "routecast.v1.json", "routecast.v1.msgpack"
WAIT_SECONDS = 30.0


@dataclass
class Followed:
    """The state of one id: its document and position."""

    document: Document
    epoch: str
    seq: int
    source: str
    age_ms: int

    @property
    def position(self) -> Document:
        """The position, to resume with."""
        return {"epoch": self.epoch, "seq": self.seq}


class V1Client:
    """One connection. Each message is checked against those before it."""

    def __init__(
        self,
        stream: ClientConnection,
        held: dict[str, Followed] | None = None,
        seen: list[tuple[str, int, Document]] | None = None,
    ) -> None:
        """Continue with the state `held`; `seen` gets the id, seq and document of each message."""
        self.stream = stream
        self._packs = stream.subprotocol == MSGPACK
        self.held: dict[str, Followed] = {} if held is None else held
        self._seen = seen
        self.messages: list[Document] = []

    async def send(self, message: Any) -> None:
        """Send a message, or raw bytes or text."""
        if not isinstance(message, str | bytes):
            encode: Callable[[Any], Any] = msgspec.msgpack.encode if self._packs else json.dumps
            message = encode(message)
        await self.stream.send(message)

    async def subscribe(self, identity: str, **asked: Any) -> Document:
        """Subscribe; return the first message under the id."""
        await self.send({"type": "subscribe", "id": identity, **asked})
        return await self.receive_until(lambda message: message.get("id") == identity)

    async def receive(self, seconds: float = WAIT_SECONDS) -> Document:
        """Return the next message, after checking and merging it."""
        async with asyncio.timeout(seconds):
            data = await self.stream.recv()
        assert isinstance(data, bytes) is self._packs
        message: Document = msgspec.msgpack.decode(data) if self._packs else json.loads(data)
        self._take(message)
        self.messages.append(message)
        return message

    async def receive_until(
        self, good: Callable[[Document], bool], seconds: float = WAIT_SECONDS
    ) -> Document:
        """Return the first message that satisfies a condition."""
        async with asyncio.timeout(seconds):
            while not good(message := await self.receive()):
                pass
        return message

    async def follow_to(self, identity: str, seq: int) -> Followed:
        """Receive until the document under an id has reached a seq."""
        while identity not in self.held or self.held[identity].seq < seq:
            await self.receive()
        return self.held[identity]

    def _take(self, message: Document) -> None:
        if message["type"] not in ("snapshot", "delta"):
            return
        identity, position = message["id"], message["position"]
        before = self.held.get(identity)
        data = message["data"]
        if message["type"] == "snapshot":
            document = data
        else:
            assert before is not None, "a delta from nothing"
            assert (before.epoch, before.seq) == (position["epoch"], message["base"])
            document = merged(before.document, data)
        assert not has_nulls(document)
        if before is not None and before.epoch == position["epoch"]:
            assert before.seq <= position["seq"], "it went back"
        self.held[identity] = Followed(
            document, position["epoch"], position["seq"], message["source"], message["age_ms"]
        )
        if self._seen is not None:
            self._seen.append((identity, position["seq"], document))


@asynccontextmanager
async def v1_client(
    server: Server, subprotocol: str = JSON, query: str = "", **options: Any
) -> AsyncIterator[V1Client]:
    """Connect, and receive the `hello`."""
    async with connect(
        f"{server.ws_url}{query}",
        subprotocols=[subprotocol],  # type: ignore[list-item]  # -- a NewType of str
        max_size=None,
        **options,
    ) as stream:
        client = V1Client(stream)
        hello = await client.receive()
        assert hello["type"] == "hello"
        yield client


def merged(document: Any, patch: Any) -> Any:
    """Apply a merge patch (RFC 7396, section 2)."""
    if not isinstance(patch, dict):
        return patch
    target = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


def has_nulls(value: Any) -> bool:
    """Whether an object contains a null at any depth."""
    return isinstance(value, dict) and any(v is None or has_nulls(v) for v in value.values())


def without_nulls(value: Any) -> Any:
    """Return a document in the form of routecast.v1: without keys of unknown values."""
    if not isinstance(value, dict):
        return value
    return {name: without_nulls(v) for name, v in value.items() if v is not None}
