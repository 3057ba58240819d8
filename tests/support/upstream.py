"""A server behind a proxy that records each request as the proxy sent it."""

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Received:
    """One request; names of fields are in lower case, and `connection` counts from 0."""

    connection: int
    first: str
    fields: dict[str, str]
    body: bytes


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
CLOSE = b""
# The head of an answer that never ends.
UNENDING = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@dataclass
class Upstream:
    """The server's port, and all requests so far.

    `answer` returns the bytes to send. After UNENDING the connection is not read any more; CLOSE
    ends it.
    """

    port: int
    answer: Callable[[Received], bytes] = lambda _: OK
    received: list[Received] = field(default_factory=list)


@contextmanager
def upstream() -> Iterator[Upstream]:
    """Run a server on a free port."""
    numbers = iter(range(1_000_000))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            number = next(numbers)
            while (request := self._request(number)) is not None:
                site.received.append(request)
                if (answer := site.answer(request)) == CLOSE:
                    return
                self.wfile.write(answer)
                if answer == UNENDING:
                    ended.wait()

        def _request(self, connection: int) -> Received | None:
            first = self.rfile.readline().decode("latin-1").strip()
            if not first:
                return None
            fields = {}
            while text := self.rfile.readline().decode("latin-1").strip():
                name, _, value = text.partition(":")
                fields[name.lower()] = value.strip()
            body = self.rfile.read(int(fields.get("content-length", "0")))
            return Received(connection, first, fields, body)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    ended = threading.Event()
    with Server(("127.0.0.1", 0), Handler) as server:
        site = Upstream(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield site
        finally:
            ended.set()
            server.shutdown()
            thread.join()
