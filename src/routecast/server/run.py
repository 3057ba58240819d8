"""`run`: serve the application with uvicorn, from the socket to a clean exit."""

import asyncio
import ctypes
import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Final, cast

import uvicorn

from routecast.audit import refusals
from routecast.edge.http.fast_path import FastPathHttpProtocol
from routecast.edge.http.http_edge import HttpEdge
from routecast.errors import BadSettings, Unavailable
from routecast.server.app import create_app
from routecast.server.config import Settings
from routecast.server.engines import open_engines
from routecast.server.inherited_sockets import take_over
from routecast.server.json_log import start_log
from routecast.server.rlimits import allow_open_files, open_files
from routecast.server.services import STREAMS_CLOSE_SECONDS, Services
from routecast.server.worker_processes import WorkerProcesses

# When the server stops, open requests get this time, in seconds, after its streams were closed. It
# is more than DRAIN_SECONDS, after which requests that wait for the database are answered.
STOP_GRACE_SECONDS: Final = 6
# The process ends at the latest this time after the signal, in seconds, even if a disk hangs. No
# acknowledged decision is lost by that: all are on disk.
EXIT_SECONDS: Final = 14.0

# Bytes that the kernel may buffer for one client. It doubles this for its own needs.
SEND_BUFFER: Final = 65_536
# A client that acknowledges nothing for this time, in ms, has vanished, even if data is unsent.
CLIENT_UNACKED_MS: Final = 20_000

# After this time, in seconds, a thread that computes passes the interpreter's lock to a thread that
# waits for it. Python's default is 5 ms. The event loop waits for the lock in each of its turns,
# and a commit about twenty times.
SWITCH_SECONDS: Final = 0.0002
# How the C library (glibc) keeps memory, by the numbers of mallopt(3): blocks of at least 1 MiB are
# returned to the system at once, free memory at the end when it is over 4 MiB, and threads share
# two arenas. With its defaults it keeps 100 MB and more of unused memory after large batches.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
MEMORY_OPTIONS: Final = (
    (_M_MMAP_THRESHOLD, 2**20),
    (_M_TRIM_THRESHOLD, 4 * 2**20),
    (_M_ARENA_MAX, 2),
)

# Thresholds of the garbage collector (`gc.set_threshold`). A collection of 3,000 objects takes up
# to 1 ms, for which all threads wait. Python's default is 700, 10, 10.
COLLECT_AFTER: Final = (3_000, 2, 400)

# Open files that are not streams: engines, and open requests.
SPARE_FILES: Final = 256
# Open files for HTTP connections beside streams, if the system allows as many.
HTTP_FILES: Final = 4_096

log = logging.getLogger("routecast")

OnStarted = Callable[[str], Awaitable[None]]


