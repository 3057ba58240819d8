"""Clients and tickets, on a real server, also behind a proxy that passes no credential on."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from routecast.client import (
    Metrics,
    Refused,
    Unauthenticated,
    Unavailable,
    connect,
    fetch_ticket,
    stream,
    stream_sync,
)
from tests.support.credentials import SIGNED, bearer, token
from tests.support.node import CLIENT, modules, node
from tests.support.ports import free_port
from tests.support.server import Server

WAIT_SECONDS = 60.0
DECISION = {"strategy": "hybrid", "provider": "gemini"}
PROTOCOLS = pytest.mark.parametrize(
    "protocols", [("routecast.v1.json",), ()], ids=["v1", "default"]
)


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one decision that needs a credential."""
    with Server(tmp_path_factory.mktemp("tickets"), env=SIGNED) as server:
        server.http.headers.update(bearer(token("read", "write")))
        server.post(DECISION)
        yield server


class StrippingProxy:
    """Removes `Authorization` from upgrades. `tickets` are those that it has seen in them."""

    def __init__(self, target: int) -> None:
        self.url = ""
        self.spoils = 0  # the number of next tickets that it changes
        self.tickets: list[str] = []
        self._target = target
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """End all connections."""
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one request and its answer on, and all that follows."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"upgrade: websocket" in head.lower():
                head = re.sub(rb"(?im)^authorization:.*\r\n", b"", head)
                self.tickets += re.findall(r"[?&]ticket=([\w-]+)", head.decode())
                if self.spoils:
                    self.spoils -= 1
                    head = head.replace(b"ticket=", b"ticket=x")
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            back.write(head)
            self._open |= {writer, back}
            await asyncio.gather(_pipe(reader, back), _pipe(there, writer))
            self._open -= {writer, back}


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    sink.close()


@asynccontextmanager
async def stripping(server: Server) -> AsyncIterator[StrippingProxy]:
    """Run a proxy before a server."""
    proxy = StrippingProxy(server.port)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listening.close()
        proxy.cut()


async def take(metrics: AsyncIterator[Metrics]) -> Metrics:
    """Return the next metrics."""
    async with asyncio.timeout(WAIT_SECONDS):
        return await anext(metrics)


@PROTOCOLS
async def test_each_attempt_to_connect_has_its_own_ticket(
    closed_server: Server, protocols: tuple[str, ...]
) -> None:
    """One that is refused, or a connection that is lost, costs another one."""
    async with stripping(closed_server) as proxy:
        proxy.spoils = 1
        given: dict[str, Any] = {"token": token("read"), "protocols": protocols}
        async with connect(proxy.url, tickets=True, **given) as client:
            feed = await client.subscribe(interval=0.1)
            assert (await take(feed)).total_decisions
            assert len(proxy.tickets) == 2
            proxy.cut()
            async with asyncio.timeout(WAIT_SECONDS):
                while len(proxy.tickets) < 3:
                    await take(feed)
            assert (await take(feed)).total_decisions
        assert len(set(proxy.tickets)) == len(proxy.tickets) == 3
        async with connect(proxy.url, **given) as client:
            with pytest.raises(Unauthenticated):
                await take(await client.subscribe())


async def test_a_credential_that_gets_no_ticket_is_explained(closed_server: Server) -> None:
    """As one that opens no stream."""
    with pytest.raises(Unauthenticated, match="give another token") as raised:
        await take(stream(closed_server.url, token="garbage", tickets=True))
    assert raised.value.code == 401
    with pytest.raises(Refused, match="`read`") as refused:
        await take(stream(closed_server.url, token=token("write"), tickets=True))
    assert refused.value.code == 403
    with pytest.raises(Unauthenticated, match="give a token"):
        await take(stream(closed_server.url, tickets=True))


def test_tickets_are_for_programs_without_asyncio_too(closed_server: Server) -> None:
    """The option is the same."""
    for metrics in stream_sync(closed_server.url, token=lambda: token("read"), tickets=True):
        assert metrics.total_decisions
        break


def test_a_ticket_is_fetched_for_another_program(closed_server: Server) -> None:
    """It opens one stream; the errors are those of a stream, or say that it may be asked again."""
    ticket = fetch_ticket(closed_server.url, token=token("read"))
    statuses = []
    for _ in range(2):
        url = f"{closed_server.url}/sse/metrics?ticket={ticket}"
        with httpx2.stream("GET", url, timeout=WAIT_SECONDS) as answer:
            statuses.append(answer.status_code)
    assert statuses == [200, 401]
    with pytest.raises(Unauthenticated):
        fetch_ticket(closed_server.url, token="garbage")
    with pytest.raises(Refused):
        fetch_ticket(closed_server.url, token=token("write"))
    with pytest.raises(Unavailable, match="connection refused"):
        fetch_ticket(f"http://127.0.0.1:{free_port()}", token="garbage")


SCRIPT = """
import { connect, fetchTicket } from CLIENT;
import { WebSocket } from SOCKETS;

const [url, token] = process.argv.slice(2);
const client = connect(url, { token, tickets: true, WebSocket });
for await (const { total_decisions } of client.subscribe()) {
  console.log(total_decisions > 0);
  break;
}
client.close();
const ticket = await fetchTicket(url, token);
for (let attempt = 0; attempt < 2; attempt++) {
  const answer = await fetch(`${url}/sse/metrics?ticket=${ticket}`);
  console.log(answer.status);
  await answer.body.cancel();
}
await fetchTicket(url, "garbage").catch(({ name, retryable }) => console.log(name, retryable));
"""


def test_the_javascript_client_does_the_same(closed_server: Server, tmp_path: Path) -> None:
    """It fetches its own tickets, and one for `EventSource`, which opens one stream."""
    script = tmp_path / "tickets.mjs"
    places = {"CLIENT": CLIENT / "routecast.js", "SOCKETS": modules() / "ws" / "wrapper.mjs"}
    text = SCRIPT
    for name, path in places.items():
        text = text.replace(name, json.dumps(path.as_uri()))
    script.write_text(text)
    done = subprocess.run(
        [node(), str(script), closed_server.url, token("read")],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    expected = ["true", "200", "401", "RoutecastError false"]
    assert done.stdout.splitlines() == expected, done.stderr
