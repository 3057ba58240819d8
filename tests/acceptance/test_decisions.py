"""`POST /v1/decisions` on a real server, as a producer uses it."""

import gzip
import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.server import EDGES, Server

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GOOD: dict[str, Any] = {"strategy": "hybrid", "provider": "gemini"}
MIB = 2**20


@pytest.fixture(scope="module", params=EDGES)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server for all tests of this file, on each edge; each test looks only at what it added."""
    with Server(tmp_path_factory.mktemp("decisions"), edge=request.param) as running:
        yield running


def send(server: Server, body: bytes, **headers: str) -> httpx2.Response:
    return server.http.post("/v1/decisions", content=body, headers=headers)


def total(server: Server) -> int:
    count: int = server.metrics()["total_decisions"]
    return count


def refused(server: Server, answer: httpx2.Response, status: int, *words: str) -> dict[str, Any]:
    """Assert that an answer is a problem with these words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    for word in words:
        assert word in problem["detail"], problem
    return problem


def test_one_object(shared: Server) -> None:
    """A single object is a batch of one, and is acknowledged with its position."""
    before = total(shared)
    receipt = shared.post(GOOD)
    assert receipt["accepted"] == 1
    assert receipt["duplicates"] == receipt["rejected_count"] == 0
    assert receipt["rejected"] == []
    assert receipt["position"]["seq"] > 0
    assert total(shared) == before + 1


def test_empty_array_is_nothing_sent(shared: Server) -> None:
    """An empty array is acknowledged and changes nothing."""
    before = shared.post(GOOD)["position"]
    assert shared.post([]) == {
        "accepted": 0,
        "duplicates": 0,
        "rejected": [],
        "rejected_count": 0,
        "position": before,
        "conflicts": 0,
        "warnings": [],
        "warnings_count": 0,
    }


@pytest.mark.parametrize("coding", ["identity", "gzip", "zstd"])
@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
def test_codings_and_kinds(shared: Server, coding: str, kind: str) -> None:
    """Arrays and NDJSON, plain, gzip or zstd, have the same effect."""
    before = total(shared)
    items = [json.dumps({**GOOD, "reason": f"{coding} {number}"}) for number in range(300)]
    text = "\n".join(items) + "\n" if "ndjson" in kind else f"[{','.join(items)}]"
    pack = {"identity": bytes, "gzip": gzip.compress, "zstd": zstd.compress}[coding]
    headers = {"content-type": kind}
    if coding != "identity":
        headers["content-encoding"] = coding
    answer = send(shared, pack(text.encode()), **headers)
    assert answer.json()["accepted"] == 300, answer.text
    assert total(shared) == before + 300


@pytest.mark.parametrize(
    "fields",
    [
        ["x-gzip"],
        ["GZIP"],
        ["gzip, identity"],
        ["identity, X-Gzip"],
        ["identity", "gzip"],
        ["gzip ,"],
    ],
    ids=str,
)
def test_a_coding_may_be_written_in_many_ways(shared: Server, fields: list[str]) -> None:
    """Several fields are one list (RFC 9110, 5.3), and x-gzip is gzip (8.4.1.3)."""
    headers = [("content-type", "application/json")]
    headers += [("content-encoding", field) for field in fields]
    body = gzip.compress(json.dumps(GOOD).encode())
    answer = shared.http.post("/v1/decisions", content=body, headers=headers)
    assert answer.json()["accepted"] == 1, answer.text


@pytest.mark.parametrize("coding", ["gzip, gzip", "br", "gzip, br", "zstd,gzip", "x-zstd"])
def test_other_codings_are_415(shared: Server, coding: str) -> None:
    """An unknown coding, and two codings on top of each other, get 415."""
    body = gzip.compress(json.dumps(GOOD).encode())
    assert send(shared, body, **{"content-encoding": coding}).status_code == 415


