"""Each background service is stopped at each of its awaits: the node recovers or ends."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from routecast.errors import Unavailable
from routecast.protocol import V1_JSON
from routecast.server.config import Settings
from routecast.server.engines import open_engines
from routecast.server.services import Services
from routecast.services import supervisor
from tests.support.decisions import batch_of, kept
from tests.support.ports import free_port
from tests.support.running_services import until
from tests.support.server import Server

Run = Callable[[], Coroutine[Any, Any, None]]

SERVICES = (
    *("redis", "retention", "summaries", "bus", "live", "ingest", "census", "renders"),
    *("channels", "histories", "keys", "operator", "sessions"),
)
# Parts that run in tasks of their own: who has them, and under which name.
PARTS = {
    "ingest groups": ("ingest", "_run_groups"),
    "ingest large": ("ingest", "_run_large"),
    "bus send": ("bus", "_send"),
    "bus follow": ("bus", "_follow"),
}
# The first awaits of a service, at each of which it fails once. Later ones are the same again.
AWAITS = 6
# A state that is not reached in this time, in seconds, needs work that this test does not do.
REACH_SECONDS = 0.1


class Trip:
    """Drives a coroutine, and raises an exception at one of its awaits."""

    def __init__(self, run: Coroutine[Any, Any, None], at: int, error: BaseException) -> None:
        self._run = run
        self._at = at
        self._error = error

    def __await__(self) -> Generator[Any, Any, None]:
        awaits = 0
        try:
            waited = self._run.send(None)
            while True:
                awaits += 1
                if awaits == self._at:
                    if waited is not None:  # nobody waits for it any more
                        waited._asyncio_future_blocking = False
                    waited = self._run.throw(self._error)
                    continue
                try:
                    sent = yield waited
                except BaseException as told:  # a cancellation
                    waited = self._run.throw(told)
                else:
                    waited = self._run.send(sent)
        except StopIteration:
            return


class Failing:
    """Makes a service fail at its first await, after a restart at its second, and so on."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error
        self.starts = 0

    def of(self, run: Run) -> Run:
        """Return a service that fails in place of a given one."""

        async def fail() -> None:
            self.starts += 1
            if self.starts <= AWAITS:
                await Trip(run(), self.starts, self._error("on purpose"))
            else:
                await run()

        return fail


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses so short that no test waits for them."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor, "STEADY_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "MAX_CRASHES", 1000)


def break_service(services: Services, name: str, failing: Failing) -> None:
    """Make a service, or a part of one, fail when it is started."""
    if name in PARTS:
        owner, attribute = PARTS[name]
        holder: Any = services.numbers.ingest if owner == "ingest" else services.engines.bus
        setattr(holder, attribute, failing.of(getattr(holder, attribute)))
        return
    start = services.supervisor.start

    def start_failing(service: str, run: Run, **options: Any) -> asyncio.Task[None]:
        return start(service, failing.of(run) if service == name else run, **options)

    services.supervisor.start = start_failing  # type: ignore[method-assign]  # -- the test's own


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
@pytest.mark.parametrize("name", [*SERVICES, *PARTS])
async def test_node_recovers_from_a_failure_at_each_await(
    tmp_path: Path, redis_url: str, name: str, error: type[BaseException]
) -> None:
    """Acknowledged decisions are kept, and committed ones are shown."""
    settings = Settings(
        database_url=f"sqlite:///{tmp_path}/routecast.db",
        redis_url=redis_url,
        redis_prefix=tmp_path.name,
    )
    services = Services(settings, open_engines(settings))
    broken = Failing(error)
    break_service(services, name, broken)
    accepted, numbers = 0, count()
    async with asyncio.timeout(60), services.running():
        for _ in range(AWAITS + 1):
            starts = broken.starts
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(REACH_SECONDS):
                    sent = batch_of([kept(next(numbers))])
                    accepted += (await services.numbers.ingest.accept(sent)).accepted
            with suppress(TimeoutError):
                async with asyncio.timeout(REACH_SECONDS):
                    while broken.starts == starts:  # noqa: ASYNC110  -- it has no event
                        await asyncio.sleep(0.001)
        # Whatever it was, decisions are taken again, and shown.
        while True:
            try:
                sent = batch_of([kept(next(numbers))])
                accepted += (await services.numbers.ingest.accept(sent)).accepted
                break
            except Unavailable:
                await asyncio.sleep(0.01)
        stored = await services.engines.store.position()
        await until(lambda: services.numbers.live.position is not None)
        while services.numbers.live.position != stored:  # noqa: ASYNC110  -- it has no event
            await asyncio.sleep(0.01)
        await until(lambda: not services.supervisor.failing)
        states = services.supervisor.services
        assert set(states) == set(SERVICES)
        while await services.check():  # noqa: ASYNC110  -- it has no event
            await asyncio.sleep(0.01)
        health = await services.health()
        assert health.status == "ok", health
    assert accepted


