"""The corpus of hostile requests through nginx of `deploy/`, beside well-behaved clients."""

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
OTHERWISE = {
    "space after the length",
    "request line: no version",
    "an upgrade before the last answer",
    "HEAD /metrics",
}
CASES = [
    pytest.param(case, variant, id=f"{case.name}-{variant}")
    for case in CORPUS
    if case.name not in OTHERWISE
    for variant in case.variants
]
# nginx waits for the rest of an incomplete request, and for another request on a connection; here
# not as long as an attack waits for nginx.
SHORTER = {
    "client_header_timeout 10s;": "client_header_timeout 4s;",
    "client_body_timeout 10s;": "client_body_timeout 4s;",
    "keepalive_timeout 75s 75s;": "keepalive_timeout 2s;",
}


# Between two requests of the bystander: often, and without taking a core.
BYSTANDER_SECONDS = 0.02


class Site(NamedTuple):
    """A node, nginx in front of it, and a client that wants nothing but right answers."""

    node: Server
    nginx: Nginx
    bystander: "Bystander"


class Bystander:
    """An honest client of nginx: it asks and posts all the time, on connections of its own."""

    def __init__(self, url: str) -> None:
        self.kept = 0
        self._client = httpx2.Client(base_url=url, timeout=30)
        self._stopping = threading.Event()
        self._wrong: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and say whether each answer was right."""
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
    """One node for the whole corpus: what an attack leaves behind shows at the next."""
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
    """The bystander's answers stay right, and what is right in itself has the same outcome.

    nginx is more lenient than a node, with a line that ends in LF, say, or a broken trailer: it
    makes a request of it that is right. Then bytes behind that request are another request, for
    nginx and for the node alike.
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


def test_otherwise_is_in_the_corpus() -> None:
    """No case is left out that is not there."""
    assert {case.name for case in CORPUS} >= OTHERWISE


def hostile_total(site: Site) -> int:
    """Return how many decisions of the corpus the node has counted."""
    total: int = site.node.metrics(strategy="hybrid")["total_decisions"]
    return total