HOSTILE = {
    "lines that are no JSON": (b"x\n" * 99_000, "application/x-ndjson", 400),
    "half-nested lines": (b'{"a":[\n' * 49_000, "application/x-ndjson", 400),
    "numbers over every float": (b"[" + b"1e999," * 49_999 + b"1e999]", "application/json", 422),
    "deep ones": (
        b"[" + (b'{"z":' + b"[" * 2000 + b"]" * 2000 + b"},") * 300 + b"7]",
        "application/json",
        422,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_leave_turns_to_others(shared: Server, name: str) -> None:
    """While a small body makes much work, other producers are answered."""
    body, kind, status = HOSTILE[name]
    packed = gzip.compress(body)
    with ThreadPoolExecutor() as pool:
        headers = {"content-type": kind, "content-encoding": "gzip"}
        hostile = [pool.submit(send, shared, packed, **headers) for _ in range(4)]
        assert send(shared, json.dumps(GOOD).encode()).status_code == 200
        assert [one.result().status_code for one in hostile] == [status] * 4


def test_both_ways_read_small_hostile_bodies_alike(shared: Server) -> None:
    """A body that takes longer than one slice is read in a task, with the same answer."""
    body = b"[" + b",".join([b'{"strategy":"s","provider":"p","cost":5e-324}'] * 1400) + b"]"
    assert len(body) <= 65_536
    fast = send(shared, body)
    asgi = send(shared, gzip.compress(body), **{"content-encoding": "gzip"})
    assert fast.json()["accepted"] == asgi.json()["accepted"] == 1400


def test_partial_acceptance(shared: Server) -> None:
    """Good decisions are kept, bad ones named by index and id, and the counts add up."""
    before = total(shared)
    batch = [
        GOOD,
        {**GOOD, "id": "partial-1", "timestamp": -1},
        {**GOOD, "id": "partial-2"},
        {**GOOD, "id": "partial-2"},
        {"strategy": "hybrid"},
        17,
    ]
    receipt = shared.post(batch)
    assert receipt["rejected"] == [
        {"index": 1, "id": "partial-1", "error": "timestamp: must not be before 1970"},
        {"index": 4, "error": "provider: is required"},
        {"index": 5, "error": "expected an object, got a number"},
    ]
    assert (receipt["accepted"], receipt["duplicates"], receipt["rejected_count"]) == (2, 1, 3)
    assert total(shared) == before + 2


def test_an_id_counts_once(shared: Server) -> None:
    """An id counts once in its project, however often it is sent, and once in another project."""
    batch = [{**GOOD, "id": f"once-{number}"} for number in range(50)]
    assert shared.post(batch)["accepted"] == 50
    again = shared.post(batch)
    assert (again["accepted"], again["duplicates"]) == (0, 50)
    assert shared.post([{**item, "project": "another"} for item in batch])["accepted"] == 50


WAYS: dict[str, dict[str, str]] = {"short": {}, "asgi": {"origin": "http://127.0.0.1"}}


@pytest.mark.parametrize("headers", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("size", [1, 2000], ids=["small", "large"])
def test_an_id_with_another_decision_is_a_conflict(
    shared: Server, headers: dict[str, str], size: int
) -> None:
    """A conflict is counted apart from duplicates, in the answer and in `/metrics`."""
    name = f"conflict-{size}-{len(headers)}-"
    metric = 'routecast_decisions_total{outcome="%s"}'
    before = [shared.instrument(metric % outcome) for outcome in ("duplicate", "conflict")]
    batch = [{**GOOD, "id": f"{name}{n}", "model": "m", "cost": 0.01} for n in range(size)]
    assert send(shared, json.dumps(batch).encode(), **headers).json()["accepted"] == size
    again = [
        *batch,
        {**batch[0], "cost": 0.02},
        {**batch[0], "status": "error"},
        {**batch[0], "model": "n"},
        {**batch[0], "latency_ms": 5},
        {**GOOD, "id": f"{name}new", "cost": 0},
        {**GOOD, "id": f"{name}new", "cost": 0},
        {**GOOD, "id": f"{name}new", "cost": 1e-9},
        {"id": "bad"},
    ]
    answer = send(shared, json.dumps(again).encode(), **headers).json()
    told = [answer[key] for key in ("accepted", "duplicates", "conflicts", "rejected_count")]
    assert told == [1, size + 2, 4, 1]
    assert sum(told) == len(again)
    after = [shared.instrument(metric % outcome) for outcome in ("duplicate", "conflict")]
    assert [one - other for one, other in zip(after, before, strict=True)] == [size + 2, 4]


@pytest.mark.parametrize("headers", WAYS.values(), ids=WAYS)
def test_one_bad_field_costs_only_itself(shared: Server, headers: dict[str, str]) -> None:
    """The decision counts without the field; the answer and `/metrics` say what was wrong."""
    name = f"fields-{len(headers)}"
    counter = 'routecast_field_warnings_total{code="%s",field="%s"}'
    before = shared.instrument(counter % ("not_finite", "cost"))
    body = f'''[
        {{"strategy":"{name}","provider":"p","cost":-1,"model":"gpt-4o","input_tokens":5,
          "output_tokens":5}},
        {{"strategy":"{name}","provider":"p","cost":NaN,"input_tokens":374.0}},
        {{"strategy":"{name}","provider":"p","confidence":1.0000000002,"latency_ms":-0.4}},
        {{"strategy":"{name}","provider":"p","cost":0,"model":"gpt-4o","input_tokens":1000,
          "output_tokens":1000}},
        {{"strategy":"{"s" * 70}","provider":"p","id":"{"i" * 129}{name}","cost":2}},
        {{"strategy":7,"provider":"p","cost":-1}}
    ]'''
    answer = send(shared, body.encode(), **headers).json()
    assert (answer["accepted"], answer["rejected_count"]) == (5, 1)
    number, confidence = "must be a number, not NaN or an infinity", "must be a number from 0 to 1"
    told = answer["warnings"]
    assert answer["warnings_count"] == len(told) == 6
    assert told[:2] == [
        {"index": 0, "field": "cost", "code": "negative", "message": "must be 0 or more"},
        {"index": 1, "field": "cost", "code": "not_finite", "message": number},
    ]
    assert told[2]["message"].startswith(confidence)
    assert [(one["index"], one["field"], one["code"]) for one in told[2:]] == [
        (2, "confidence", "too_large"),
        (2, "latency_ms", "negative"),
        (4, "strategy", "truncated"),
        (4, "id", "hashed"),
    ]
    found = shared.metrics(strategy=name, fields="total_decisions,cost,tokens,avg_confidence")
    assert found["total_decisions"] == 4
    assert found["cost"] == {"total": 0.0, "priced": 1, "unpriced": 3}
    assert found["tokens"]["input"] == 5 + 374 + 1000
    assert found["avg_confidence"] is None
    assert shared.instrument(counter % ("not_finite", "cost")) == before + 1
    again = send(shared, body.encode(), **headers).json()
    assert again["accepted"] == 4  # those without an id; the long one is known
    assert (again["duplicates"], again["conflicts"]) == (1, 0)


def test_at_most_a_hundred_warnings_are_listed(shared: Server) -> None:
    """Further warnings are only counted; they contain no text of the client, so they stay small."""
    bad = {**GOOD, "cost": "x" * 500, "latency_ms": -1, "status": "y" * 500}
    answer = shared.post([bad] * 1500)
    assert (answer["accepted"], answer["warnings_count"]) == (1500, 4500)
    assert len(answer["warnings"]) == 100
    assert [one["index"] for one in answer["warnings"][:6]] == [0, 0, 0, 1, 1, 1]
    assert len(json.dumps(answer)) < 20_000


def test_local_models_have_no_price_and_cached_tokens_their_own(shared: Server) -> None:
    """A local model costs what was sent; cached tokens have the cache's price."""
    sent = {"strategy": "prices", "model": "gpt-4o", "input_tokens": 10**6, "output_tokens": 0}
    cases: list[tuple[str, dict[str, float], float | None]] = [
        ("openai", {}, 2.5),
        ("openai", {"cached_tokens": 10**6}, 1.25),
        ("openai", {"cached_tokens": 400_000.0}, 2.0),
        ("ollama", {}, None),
        ("hosted_vllm", {"cost": 0.5}, 0.5),
    ]
    for provider, more, cost in cases:
        before = shared.metrics(strategy="prices", fields="cost")["cost"]
        shared.post({**sent, "provider": provider, **more})
        after = shared.metrics(strategy="prices", fields="cost")["cost"]
        assert after["total"] - before["total"] == pytest.approx(cost or 0)
        assert after["priced"] - before["priced"] == (cost is not None)


def test_a_baseline_with_tiers_is_logged(tmp_path: Path) -> None:
    """Savings compare with the baseline's lowest tier, and the log says so."""
    env = {"ROUTECAST_BASELINE_MODEL": "gemini-2.5-pro"}
    with Server(tmp_path, env=env) as server:
        server.post({**GOOD, "cost": 0.5, "input_tokens": 10**6, "output_tokens": 0})
        assert server.metrics(fields="savings")["savings"]["total"] == 1.25 - 0.5
        assert "requests of over 200,000 input tokens" in server.log.read_text()


def test_at_most_a_hundred_rejections_are_listed(shared: Server) -> None:
    """Further rejections are only counted."""
    receipt = shared.post([GOOD, *({} for _ in range(250))])
    assert len(receipt["rejected"]) == 100
    assert receipt["rejected_count"] == 250


def test_all_bad_is_422(shared: Server) -> None:
    """A batch without a good decision gets 422, which names each decision."""
    before = total(shared)
    problem = refused(shared, send(shared, b'[{"strategy":"a"}]'), 422, "provider: is required")
    assert problem["rejected"] == [{"index": 0, "error": "provider: is required"}]
    assert problem["rejected_count"] == 1
    assert total(shared) == before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"strategy=a", "not JSON"),
        (b'"text"', "expected an object or an array, got a string"),
        (b'[{"strategy":"a","provider":"b","cost":nan}]', "not JSON"),
        (b'{"strategy":"\xed\xa0\x80","provider":"b"}', "not UTF-8 at byte 13"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"strategy":"a","provider":"b"}', "not JSON"),
        (b'{"strategy":"a","provider":"b"}\n{"strategy":"a","provider":"b"}', "x-ndjson"),
    ],
)
def test_not_json_is_400(shared: Server, body: bytes, words: str) -> None:
    """The error says what is wrong and where, and no decision of the body is stored."""
    before = total(shared)
    refused(shared, send(shared, body), 400, words)
    assert total(shared) == before