SERVE = """
import asyncio, sys
import routecast.{module} as broken
from routecast.server import run as server
from routecast.server.config import load_settings
from routecast.services import supervisor
supervisor.FIRST_PAUSE = supervisor.LONGEST_PAUSE = 0.01
class_name, name = "{name}".split(".")
holder = getattr(broken, class_name)
works, crashes = getattr(holder, name), [{crashes}]
async def crash(self, *given):
    crashes[0] -= 1
    if crashes[0] < 0:
        return await works(self, *given)
    raise OverflowError("on purpose")
setattr(holder, name, crash)
sys.exit(server.run(load_settings(port={port}, database_url="sqlite:///{folder}/x.db")))
"""


class Crippled(Server):
    """A server with a method that crashes, always or a number of times."""

    method = ("", "")
    crashes = 10**9

    def command(self) -> list[str]:
        module, name = self.method
        folder = self.database.parent
        given = {"module": module, "name": name, "crashes": self.crashes}
        script = SERVE.format(**given, port=self.port, folder=folder)
        return [sys.executable, "-c", script]


HOLD = """
import asyncio, pathlib, types
from routecast.services import supervisor

async def pause(_):
    while not pathlib.Path("{allowed}").exists():
        await asyncio.sleep(0.01)

supervisor.asyncio = types.SimpleNamespace(**{{**vars(asyncio), "sleep": pause}})
"""


class Held(Crippled):
    """A server whose services stay down after a crash until the file `allowed` exists."""

    @property
    def allowed(self) -> Path:
        return self.database.with_name("allowed")

    def command(self) -> list[str]:
        *python, script = super().command()
        return [*python, HOLD.format(allowed=self.allowed) + script]


def test_node_is_not_ready_while_ingest_is_down(tmp_path: Path) -> None:
    """`/ready` is 503 with the cause until the service was started again."""
    server = Held(tmp_path)
    server.method, server.crashes = ("services.ingest", "Ingest.run"), 1
    server.launch()
    server.wait_for("/health", 200)
    answer = server.http.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert answer.json()["reason"].startswith(
        "the service ingest crashed and will be started again"
    )
    state = server.http.get("/health").json()["services"]["ingest"]
    assert (state["status"], state["failures"]) == ("down", 1)
    assert server.instrument('routecast_service_up{service="ingest"}') == 0
    server.allowed.touch()
    server.wait_for("/ready", 200)
    assert server.post({"strategy": "s", "provider": "p"})["accepted"] == 1
    assert server.stop() == 0
    server.http.close()


def test_process_ends_when_ingest_cannot_be_started_again(tmp_path: Path) -> None:
    """A log line says why, and the exit code makes a supervisor start the process again."""
    server = Crippled(tmp_path)
    server.method = ("services.ingest", "Ingest.run")
    server.launch()
    assert server.process is not None
    assert server.process.wait(90) == 1  # it starts, too, which is slow on a busy machine
    server.http.close()
    log = server.log.read_text()
    assert "The service ingest cannot go on, and the process ends: it crashed 8 times" in log


