"""A server without `routecast.v1`, which also serves the JavaScript client's files."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.support.ports import free_port

CLIENT = Path(__file__).parents[2] / "clients" / "js"
DOCUMENT = {"total_decisions": 7, "avg_confidence": None, "timestamp": "2026-01-31T12:34:56Z"}


async def _stream(socket: WebSocket) -> None:
    await socket.accept()  # without any subprotocol
    try:
        while True:
            await socket.send_json({**DOCUMENT, "query": str(socket.query_params)})
            await asyncio.sleep(0.1)
    except WebSocketDisconnect:
        return


async def _page(_: Request) -> Response:
    return HTMLResponse("<!doctype html><title>A page</title>")


@contextmanager
def plain_server() -> Iterator[str]:
    """Run it; yield its address. The client is at `/client/routecast.js`."""
    app = Starlette(
        routes=[
            WebSocketRoute("/ws/metrics", _stream),
            Route("/", _page),
            Mount("/client", StaticFiles(directory=CLIENT)),
        ]
    )
    port = free_port()
    config = uvicorn.Config(
        app, port=port, ws="websockets-sansio", log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)  # time between two checks; the start is the event
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
