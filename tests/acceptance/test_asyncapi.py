"""`GET /asyncapi.json`: real messages of the streams match the schemas in it."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from routecast.core.view import VIEW_PARAMETERS
from tests.support.credentials import SIGNED, bearer, token
from tests.support.server import Server
from tests.support.stream import receive
from tests.support.v1 import v1_client
from tests.support.wire import GOLDEN

FULL = {
    "strategy": "hybrid",
    "provider": "gemini",
    "model": "flash",
    "confidence": 0.9,
    "cost": 0.001,
    "latency_ms": 120,
    "input_tokens": 10,
    "output_tokens": 20,
    "status": "error",
    "fallback": True,
}
EVERYTHING = (
    "total_decisions,avg_confidence,strategy_performance,confidence_distribution,provider_usage,"
    "cost,tokens,latency_ms,errors,fallbacks,models,rate,savings"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a baseline, so that every field has a value."""
    env = {"ROUTECAST_BASELINE_MODEL": "gemini-2.5-pro"}
    with Server(tmp_path_factory.mktemp("server"), env=env) as running:
        yield running


class Described:
    """The AsyncAPI document of a running server."""

    def __init__(self, server: Server) -> None:
        self.document: dict[str, Any] = server.http.get("/asyncapi.json").json()

    def at(self, reference: str) -> Any:
        """Return the object to which a reference in the document points."""
        found: Any = self.document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
        return found

    def check(self, operation: str, message: Any) -> str:
        """Assert that a message is one of an operation's; return its name."""
        good = []
        for reference in self.document["operations"][operation]["messages"]:
            described = self.at(self.at(reference["$ref"])["$ref"])
            schema = {**described["payload"], "components": self.document["components"]}
            if Draft202012Validator(schema).is_valid(message):
                good.append(described["name"])
        assert len(good) == 1, f"{message} is {good or 'nothing'} of {operation}"
        return str(good[0])


@pytest.fixture(scope="module")
def described(server: Server) -> Described:
    """The AsyncAPI document of the server."""
    return Described(server)


def test_every_reference_leads_somewhere(described: Described) -> None:
    """This holds in the whole document, which has all parameters of the streams."""
    text = json.dumps(described.document)
    references = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    assert references
    for reference in references:
        assert described.at(reference)
    query = described.document["channels"]["default"]["bindings"]["ws"]["query"]
    assert set(query["properties"]) == set(VIEW_PARAMETERS)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_messages_are_described(described: Described, name: str) -> None:
    """Each fits exactly one description, and none if it has another type."""
    case = GOLDEN[name]
    operation = {"client": "receive", "server": "send"}[case["direction"]]
    described.check(operation, case["message"])
    with pytest.raises(AssertionError, match="is nothing of"):
        described.check(operation, {**case["message"], "type": "dance"})


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    """A server with authentication."""
    with Server(tmp_path / "guarded", env=SIGNED) as running:
        yield running


async def test_messages_of_a_real_server_are_described(
    server: Server, guarded: Server, described: Described
) -> None:
    """Every kind of message of a real connection fits its description."""
    seen = set()
    short = bearer(token("read", seconds=20))
    async with v1_client(guarded, additional_headers=short) as client:
        expiring = await client.receive_until(lambda message: message["type"] == "token_expiring")
        seen.add(described.check("send", expiring))
    async with v1_client(server) as client:
        asked: list[dict[str, Any]] = [
            {"type": "subscribe", "id": "all", "interval": 0.1, "fields": EVERYTHING.split(",")},
            {"type": "history", "id": "past", "group_by": "provider"},
            {"type": "ping", "id": "p"},
            {"type": "unsubscribe", "id": "nobody"},
            {"type": "ack", "id": "all", "seq": 0},
            {"type": "refresh", "token": "t"},
        ]
        for message in asked:
            described.check("receive", message)
            await client.send(message)
        await client.receive_until(lambda message: message["type"] == "history")
        server.post(FULL)
        await client.receive_until(lambda message: message["type"] == "delta")
        server.terminate()
        with suppress(ConnectionClosed):
            await client.receive_until(lambda _: False)
        for message in client.messages:
            seen.add(described.check("send", message))
    server.wait()
    server.start()
    assert seen == {
        described.at(described.at(reference["$ref"])["$ref"])["name"]
        for reference in described.document["operations"]["send"]["messages"]
    }


async def test_whole_documents_are_described(server: Server, described: Described) -> None:
    """The default stream's documents fit, with all fields and with the usual ones."""
    for query in ("", f"?fields={EVERYTHING}"):
        async with connect(f"{server.ws_url}{query}") as stream:
            assert described.check("follow", await receive(stream)) == "Metrics"
    assert described.check("follow", {"error": "no", "timestamp": "now"}) == "Failure"