def test_other_servers_end_with_a_code_too(tmp_path: Path) -> None:
    """Another ASGI server ends with an error code, too."""
    script = (
        "import uvicorn\n"
        "from routecast.services import ingest, supervisor\n"
        "supervisor.FIRST_PAUSE = supervisor.LONGEST_PAUSE = 0.01\n"
        "async def crash(self): raise OverflowError\n"
        "ingest.Ingest.run = crash\n"
        f"uvicorn.run('routecast.asgi:app', port={free_port()})\n"
    )
    env = {**os.environ, "ROUTECAST_DATABASE_URL": f"sqlite:///{tmp_path}/x.db"}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, timeout=90, check=False
    )
    assert ended.returncode not in (0, None)
    assert b"cannot go on" in ended.stderr


def test_node_listens_when_live_state_crashes(tmp_path: Path) -> None:
    """The node accepts decisions, reports that it has no numbers, and stops on SIGTERM."""
    server = Crippled(tmp_path)
    server.method = ("services.live_state", "LiveState._step")
    with server:
        assert server.post({"strategy": "s", "provider": "p"})["accepted"] == 1
        health = server.http.get("/health").json()
        assert health["status"] == "degraded"
        assert health["services"]["live"]["failures"] > 0
        assert health["services"]["live"]["last_error"] == "OverflowError; see the server's log"
        assert any(text.startswith("service live: ") for text in health["degraded"])
        assert server.http.get("/ready").json()["ready"] is True
        assert server.instrument('routecast_service_up{service="live"}') == 0
        assert server.instrument('routecast_service_restarts_total{service="live"}') > 0
        assert server.instrument('routecast_service_up{service="ingest"}') == 1
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("service", "method", "protocol"),
    [
        ("channels", ("streaming.channels", "Channels._serve"), None),
        ("channels", ("streaming.channels", "Channels._serve"), V1_JSON),
        ("channels", ("streaming.channels", "Channels._send_first_messages"), V1_JSON),
    ],
)
def test_streams_go_on_after_a_crash(
    tmp_path: Path, service: str, method: tuple[str, str], protocol: str | None
) -> None:
    """Every stream gets its next tick after a crash."""
    server = Crippled(tmp_path)
    server.method, server.crashes = method, 3
    subprotocols = [Subprotocol(protocol)] if protocol else None
    with server, connect(f"{server.ws_url}?interval=0.1", subprotocols=subprotocols) as stream:
        if protocol:
            # Not the view that needs no rendering time: its first message would not be waited for.
            asked = {"fields": ["total_decisions"], "interval": 0.1}
            stream.send(json.dumps({"type": "subscribe", "id": "a", **asked}))
        for number in range(1, 6):
            server.post({"strategy": "s", "provider": "p"})
            while f'"total_decisions":{number}' not in str(stream.recv(timeout=20)):
                pass
        assert server.instrument(f'routecast_service_failures_total{{service="{service}"}}') == 3


STARTED = """
import asyncio, sys
from routecast.server.config import Settings
from routecast.server.engines import open_engines
from routecast.server.services import Services

async def start():
    settings = Settings(database_url=sys.argv[1], prices=sys.argv[2] == "on")
    services = Services(settings, open_engines(settings))
    async with services.running():
        print("genai_prices.data" in sys.modules)

asyncio.run(start())
"""


@pytest.mark.parametrize(("prices", "loaded"), [("on", "True"), ("off", "False")])
def test_prices_are_loaded_before_decisions_come(tmp_path: Path, prices: str, loaded: str) -> None:
    """Loading prices takes up to a second, so the first priced decision must not wait for it."""
    command = [sys.executable, "-c", STARTED, f"sqlite:///{tmp_path}/routecast.db", prices]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == loaded, done.stderr
