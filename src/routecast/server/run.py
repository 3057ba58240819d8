"""The server: the application under uvicorn, on the lean edge, with a clean start and end."""

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

from routecast.edge.http.fast_path import FastPathHttpProtocol
from routecast.edge.http.http_edge import HttpEdge
from routecast.errors import BadSettings, Unavailable
from routecast.server.app import STREAMS_CLOSE_SECONDS, Services, create_app, open_engines
from routecast.server.config import Settings
from routecast.server.inherited_sockets import take_over
from routecast.server.rlimits import allow_open_files, open_files
from routecast.server.worker_processes import WorkerProcesses

# Requests under way get this time when the server stops, once its streams were told: more than
# DRAIN_SECONDS, after which those that wait for the database are answered.
STOP_GRACE_SECONDS: Final = 6
# The process ends at the latest this time after the signal, in seconds, even if a disk hangs. All
# acknowledged decisions are on disk.
EXIT_SECONDS: Final = 14.0

# What the kernel may hold for one client, in bytes (it doubles this for its own needs).
SEND_BUFFER: Final = 65_536
# A peer that acknowledges nothing for this time has vanished, whatever is still unsent.
CLIENT_UNACKED_MS: Final = 20_000

# A thread that computes gives the interpreter's lock to one that waits after this time, in seconds.
# Python's own default is 5 ms. The event loop waits for the lock at each of its turns, and a commit
# some twenty times.
SWITCH_SECONDS: Final = 0.0002
# How the C library (glibc) keeps memory, by the numbers of mallopt(3): blocks of at least 1 MiB are
# given back at once, free memory at the end when it is over 4 MiB, and threads share two arenas.
# Left to itself, after large batches it keeps 100 MB and more that nothing uses.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
MEMORY_OPTIONS: Final = (
    (_M_MMAP_THRESHOLD, 2**20),
    (_M_TRIM_THRESHOLD, 4 * 2**20),
    (_M_ARENA_MAX, 2),
)

# When the garbage collector looks at new objects, at those left over, and at all: after this number
# of new objects, and every this many times of the look before. A look at 3,000 objects takes up to
# 1 ms, for which all threads wait. Python's own default is 700, 10, 10.
COLLECT_AFTER: Final = (3_000, 2, 400)

# Files that are no streams: engines, and the requests under way.
SPARE_FILES: Final = 256
# Files for HTTP connections beside streams, as far as the system allows.
HTTP_FILES: Final = 4_096

log = logging.getLogger("routecast")

OnStarted = Callable[[str], Awaitable[None]]


class _Server(uvicorn.Server):
    """Uvicorn, with something to do once it listens."""

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
        """Stop in good order, for a reason that the log has, and end with a code other than 0."""
        self.failed = True
        self.handle_exit(signal.SIGTERM, None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if not self.started:
            _exit_later(lambda: 1)  # whatever still hangs: nobody could connect to it
        if self.started and self._on_started is not None:
            self._task = asyncio.ensure_future(self._on_started(self._url))

    async def main_loop(self) -> None:
        # Uvicorn's own looks ten times a second whether it is to stop, which is most of what an
        # idle server would do. Here the signal says so.
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
            # It may still be starting, and wait for a database.
            self._loop.call_soon_threadsafe(self._services.begin_stop)
        self._wake()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # Nobody new; then those who are here are told when to come back, before all else ends.
        for listening in self.servers:
            listening.close()
        await self._services.manager.close(STREAMS_CLOSE_SECONDS)
        await super().shutdown(sockets)


def _exit_later(code: Callable[[], int]) -> None:
    """End the process in EXIT_SECONDS, whatever hangs; `code` returns the exit code."""

    def exit_now() -> None:
        log.critical("Something does not end; the process ends without it")
        os._exit(code())

    timer = threading.Timer(EXIT_SECONDS, exit_now)
    timer.daemon = True
    timer.start()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. Raises BadSettings when it cannot be had."""
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
    """Return the address a person can open."""
    host, port = listener.getsockname()[:2]
    if not int(ipaddress.ip_address(host)):  # all of this machine's addresses
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(settings: Settings) -> socket.socket:
    """Return the socket to accept from: the one handed over, or a new one. Raises BadSettings."""
    if settings.fd is None:
        return bind(settings.host, settings.port)
    return take_over(settings)


def run(settings: Settings, *, on_started: OnStarted | None = None) -> int:
    """Serve until a signal says to stop; return the exit code.

    `on_started` is awaited beside the server once it listens, with its URL, and cancelled when
    the server stops. Raises BadSettings when it cannot start.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings.require_safe()
    _allow_open_files(settings.max_connections)
    asyncio.run(_check_database(settings))
    with listen(settings) as listener:
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
        services.proxies,
        keep_alive=settings.keep_alive,
        files=open_files(),
    )
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(FastPathHttpProtocol, app.decisions, edge)),
        ws=cast("type[asyncio.Protocol]", services.websockets.protocol),
        proxy_headers=False,  # `edge/gate.py` reads them, as all edges do
        timeout_graceful_shutdown=STOP_GRACE_SECONDS,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,  # `GuardedHttp` has it
    )
    server = _Server(config, services, url_of(listener), on_started)

    def stop(number: int, frame: FrameType | None) -> None:
        # For signals that come before uvicorn listens to them. In the end it raises the one that
        # stopped it again; to stop when told to is no failure.
        if not server.should_exit:
            server.handle_exit(number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    spare_collector()
    spare_memory()
    # A thread that computes lets the event loop have Python's lock after this time.
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
    """Have the C library give back what is not used, where it is glibc."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in MEMORY_OPTIONS:
            libc.mallopt(option, value)


def spare_collector() -> None:
    """Let the garbage collector look at what comes from now on, and rarely."""
    # What there is now stays; and a decision is no cycle. Without this the collector goes through
    # all modules and all waiting decisions again and again: a tenth of the time of ingest.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


async def _check_database(settings: Settings) -> None:
    # Before anything else, so that what is wrong with it is told in one line. One that cannot be
    # reached now may be in a moment: that is the server's to wait for.
    store = open_engines(settings).store
    try:
        with suppress(Unavailable):
            await store.open()
    finally:
        await store.close()