class _Server(uvicorn.Server):
    """Uvicorn's server, with a callback once it listens, and a bounded shutdown."""

    def __init__(
        self,
        config: uvicorn.Config,
        services: Services,
        url: str,
        on_started: OnStarted | None,
    ) -> None:
        super().__init__(config)
        self._services = services
        self._url = url
        self._on_started = on_started
        self._task: asyncio.Future[None] | None = None
        self._wake: Callable[[], object] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed = False
        services.supervisor.give_up = self._give_up

    def _give_up(self, _: str) -> None:
        """Stop properly and exit with a code other than 0; the log has the reason."""
        self.failed = True
        self.handle_exit(signal.SIGTERM, None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if not self.started:
            _exit_later(lambda: 1)  # even if something hangs: no client can connect
        if self.started and self._on_started is not None:
            self._task = asyncio.ensure_future(self._on_started(self._url))

    async def main_loop(self) -> None:
        # Uvicorn's own loop checks ten times a second whether to stop, which is most of what an
        # idle server does. Here the signal wakes it.
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(stopping.set)
        while not self.should_exit:
            await stopping.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            _exit_later(lambda: int(self.failed))
        super().handle_exit(sig, frame)
        if self._loop is not None:
            # The server may still be starting, and wait for a database.
            self._loop.call_soon_threadsafe(self._services.begin_stop)
        self._wake()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # First stop accepting, then close streams with a time to reconnect, then everything else.
        for listening in self.servers:
            listening.close()
        await self._services.streams.manager.close(STREAMS_CLOSE_SECONDS)
        await super().shutdown(sockets)
        refusals.flush()


def _exit_later(code: Callable[[], int]) -> None:
    """Exit in EXIT_SECONDS, even if something hangs; `code` returns the exit code."""

    def exit_now() -> None:
        log.critical("Shutdown takes too long; the process exits now")
        os._exit(code())

    timer = threading.Timer(EXIT_SECONDS, exit_now)
    timer.daemon = True
    timer.start()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. Raises BadSettings if that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CLIENT_UNACKED_MS)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BadSettings(f"port {port} on {host} is in use; choose another: --port") from None
        raise BadSettings(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL by which this machine reaches the server."""
    host, port = listener.getsockname()[:2]
    if not int(ipaddress.ip_address(host)):  # all of this machine's addresses
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(settings: Settings) -> socket.socket:
    """Return the listening socket: the inherited one (`fd`), or a new one. Raises BadSettings."""
    if settings.fd is None:
        return bind(settings.host, settings.port)
    return take_over(settings)


def run(settings: Settings, *, on_started: OnStarted | None = None) -> int:
    """Serve until a signal; return the exit code.

    `on_started` is awaited with the URL once the server listens, and cancelled when the server
    stops. Raises BadSettings when the server cannot start.
    """
    start_log(settings.log_level, settings.log_format)
    settings.require_safe()
    _allow_open_files(settings.max_connections)
    asyncio.run(_check_database(settings))
    with listen(settings) as listener:
        settings.warn_if_insecure()
        if settings.fd is None:
            log.info("Listening on %s", url_of(listener))
        if settings.workers > 1:
            return WorkerProcesses(settings, listener).run()
        return _serve(settings, listener, on_started)


def _serve(settings: Settings, listener: socket.socket, on_started: OnStarted | None) -> int:
    app = create_app(settings)
    services: Services = app.state.services
    edge = HttpEdge(
        services.instruments,
        services.authentication.proxies,
        keep_alive=settings.keep_alive,
        files=open_files(),
    )
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(FastPathHttpProtocol, app.decisions, edge)),
        ws=cast("type[asyncio.Protocol]", services.streams.websockets.protocol),
        proxy_headers=False,  # `edge/proxies.py` reads them, for all edges
        timeout_graceful_shutdown=STOP_GRACE_SECONDS,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,  # `HttpProtocol` sends it
    )
    server = _Server(config, services, url_of(listener), on_started)

    def stop(number: int, frame: FrameType | None) -> None:
        # For signals that arrive before uvicorn handles them. At its end uvicorn raises the signal
        # that stopped it again; stopping on request is not a failure.
        if not server.should_exit:
            server.handle_exit(number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    spare_collector()
    spare_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    server.run(sockets=[listener])
    return 0 if server.started and not server.failed else 1


def _allow_open_files(streams: int) -> None:
    needed = streams + SPARE_FILES
    allowed = allow_open_files(needed + HTTP_FILES)  # workers inherit it
    if allowed < needed:
        log.warning(
            "This process may open %d files, which is enough for about %d streams, and "
            "ROUTECAST_MAX_CONNECTIONS is %d. Raise the limit to %d (as root: ulimit -n; in a "
            "systemd unit: LimitNOFILE=), or lower the setting",
            *(allowed, max(0, allowed - SPARE_FILES), streams, needed),
        )


def spare_memory() -> None:
    """Have the C library return unused memory to the system, if it is glibc."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in MEMORY_OPTIONS:
            libc.mallopt(option, value)


def spare_collector() -> None:
    """Have the garbage collector skip all present objects, and run rarely on new ones."""
    # Present objects stay, and a decision is never part of a cycle. Without this, the collector
    # visits all modules and all waiting decisions repeatedly: a tenth of the time of ingest.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


async def _check_database(settings: Settings) -> None:
    # Before anything else, so that a bad database is one line of output. A database that cannot be
    # reached now may be soon: the server waits for it.
    store = open_engines(settings).store
    try:
        with suppress(Unavailable):
            await store.open()
    finally:
        await store.close()
