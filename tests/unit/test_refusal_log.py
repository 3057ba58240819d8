"""Tests of `RefusalLog`: many refused requests make few log lines."""

import logging
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, Counter

from routecast.edge.http.refusal_log import LOG_SECONDS, RefusalLog


class Timers:
    """Timers that run when the test calls `run`."""

    def __init__(self) -> None:
        self.due: list[tuple[Callable[[str], None], str]] = []

    def call_later(self, seconds: float, action: Callable[[str], None], cause: str) -> None:
        assert seconds == LOG_SECONDS
        self.due.append((action, cause))

    def run(self) -> None:
        due, self.due = self.due, []
        for action, cause in due:
            action(cause)


def test_one_line_for_each_cause(caplog: pytest.LogCaptureFixture) -> None:
    """The first refusal is logged at once, and then one line has the count of further ones."""
    registry = CollectorRegistry()
    counter = Counter("refused", "Refused.", ["cause"], registry=registry)
    timers = Timers()
    refusal_log = RefusalLog(logging.getLogger("test"), counter, timers.call_later)
    for _ in range(1_235):
        refusal_log.add("too large")
    refusal_log.add("too slow")
    assert caplog.messages == ["Refused a request: too large", "Refused a request: too slow"]
    caplog.clear()
    timers.run()
    assert caplog.messages == ["Refused 1,234 requests in 10 s: too large"]
    caplog.clear()
    refusal_log.add("too large")
    refusal_log.add("too slow")  # it was quiet for ten seconds
    assert caplog.messages == ["Refused a request: too slow"]
    caplog.clear()
    timers.run()
    assert caplog.messages == ["Refused 1 request in 10 s: too large"]
    timers.run()
    timers.run()
    assert not timers.due
    assert registry.get_sample_value("refused_total", {"cause": "too large"}) == 1_236
