"""Tests of `HttpProtocol`: requests that are cut at every byte, which a socket would not do."""

import asyncio
import re
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from routecast.edge.http.http_edge import HttpEdge
from routecast.edge.http.http_protocol import HttpProtocol
from routecast.edge.proxies import Proxies
from routecast.instruments import Instruments
from tests.support.hostile_requests import CORPUS, Hostile

# Answers to these do not depend on whether an earlier one was sent.
NAMES = re.compile("upgrade (to|in)|offers|trailer")
SMALL = [case for case in CORPUS if NAMES.search(case.name)]
SMALL = [case for case in SMALL if sum(map(len, case.sent)) < 700]


class Wire(asyncio.Transport):
    """A transport that keeps the bytes that were written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data

    def write_eof(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Do nothing: the test feeds as much as one read may bring."""

    def resume_reading(self) -> None:
        """Do nothing, as in `pause_reading`."""


class RecordingApp:
    """An application that answers every request, and remembers it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        self.requests.append((scope["method"], scope["path"], body))
        assert (b"x", b"1") not in scope["headers"]  # a trailer of the corpus
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})


class Talk:
    """Feeds bytes to connections of one server."""

    def __init__(self) -> None:
        self._app = RecordingApp()
        self._config = uvicorn.Config(self._app, log_config=None, lifespan="off")
        self._config.load()
        self._edge = HttpEdge(Instruments(), Proxies(""), keep_alive=75)
        self._state = ServerState()

    async def __call__(self, *pieces: bytes) -> tuple[list[tuple[str, str, bytes]], int, bool]:
        """Return the requests in the pieces, the number of answers, and whether it was closed."""
        protocol = HttpProtocol(
            self._edge, config=self._config, server_state=self._state, app_state={}
        )
        wire = Wire()
        protocol.connection_made(wire)
        for piece in pieces:
            protocol.data_received(piece)
            await asyncio.sleep(0)
        while self._state.tasks:
            await asyncio.gather(*self._state.tasks)
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        requests, self._app.requests = self._app.requests, []
        return requests, wire.written.count(b"HTTP/1.1 "), wire.closed


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in SMALL])
async def test_cuts_make_no_difference(case: Hostile) -> None:
    """The same bytes give the same requests, and no part of a body becomes a request."""
    talk = Talk()
    data = b"".join(case.pieces("127.0.0.1:1"))
    whole = await talk(data)
    requests, answers, _ = whole
    assert answers == len(case.statuses)
    assert all(path in ("/v1/decisions", "/ws/metrics", "/health") for _, path, _ in requests)
    for cut in range(1, len(data)):
        assert await talk(data[:cut], data[cut:]) == whole, cut
    assert await talk(*(data[at : at + 1] for at in range(len(data)))) == whole
