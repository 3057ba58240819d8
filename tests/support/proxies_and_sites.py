"""Servers around a node: a proxy that does not know upgrades, and sites of other origins.

The proxy can lose answers: a request reaches the server, and its answer does not reach the client.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

from tests.support.server import Server

HOP_BY_HOP = {"connection", "upgrade", "keep-alive", "transfer-encoding", "content-length"}


@contextmanager
def plain_proxy(server: Server, *, lose: int = 0) -> Iterator[str]:
    """Run a proxy in front of a server that loses the first `lose` answers; yield its address."""
    lost = iter(range(lose))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kept = {name: value for name, value in self.headers.items() if _stays(name)}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = httpx2.request(
                self.command, f"{server.url}{self.path}", headers=kept, content=body
            )
            if next(lost, None) is not None:
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if _stays(name) and name != "content-encoding":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_OPTIONS = do_POST = do_GET  # noqa: N815  # -- what BaseHTTPRequestHandler looks for

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with _serving(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def site() -> Iterator[str]:
    """Run a site with an empty page; yield its address, with a name as host."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with _serving(Handler) as port:
        yield f"http://metrics.example:{port}"


@contextmanager
def folder(path: Path) -> Iterator[str]:
    """Serve the files of a folder; yield the address."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(path))

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with _serving(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _stays(name: str) -> bool:
    return name.lower() not in HOP_BY_HOP
