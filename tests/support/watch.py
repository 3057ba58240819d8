"""A watch reads the stream of a node until the end, and keeps every frame."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from tests.support.server import Server

Document = dict[str, Any]
Position = tuple[str, int]  # epoch, seq

INTERVAL: Final = 0.1
# A connection that is silent for this time, in seconds, is dead; comments come more often.
SILENCE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.05


@dataclass
class Watch:
    """All frames of one node's stream, over any number of connections."""

    node: Server
    frames: int = 0
    failures: int = 0  # error documents
    connections: int = 0
    position: Position | None = None
    seen: set[tuple[str, int, str]] = field(default_factory=set)  # epoch, seq, document
    wrong: list[str] = field(default_factory=list)

    async def run(self, http: httpx2.AsyncClient) -> None:
        """Read, and reconnect whenever the connection is lost. Never ends."""
        url = f"{self.node.url}/sse/metrics?interval={INTERVAL}"
        while True:
            try:
                async with http.stream("GET", url, timeout=SILENCE_SECONDS) as answer:
                    if answer.status_code == 200:
                        await self._read(answer)
            except httpx2.TransportError:
                pass
            await asyncio.sleep(PAUSE_SECONDS)

    async def _read(self, answer: httpx2.Response) -> None:
        self.connections += 1
        last: Position | None = None
        async for identity, document in _events(answer):
            self.frames += 1
            del document["timestamp"]
            if "error" in document:
                self.failures += 1
                continue
            epoch, _, seq = identity.rpartition(":")
            position = epoch, int(seq)
            if last is not None and last[0] == epoch and last[1] > position[1]:
                self.wrong.append(f"{self.node.url} went back from {last} to {position}")
            self.position = last = position
            self.seen.add((*position, text(document)))


def text(document: Document) -> str:
    """Return a document as text, which is equal if keys, their order and values are equal."""
    return json.dumps(document, ensure_ascii=False)


async def _events(answer: httpx2.Response) -> AsyncIterator[tuple[str, Document]]:
    """Read events with one line of data each; an id may be ""."""
    identity = ""
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            identity = value
        elif name == "data":
            yield identity, json.loads(value)
            identity = ""