def test_broken_lines_are_named(shared: Server) -> None:
    """A bad NDJSON line is one rejection; the other lines are stored."""
    body = b'{"strategy":"a","provider":"b"}\n{"strategy":\n\n{"strategy":"a","provider":"c"}'
    answer = send(shared, body, **{"content-type": "application/x-ndjson"}).json()
    assert answer["accepted"] == 2
    assert [item["index"] for item in answer["rejected"]] == [1]
    assert "not JSON" in answer["rejected"][0]["error"]


def test_too_large_is_413(shared: Server) -> None:
    """More than 16 MiB, announced, sent or decompressed, or 50,000 decisions get 413."""
    before = total(shared)
    filler = b" " * (16 * MIB) + b"[]"
    refused(shared, send(shared, filler), 413, "16 MiB")

    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * MIB

    refused(shared, shared.http.post("/v1/decisions", content=chunks()), 413, "16 MiB")
    bomb = gzip.compress(b"[" + b" " * (1024 * MIB), compresslevel=1)
    refused(shared, send(shared, bomb, **{"content-encoding": "gzip"}), 413, "16 MiB")
    bomb = zstd.compress(b"[" + b" " * (1024 * MIB))
    refused(shared, send(shared, bomb, **{"content-encoding": "zstd"}), 413, "16 MiB")
    many = b"[" + b",".join([b'{"strategy":"a","provider":"b"}'] * 50_001) + b"]"
    refused(shared, send(shared, many), 413, "50,001 decisions", "50,000")
    assert total(shared) == before


