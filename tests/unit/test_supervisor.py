"""The supervisor: it restarts crashed services, and reports failures."""

import asyncio
import logging
from contextlib import suppress

import pytest

from routecast.errors import BadSettings, Unavailable
from routecast.instruments import Instruments
from routecast.service_parts import run_parts
from routecast.services import supervisor as module
from routecast.services.supervisor import Supervisor
from tests.support.running_services import until

SECRET = "postgresql://user:password@host/"


def failures(instruments: Instruments, service: str) -> float | None:
    name = "routecast_service_failures_total"
    return instruments.registry.get_sample_value(name, {"service": service})


def sample(instruments: Instruments, what: str, service: str) -> float | None:
    name = f"routecast_service_{what}"
    return instruments.registry.get_sample_value(name, {"service": service})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(module, "STEADY_SECONDS", 0.5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [OverflowError(SECRET), MemoryError(), asyncio.CancelledError()])
async def test_service_that_crashes_is_started_again(
    instruments: Instruments, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """It is `failing` until it has run for a while; the cause is logged once, and not shown."""
    supervisor, runs = Supervisor(instruments), 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs <= 5:
            raise error
        await asyncio.Event().wait()

    async with supervisor.running("summaries", run):
        await until(lambda: runs == 6)
        told = supervisor.failing["summaries"]
        assert told.failures == 5
        assert told.last_error == f"{type(error).__name__}; see the server's log"
        assert failures(instruments, "summaries") == 5
        await until(lambda: not supervisor.failing)
    assert failures(instruments, "summaries") == 5
    lines = [one for one in caplog.records if one.name == "routecast.services.supervisor"]
    assert [one.levelno for one in lines] == [logging.ERROR, logging.WARNING]
    state = supervisor.services["summaries"]
    assert (state.status, state.failures, state.restarts) == ("ok", 0, 5)
    assert state.last_error == f"{type(error).__name__}; see the server's log"
    assert sample(instruments, "restarts_total", "summaries") == 5
    assert sample(instruments, "up", "summaries") == 1


@pytest.mark.usefixtures("quick")
async def test_service_that_may_end_is_not_started_again(instruments: Instruments) -> None:
    """Ingest ends at a stop, when all waiting batches are committed."""
    supervisor, runs = Supervisor(instruments), 0

    async def run() -> None:
        nonlocal runs
        runs += 1

    await supervisor.keep("ingest", run, ends=True)
    assert runs == 1
    assert not supervisor.failing
    assert supervisor.services["ingest"].status == "ok"


@pytest.mark.usefixtures("quick")
async def test_service_that_must_not_end_is_started_again(instruments: Instruments) -> None:
    """Returning counts as a crash."""
    supervisor, runs = Supervisor(instruments), 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs > 2:
            await asyncio.Event().wait()

    async with supervisor.running("census", run):
        await until(lambda: runs == 3)
        assert supervisor.services["census"].restarts == 2
        assert supervisor.failing["census"].last_error == "it ended by itself"


async def test_vital_service_is_down_until_it_is_started_again(
    instruments: Instruments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile nothing that needs it works; another crashed service only degrades the node."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.2)
    supervisor, up = Supervisor(instruments), asyncio.Event()

    async def crash_once() -> None:
        if not up.is_set():
            up.set()
            raise OverflowError
        await asyncio.Event().wait()

    task = supervisor.start("ingest", crash_once, vital=True)
    await until(lambda: supervisor.down is not None)
    assert "ingest" in str(supervisor.down)
    assert supervisor.services["ingest"].status == "down"
    assert sample(instruments, "up", "ingest") == 0
    await until(lambda: supervisor.down is None)
    assert supervisor.services["ingest"].status == "failing"  # until it has worked for a while
    task.cancel()
    await asyncio.wait([task])
    up.clear()
    async with supervisor.running("census", crash_once):
        await until(lambda: "census" in supervisor.failing)
        assert supervisor.down is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [OverflowError(), BadSettings("no such database")])
async def test_hopeless_services_end_the_process(
    instruments: Instruments, error: Exception
) -> None:
    """A vital service crashes each time, or a setting is wrong."""
    told: list[str] = []
    supervisor = Supervisor(instruments, told.append)

    async def run() -> None:
        raise error

    vital = not isinstance(error, BadSettings)
    task = supervisor.start("ingest" if vital else "open", run, vital=vital)
    await until(lambda: told)
    if vital:
        assert supervisor.services["ingest"].restarts == module.MAX_CRASHES - 1
    else:
        assert told[0] == "open: no such database"
    task.cancel()
    await asyncio.wait([task])


async def test_part_that_cancels_itself_is_a_crash() -> None:
    """A task group would go on without it."""

    async def part() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="was cancelled"):
        await run_parts(part, asyncio.Event().wait)  # type: ignore[arg-type]  # -- returns True


async def test_service_that_does_not_end_is_left_behind(
    instruments: Instruments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends nevertheless."""
    monkeypatch.setattr(module, "SERVICE_END_SECONDS", 0.05)
    supervisor, free = Supervisor(instruments), asyncio.Event()

    async def run() -> None:
        while not free.is_set():
            with suppress(asyncio.CancelledError):
                await free.wait()

    async with supervisor.running("bus", run):
        await asyncio.sleep(0)
    free.set()
    await until(lambda: all(task.get_name() != "bus" for task in asyncio.all_tasks()))


async def test_failed_piece_of_work_is_reported(
    instruments: Instruments, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors for users are shown with their text, and each cause is logged once."""
    supervisor = Supervisor(instruments)
    for _ in range(3):
        supervisor.failed("summaries", Unavailable("it is away"), "one hour")
    supervisor.failed("summaries", ValueError(SECRET), "another hour")
    assert supervisor.failing["summaries"].failures == 4
    assert SECRET not in supervisor.failing["summaries"].last_error
    supervisor.failed("summaries", Unavailable("it is away"))
    assert supervisor.failing["summaries"].last_error == "it is away"
    assert caplog.text.count("failed at one hour") == caplog.text.count("at another hour") == 1
    supervisor.works("summaries")
    assert supervisor.failing == {}
    assert failures(instruments, "summaries") == 5
