"""The supervisor: services that crash come back, and what failed is told."""

import asyncio
import logging

import pytest

from routecast import supervisor as module
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.supervisor import Supervisor
from tests.unit.running import until

SECRET = "postgresql://user:password@host/"


def failures(instruments: Instruments, service: str) -> float | None:
    name = "routecast_service_failures_total"
    return instruments.registry.get_sample_value(name, {"service": service})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that no test has to wait for."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(module, "STEADY_SECONDS", 0.5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [OverflowError(SECRET), MemoryError(), asyncio.CancelledError()])
async def test_service_that_crashes_is_started_again(
    instruments: Instruments, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """It is told until it has run for a while; its cause is logged once, and never shown."""
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
    lines = [one for one in caplog.records if one.name == "routecast.supervisor"]
    assert [one.levelno for one in lines] == [logging.ERROR, logging.WARNING]


@pytest.mark.usefixtures("quick")
async def test_service_that_ends_by_itself_is_left_alone(instruments: Instruments) -> None:
    """As ingest does at the end, when all that waited is committed."""
    supervisor, runs = Supervisor(instruments), 0

    async def run() -> None:
        nonlocal runs
        runs += 1

    await supervisor.keep("ingest", run)
    assert runs == 1
    assert not supervisor.failing


async def test_failure_at_one_piece_of_work(
    instruments: Instruments, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors that are meant for users are shown as they are, and each cause is logged once."""
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
