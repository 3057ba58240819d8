"""The corpus of hostile requests through nginx of `deploy/`, together with an honest client."""

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.support.hostile_requests import CORPUS, Hostile, Variant, attack
from tests.support.nginx import Nginx, executable
from tests.support.server import Server

GOOD = {"strategy": "honest", "provider": "gemini"}
# These have other outcomes here, all of them right: nginx refuses a tab after a length; it answers
# HTTP/0.9, with no head; it upgrades a WebSocket after the answer before it; it has no /metrics.
OTHER_OUTCOMES = {
    "space after the length",
    "request line: no version",
    "an upgrade before the last answer",
    "HEAD /metrics",
}
CASES = [
    pytest.param(case, variant, id=f"{case.name}-{variant}")
    for case in CORPUS
    if case.name not in OTHER_OUTCOMES
    for variant in case.variants
]
# Times for which nginx waits for the rest of a request, and for another one; here they are shorter
# than the time for which an attack waits for nginx.
SHORTER = {
    "client_header_timeout 10s;": "client_header_timeout 4s;",
    "client_body_timeout 10s;": "client_body_timeout 4s;",
    "keepalive_timeout 75s 75s;": "keepalive_timeout 2s;",
}


# The pause between two requests of the bystander, so that it does not use a whole core.
BYSTANDER_SECONDS = 0.02


class Site(NamedTuple):
    """A node, nginx in front of it, and an honest client."""

    node: Server
    nginx: Nginx
    bystander: "Bystander"


class Bystander:
    """An honest client of nginx, which checks each answer."""

    def __init__(self, url: str) -> None:
        self.kept = 0
        # A connection for each request: nginx may close one that is kept just as a request is sent.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._client = httpx2.Client(base_url=url, timeout=30, limits=limits)
        self._stopping = threading.Event()
        self._wrong: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and assert that each answer was right."""
        self._stopping.set()
        self._thread.join()
        self._client.close()
        assert self._wrong == []
        assert self.kept > 0

    def _run(self) -> None:
        for number in count():
            if self._stopping.wait(BYSTANDER_SECONDS):
                return
            try:
                self._ask(number)
            except httpx2.TransportError as error:
                self._wrong.append(repr(error))

    def _ask(self, number: int) -> None:
        health = self._client.get("/health")
        if health.status_code != 200 or "active_connections" not in health.json():
            self._wrong.append(f"/health: {health.status_code} {health.text[:200]}")
        receipt = self._client.post("/v1/decisions", json={**GOOD, "id": f"honest-{number}"})
        if receipt.status_code != 200 or receipt.json().get("accepted") != 1:
            self._wrong.append(f"a decision: {receipt.status_code} {receipt.text[:200]}")
        else:
            self.kept += 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One node for the whole corpus, so that damage by one attack shows at the next."""
    executable()
    folder: Path = tmp_path_factory.mktemp("hostile")
    with (
        Server(folder) as node,
        Nginx(folder / "nginx", [node.port], replaced=SHORTER) as nginx,
    ):
        bystander = Bystander(nginx.url)
        try:
            yield Site(node, nginx, bystander)
        finally:
            bystander.stop()
        assert node.metrics(strategy="honest")["total_decisions"] == bystander.kept
        assert "Traceback" not in node.log.read_text()


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_no_attack_gets_through(site: Site, case: Hostile, variant: Variant) -> None:
    """The bystander's answers stay right, and valid requests have the outcome of the corpus.

    nginx accepts some requests that a node refuses, for example a line that ends in LF or a broken
    trailer, and passes on a valid request. Bytes behind it are then another request, for nginx and
    for the node alike.
    """
    before = hostile_total(site)
    outcome = attack(case, site.nginx.port, variant)
    kept = hostile_total(site) - before
    if case.after == "open" and all(200 in allowed for allowed in case.statuses):
        assert outcome.statuses == (200,) * len(case.statuses), outcome
        assert not outcome.leaked, outcome
        assert kept == case.kept
    else:
        assert kept <= sum(piece.count(b"/v1/decisions HTTP/1.1") for piece in case.sent)


def test_excluded_cases_are_in_the_corpus() -> None:
    """Each excluded case exists."""
    assert {case.name for case in CORPUS} >= OTHER_OUTCOMES


def hostile_total(site: Site) -> int:
    """Return the number of decisions of the corpus that the node has counted."""
    total: int = site.node.metrics(strategy="hybrid")["total_decisions"]
    return total
