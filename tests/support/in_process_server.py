"""A real server in a thread of this process, so that a test can reach its engines."""

import asyncio
import socket
import sys
import threading
from collections.abc import Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import uvicorn

from routecast.edge.http.fast_path import FastPathHttpProtocol
from routecast.edge.http.http_edge import HttpEdge
from routecast.edge.proxies import Proxies
from routecast.server.app import create_app
from routecast.server.config import Settings
from routecast.server.engines import Engines
from routecast.server.services import Services
from tests.support.server import Edge

T = TypeVar("T")

START_SECONDS = 30.0


class _ServerWithStartEvent(uvicorn.Server):
    """A server with an event for its start."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class InProcessServer:
    """Uvicorn on a free port, in a thread with its own event loop."""

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        edge: Edge = "portable",
        *,
        files: int = sys.maxsize,
    ) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        app = create_app(settings, engines)
        self.services: Services = app.state.services
        config = uvicorn.Config(app, ws="websockets-sansio", log_config=None, lifespan="on")
        if edge == "native":
            shared = HttpEdge(
                self.services.instruments,
                Proxies(settings.trusted_proxies),
                keep_alive=settings.keep_alive,
                files=files,
            )
            http = partial(FastPathHttpProtocol, app.decisions, shared)
            config.http = cast("type[asyncio.Protocol]", http)
            config.ws = cast("type[asyncio.Protocol]", self.services.streams.websockets.protocol)
        self._server = _ServerWithStartEvent(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/metrics"

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop; return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._listener]))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._server.listening.wait(START_SECONDS)
        assert self._server.started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(START_SECONDS)
        self._loop.close()
