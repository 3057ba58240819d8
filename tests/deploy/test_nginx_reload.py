"""`nginx -s reload` with the configuration of `deploy/`: old worker processes end in time."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from routecast.client import stream
from tests.support.nginx import Nginx, executable
from tests.support.raw import RawConnection
from tests.support.server import Server
from tests.support.upstream import upstream

GOOD = {"strategy": "hybrid", "provider": "gemini"}
CLIENTS = 6
WAIT_SECONDS = 60.0


async def wait_until(done: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)  # time between two checks; the result is the event


async def test_streams_reconnect_when_old_workers_end(tmp_path: Path) -> None:
    """No stream stays on an old worker, or on a node that was taken out of nodes.conf."""
    executable()
    shorter = {"worker_shutdown_timeout 40s;": "worker_shutdown_timeout 1s;"}
    with (
        Server(tmp_path / "one") as one,
        Server(tmp_path / "two") as two,
        Nginx(tmp_path / "nginx", [one.port, two.port], replaced=shorter) as nginx,
    ):
        seen = [0] * CLIENTS

        async def follow(client: int) -> None:
            async for metrics in stream(nginx.url, interval=0.1):
                seen[client] = metrics.total_decisions or 0

        tasks = [asyncio.create_task(follow(client)) for client in range(CLIENTS)]
        try:
            await wait_until(lambda: one.active() + two.active() == CLIENTS)
            assert two.active() > 0
            nginx.list_nodes([one.port])
            old = nginx.reload()
            await wait_until(lambda: not nginx.workers() & old)
            # The nodes share nothing, so only the first one has this number.
            one.post([GOOD] * 7)
            await wait_until(lambda: seen == [7] * CLIENTS)
            assert (one.active(), two.active()) == (CLIENTS, 0)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_request_that_runs_during_a_reload_is_answered(tmp_path: Path) -> None:
    """Its worker process ends after the request."""
    executable()
    with (
        upstream() as node,
        Nginx(tmp_path / "nginx", [node.port]) as nginx,
        RawConnection(nginx.port) as connection,
    ):
        connection.send(
            b"POST /v1/decisions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n12"
        )
        old = nginx.reload()
        connection.send(b"345")
        assert connection.answer().status == 200
        await wait_until(lambda: not nginx.workers() & old)
        assert node.received[-1].body == b"12345"