def test_the_largest_batch_is_taken(shared: Server) -> None:
    """Fifty thousand decisions are one batch and one commit."""
    before = shared.post(GOOD)["position"]["seq"]
    many = b"[" + b",".join([b'{"strategy":"a","provider":"b"}'] * 50_000) + b"]"
    answer = send(shared, many).json()
    assert answer["accepted"] == 50_000
    assert answer["position"]["seq"] == before + 1


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_gzip_with_many_members(shared: Server, coding: str) -> None:
    """Several gzip members are one body; a body with endless empty members is refused."""
    pack = {"gzip": gzip.compress, "zstd": zstd.compress}[coding]
    headers = {"content-encoding": coding}
    parts = pack(b"[") + pack(json.dumps(GOOD).encode()) + pack(b"]")
    assert send(shared, parts, **headers).json()["accepted"] == 1
    refused(shared, send(shared, pack(b"") * 100_000, **headers), 400, "more than 1000 parts")


@pytest.mark.parametrize(
    ("unit", "kind"),
    [(b"0,", "application/json"), (b"[],", "application/json"), (b"0\n", "application/x-ndjson")],
)
def test_endless_small_values_are_413(shared: Server, unit: bytes, kind: str) -> None:
    """16 MB of tiny values are refused before any of them is decoded."""
    body = gzip.compress(b"[" + unit * (15 * MIB // len(unit)) + b"0]")
    headers = {"content-encoding": "gzip", "content-type": kind}
    refused(shared, send(shared, body, **headers), 413, "50,000")


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_broken_compression_is_400(shared: Server, coding: str) -> None:
    """A body that is not compressed as it says, or is truncated, gets 400."""
    pack = {"gzip": gzip.compress, "zstd": zstd.compress}[coding]
    packed = pack(json.dumps([GOOD] * 1000).encode())
    headers = {"content-encoding": coding}
    refused(shared, send(shared, b"plain", **headers), 400, f"not {coding}")
    refused(shared, send(shared, packed[: len(packed) // 2], **headers), 400, "cut off")
    refused(shared, send(shared, b"x", **{"content-encoding": "br"}), 415, "gzip, zstd")


def test_a_body_cut_in_half_is_not_kept(shared: Server) -> None:
    """Nothing is stored of a request whose producer dies in its middle."""
    before = total(shared)
    body = json.dumps([GOOD] * 1000).encode()
    with socket.create_connection(("127.0.0.1", shared.port)) as line:
        head = f"POST /v1/decisions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        line.sendall(head.encode() + body[: len(body) // 2])
    assert total(shared) == before


def test_a_page_of_another_site_may_not_write(shared: Server) -> None:
    """A browser sends the page's origin, and an origin that is not allowed is refused."""
    body = json.dumps(GOOD).encode()
    answer = send(shared, body, origin="https://evil.example")
    refused(shared, answer, 403, "Origin", "ROUTECAST_ALLOWED_ORIGINS")
    assert send(shared, body, origin=shared.url).status_code == 200
    assert send(shared, body, origin="http://localhost:5173").status_code == 200


def test_names_over_the_limit_count_as_other(tmp_path: Path) -> None:
    """Decisions with names over the limit count as `other`, and a metric counts them."""
    with Server(tmp_path, env={"ROUTECAST_MAX_NAMES": "3"}) as server:
        server.post([{**GOOD, "strategy": f"s{number}"} for number in range(10)])
        found = server.metrics()["strategy_performance"]
        assert {name: group["count"] for name, group in found.items()} == {
            "other": 7,
            "s0": 1,
            "s1": 1,
            "s2": 1,
        }
        assert "routecast_names_folded_total 7.0" in server.http.get("/metrics").text
        tenants = [{**GOOD, "id": "1", "project": f"tenant-{number}"} for number in range(9)]
        assert server.post(tenants)["accepted"] == 9
        assert server.post(tenants)["duplicates"] == 9


def test_a_full_sum_fails_alone(tmp_path: Path) -> None:
    """A decision that would overflow a sum is rejected; other decisions are accepted."""
    with Server(tmp_path) as server:
        heavy = b"[" + b",".join([b'{"strategy":"a","provider":"b","cost":9000}'] * 50_000) + b"]"
        answers = [send(server, heavy) for _ in range(22)]
        assert [answer.status_code for answer in answers[:20]] == [200] * 20
        refused(server, answers[-1], 422, "cost: the sum of its series is at its limit")
        assert server.http.get("/ready").status_code == 200
        assert server.post({**GOOD, "cost": 1})["accepted"] == 1


def test_openapi_describes_it(shared: Server) -> None:
    """The schema has every field of a decision, with its limits."""
    schema = shared.http.get("/openapi.json").json()
    post = schema["paths"]["/v1/decisions"]["post"]
    statuses = ("200", "400", "401", "403", "413", "415", "421", "422", "429", "503")
    assert set(post["responses"]) == {*statuses}
    fields = schema["components"]["schemas"]["DecisionIn"]["properties"]
    assert set(fields) == {
        *("strategy", "provider", "model", "id", "timestamp", "confidence", "cost", "latency_ms"),
        *("input_tokens", "output_tokens", "cached_tokens", "status", "fallback", "reason"),
        "project",
    }
    assert fields["strategy"]["maxLength"] == 64
