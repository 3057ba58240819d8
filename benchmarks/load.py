"""The load generator: a cheap HTTP/1.1 client, and the process that sends bodies through many."""

import asyncio
import resource
import time
from collections.abc import Iterator
from typing import Final, cast

import msgspec
import uvloop

from benchmarks.cases import Broken, answer
from benchmarks.traffic import read_bodies

HOST: Final = "127.0.0.1"


class Client(asyncio.Protocol):
    """One keep-alive connection with one request in flight at a time.

    It reads only the status and length of an answer, so that it measures the server and not itself.
    """

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport

    @classmethod
    async def connect(cls, port: int) -> "Client":
        """Open a connection to a server on this machine."""
        _, client = await asyncio.get_running_loop().create_connection(cls, HOST, port)
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has the methods, but not the base class.
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, request: bytes) -> bytes:
        """Send a whole request; return the body of its answer. Raises Broken unless it is 200."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or self._answer is None:
            return
        _, _, rest = head.lower().partition(b"content-length: ")
        if len(body) < int(rest.partition(b"\r\n")[0]):
            return
        self._received = b""
        if head[9:12] == b"200":
            self._answer.set_result(body)
        else:
            self._answer.set_exception(Broken(f"{head.decode()}\n{body.decode()}"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Broken(f"the server hung up: {error}"))

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


def get(path: str) -> bytes:
    """Return the bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def post(body: bytes) -> bytes:
    """Return the bytes of a request that sends decisions."""
    head = (
        f"POST /v1/decisions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load(msgspec.Struct):
    """Send a file of bodies to a port, `in_flight` at a time; the first `warm_up` are not timed."""

    port: int
    bodies: str
    in_flight: int
    warm_up: int


class Sent(msgspec.Struct):
    """The result: timed seconds, the client's part of a core in them, and the answers."""

    seconds: float
    busy: float
    accepted: int


class _Receipt(msgspec.Struct):
    accepted: int


async def _send(load: Load) -> Sent:
    requests = [post(body) for body in read_bodies(load.bodies)]
    clients = [await Client.connect(load.port) for _ in range(load.in_flight)]
    answers: list[bytes] = []

    async def through(client: Client, waiting: Iterator[bytes]) -> None:
        answers.extend([await client.ask(request) for request in waiting])

    async def all_of(part: list[bytes]) -> None:
        waiting = iter(part)
        await asyncio.gather(*(through(client, waiting) for client in clients))

    await all_of(requests[: load.warm_up])
    started, busy = time.perf_counter(), _processor_seconds()
    await all_of(requests[load.warm_up :])
    seconds, busy = time.perf_counter() - started, _processor_seconds() - busy
    for client in clients:
        client.close()
    receipt = msgspec.json.Decoder(_Receipt)
    return Sent(seconds, busy / seconds, sum(receipt.decode(body).accepted for body in answers))


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    answer(Load, lambda load: uvloop.run(_send(load)))
