"""`GET /v1/history` on a real server."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import apsw

from tests.support.raw import TEXT, frame, open_stream
from tests.support.server import Server

GOOD = {"strategy": "hybrid", "provider": "gemini", "cost": 0.25}


def history(server: Server, **asked: Any) -> dict[str, Any]:
    """Return the answer to a query, which must be 200."""
    answer = server.http.get("/v1/history", params=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


def test_acknowledged_decisions_are_in_the_history(server: Server) -> None:
    """A history contains each acknowledged decision at once, in its bucket and at its position."""
    now = time.time()
    for number in range(1, 4):
        receipt = server.post({**GOOD, "timestamp": now - 3600 * number})
        found = history(
            server, **{"from": now - 7200, "to": now, "points": 2, "group_by": "strategy"}
        )
        assert found["position"] == receipt["position"]
    assert found["step"] == 7200
    found = history(server, **{"from": now - 4 * 3600, "to": now, "points": 5})
    assert list(found) == ["position", "step", "from", "points", "series"]
    assert (found["step"], found["points"]) == (3600, 5)
    first = datetime.fromtimestamp((now - 4 * 3600) // 3600 * 3600, UTC)
    assert found["from"] == first.isoformat(timespec="microseconds")
    assert found["series"] == [
        {"key": "all", "count": [0, 1, 1, 1, 0], "cost": [None, 0.25, 0.25, 0.25, None]}
    ]


def test_groups_fields_and_filters(server: Server) -> None:
    """A history has the groups, fields and filters of its query."""
    server.post([GOOD, {**GOOD, "strategy": "cost", "status": "error"}, {**GOOD, "model": "m"}])
    once = {"from": 0, "points": 1}
    found = history(server, **once, group_by="status", fields="errors,count", model="m")
    assert found["series"] == [{"key": "success", "count": [1], "errors": [0]}]
    found = history(server, **once, group_by="strategy", fields="count")
    assert [(one["key"], one["count"]) for one in found["series"]] == [
        ("hybrid", [2]),
        ("cost", [1]),
    ]


def test_a_long_range_is_answered_in_few_points(server: Server) -> None:
    """Ten years have few points; by the second they are refused, with the parameter's name."""
    now = time.time()
    server.post(GOOD)
    ten_years = {"from": now - 10 * 365 * 86_400, "to": now}
    found = history(server, **ten_years, points=2000)
    assert sum(found["series"][0]["count"]) == 1
    refused = server.http.get("/v1/history", params={**ten_years, "points": 315_360_000})
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json() == {
        "title": "Bad Request",
        "status": 400,
        "detail": "points: must be an integer from 1 to 2,000",
        "parameter": "points",
    }


def test_without_its_database_it_says_when_to_come_back(server: Server) -> None:
    """Without a database the answer is 503 with `Retry-After`, and not an old history."""
    server.post(GOOD)
    other = apsw.Connection(str(server.database))
    other.set_busy_timeout(10_000)
    other.execute("ALTER TABLE rollups RENAME TO taken_away")
    refused = server.http.get("/v1/history", params={"points": 3})
    other.execute("ALTER TABLE taken_away RENAME TO rollups")
    other.close()
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["content-type"] == "application/problem+json"
    assert sum(history(server, points=3)["series"][0]["count"]) == 1


def test_openapi_says_what_there_is(server: Server) -> None:
    """The document describes each parameter and each field of the answer."""
    schema = server.http.get("/openapi.json").json()
    described = schema["paths"]["/v1/history"]["get"]
    assert [parameter["name"] for parameter in described["parameters"]] == [
        *("from", "to", "points", "group_by", "fields"),
        *("strategy", "provider", "model", "project"),
    ]
    fields = described["parameters"][4]["schema"]["items"]["enum"]
    server.post(GOOD)
    found = history(server, fields=",".join(fields))
    answer = described["responses"]["200"]["content"]["application/json"]["schema"]
    assert list(found) == answer["required"] == list(answer["properties"])
    series = answer["properties"]["series"]["items"]["properties"]
    assert list(found["series"][0]) == list(series) == ["key", *fields]
    reference = json.dumps(described["responses"]["400"])
    assert "#/components/schemas/Problem" in reference
    assert "Problem" in schema["components"]["schemas"]


LARGE: dict[str, Any] = {
    "points": 2000,
    "group_by": "strategy",
    "fields": ["count", "cost", "avg_cost", "avg_confidence", "errors", "fallbacks"],
}


def test_readers_of_nothing_share_a_large_answer(server: Server) -> None:
    """Clients that read none of a large answer hold little memory and are disconnected."""
    server.post([{**GOOD, "strategy": f"s{n}", "timestamp": time.time() - 60} for n in range(30)])
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 30 * 3600))
    asked = json.dumps({"type": "history", "id": "h", "from": began, **LARGE}).encode()
    reader = server.http.get(
        "/v1/history", params={**LARGE, "fields": ",".join(LARGE["fields"]), "from": began}
    )
    assert len(reader.content) > 1_000_000
    before = server.memory()
    stalled = [
        open_stream(server.port, subprotocol="routecast.v1.json", receive_buffer=4096)
        for _ in range(60)
    ]
    for stream in stalled:
        stream.send(frame(TEXT, asked))
    most = 0
    started = time.monotonic()
    while not server.closed(4409):  # others wait for room, and are told to come back
        assert time.monotonic() - started < 120
        most = max(most, server.memory())
        assert history(server, points=5)["points"] == 5
        time.sleep(0.05)
    for stream in stalled:
        stream.socket.close()
    assert most - before < 60 * len(reader.content) / 2


def test_a_connection_may_ask_for_many_at_once(server: Server) -> None:
    """All sixteen queries of one connection are answered, one after the other."""
    server.post(GOOD)
    with open_stream(server.port, subprotocol="routecast.v1.json") as connection:
        for number in range(16):
            asked = {"type": "history", "id": f"h{number}", "points": number + 1}
            connection.send(frame(TEXT, json.dumps(asked).encode()))
        told = set()
        while len(told) < 16:
            read = connection.frame()
            assert read is not None
            message = json.loads(read[1])
            assert message["type"] in ("hello", "history")
            told.update([message["id"]] if message["type"] == "history" else [])
