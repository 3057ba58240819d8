"""The corpus of hostile requests on a real server, on the fast path and over ASGI."""

from collections.abc import Iterator

import pytest

from tests.support.hostile_requests import CORPUS, Hostile, Variant, attack
from tests.support.server import Server

CASES = [
    pytest.param(case, variant, id=f"{case.name}-{variant}")
    for case in CORPUS
    for variant in case.variants
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the whole corpus; no request may leave anything behind on it."""
    with Server(tmp_path_factory.mktemp("hostile")) as running:
        yield running
        assert running.active() == 0
        assert "Traceback" not in running.log.read_text()


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_a_hostile_request_has_its_outcome(server: Server, case: Hostile, variant: Variant) -> None:
    """Each request gets exactly its answers, and the connection stays open or ends as listed."""
    before = server.metrics()["total_decisions"]
    outcome = attack(case, server.port, variant)
    assert not outcome.leaked, outcome
    assert len(outcome.statuses) == len(case.statuses), outcome
    for status, allowed in zip(outcome.statuses, case.statuses, strict=True):
        assert status in allowed, outcome
    assert case.after == "either" or outcome.open == (case.after == "open"), outcome
    assert server.metrics()["total_decisions"] - before == case.kept


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name)
        for case in CORPUS
        if sum(map(len, case.sent)) < 600 and not case.bodiless and not case.at_once
    ],
)
def test_it_has_the_same_outcome_byte_by_byte(server: Server, case: Hostile) -> None:
    """The outcome does not depend on how the bytes are split into packets."""
    before = server.metrics()["total_decisions"]
    outcome = attack(case, server.port, size=1)
    assert not outcome.leaked, outcome
    assert len(outcome.statuses) == len(case.statuses), outcome
    assert case.after == "either" or outcome.open == (case.after == "open"), outcome
    assert server.metrics()["total_decisions"] - before == case.kept
