"""Writing to a socket past its transport, for real transports."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import uvloop

from routecast.edge.send import FLAGS, NOWHERE, descriptor, send

SMALL = 4_096


def test_what_is_sent_arrives() -> None:
    """As many bytes as it says, and none where the socket is full or gone."""
    near, far = socket.socketpair()
    with far:
        with near:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            assert send(near.fileno(), b"hello", 5, FLAGS) == 5
            assert far.recv(100) == b"hello"
            data, taken = b"x" * 1_000_000, 0
            while (sent := send(near.fileno(), data, len(data), FLAGS)) != -1:
                taken += sent
            assert taken > 0
            gone = near.fileno()
        assert send(gone, b"hello", 5, FLAGS) == -1
        left = 0
        while piece := far.recv(1_000_000):
            left += len(piece)
    assert left == taken
    assert send(NOWHERE, b"hello", 5, FLAGS) == -1


class _Told(asyncio.Protocol):
    """Tells the descriptor of its transport."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tell(descriptor(transport))


async def _descriptor_of(context: ssl.SSLContext | None, certificate: Path) -> int:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()
    server = await loop.create_server(lambda: _Told(told.set_result), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile=str(certificate)) if context else None
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    async with server:
        found = await told
        writer.close()
    return found


def test_what_is_to_be_encrypted_goes_no_way_round(certificate: Path) -> None:
    """A transport of TLS has no descriptor for us; a plain one has, in either event loop."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    for run in (asyncio.run, uvloop.run):
        assert run(_descriptor_of(context, certificate)) == NOWHERE
        assert run(_descriptor_of(None, certificate)) > 2
