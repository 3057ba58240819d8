"""Limits per client on real servers, on both HTTP paths, and on two nodes that share a Redis."""

import asyncio
import gzip
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as connect_sync

from routecast.client import Recorder
from tests.support.command import routecast
from tests.support.credentials import SIGNED, bearer, token
from tests.support.postgres import Postgres
from tests.support.raw import RawConnection
from tests.support.redis import RedisServer
from tests.support.server import EDGES, Edge, Server
from tests.support.v1 import V1Client, v1_client
from tests.support.waiting import until

DECISION: Final = {"strategy": "s", "provider": "p"}
QUOTA: Final = 60  # decisions in a minute
LIMITS: Final = {
    **SIGNED,
    "ROUTECAST_MAX_DECISIONS_A_MINUTE": str(QUOTA),
    "ROUTECAST_MAX_PER_SUBJECT": "2",
    "ROUTECAST_MAX_FRAMES_A_SECOND": "12",
    "ROUTECAST_MAX_MESSAGES_A_MINUTE": "10",
    "ROUTECAST_MAX_BYTES_A_MINUTE": "2000",
    "ROUTECAST_MAX_SESSIONS_A_DAY": "2",
    "ROUTECAST_MAX_TICKETS_A_MINUTE": "2",
    "ROUTECAST_FAILED_SIGN_INS": "3",
}


@pytest.fixture(scope="module", params=EDGES)
def edge(request: pytest.FixtureRequest) -> Edge:
    """The two ways in which HTTP is served."""
    chosen: Edge = request.param
    return chosen


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[Server]:
    """A server with low limits."""
    with Server(tmp_path_factory.mktemp("limited"), env=LIMITS, edge=edge) as running:
        yield running


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory, edge: Edge) -> Iterator[Server]:
    """A server with the same limits, and one connection, all in dry run."""
    env = {
        **LIMITS,
        "ROUTECAST_MAX_PER_ADDRESS": "1",
        "ROUTECAST_MAX_CONNECTIONS_A_MINUTE": "1",
        "ROUTECAST_DRY_RUN": "all",
    }
    with Server(tmp_path_factory.mktemp("dry"), env=env, edge=edge) as running:
        yield running


def of(subject: str, *scopes: str) -> dict[str, str]:
    """Return the header of a subject of its own."""
    return bearer(token(*(scopes or ("read", "write")), sub=subject))


def send(server: Server, subject: str, count: int, **fields: str) -> httpx2.Response:
    """Send decisions of a subject; `fields` are of the head."""
    body = json.dumps([DECISION] * count).encode()
    if "Content-Encoding" in fields:
        body = gzip.compress(body)
    return server.http.post("/v1/decisions", content=body, headers={**of(subject), **fields})


def hits(server: Server, mode: str) -> dict[str, float]:
    """Return the hits of each limit, without those that have none."""
    text = server.http.get("/metrics", headers=of("operator", "admin")).text
    found = re.findall(r"^routecast_limit_hits_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    read = [(dict(re.findall(r'(\w+)="(\w+)"', labels)), float(value)) for labels, value in found]
    assert len(read) == 20
    return {labels["limit"]: value for labels, value in read if value and labels["mode"] == mode}


def wait_until_all_have_left(server: Server) -> None:
    """Wait until no stream is open."""
    head = of("operator", "admin")
    until(lambda: server.http.get("/health", headers=head).json()["active_connections"] == 0)


def assert_refused(answer: httpx2.Response, limit: str, amount: int) -> None:
    """Check each part of a 429."""
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 429
    seconds = int(answer.headers["retry-after"])
    assert seconds >= 1
    policy, state = answer.headers["ratelimit-policy"], answer.headers["ratelimit"]
    if limit.startswith("streams_"):
        assert (policy, state) == (f'"{limit}";q={amount}', f'"{limit}";r=0')
    else:
        assert re.fullmatch(rf'"{limit}";q={amount};w=\d+', policy)
        assert state == f'"{limit}";r=0;t={seconds}'


# -- decisions ----------------------------------------------------------------------------------

# A head by which `routecast serve` reads a request on the fast path, or not.
PATHS: Final[dict[str, dict[str, str]]] = {"fast": {}, "ASGI": {"Content-Encoding": "gzip"}}


@pytest.mark.parametrize("path", PATHS)
def test_decisions_of_a_subject_are_limited(limited: Server, path: str) -> None:
    """What is refused is not stored; other subjects are served."""
    subject = f"producer-{path}"
    assert send(limited, subject, QUOTA - 1, **PATHS[path]).status_code == 200
    answer = send(limited, subject, 10, **PATHS[path])
    assert_refused(answer, "ingest", QUOTA)
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert send(limited, f"{subject}-2", 10, **PATHS[path]).status_code == 200
    assert hits(limited, "enforced")["ingest"] >= 1


def test_a_body_of_a_client_over_its_limit_is_not_decoded(limited: Server) -> None:
    """It is refused whatever is in it."""
    send(limited, "flooder", QUOTA + 20)
    answer = limited.http.post("/v1/decisions", content=b"[{", headers=of("flooder"))
    assert_refused(answer, "ingest", QUOTA)


def test_without_authentication_addresses_are_limited(tmp_path: Path, edge: Edge) -> None:
    """They are those that trusted proxies report."""
    env = {"ROUTECAST_MAX_DECISIONS_A_MINUTE": str(QUOTA)}
    with Server(tmp_path, env=env, edge=edge) as server:
        for address, counts in {"203.0.113.7": (QUOTA, 1), "2001:db8::1": (QUOTA, 1)}.items():
            statuses = [
                server.http.post(
                    "/v1/decisions",
                    json=[DECISION] * count,
                    headers={"X-Forwarded-For": address},
                ).status_code
                for count in counts
            ]
            assert statuses == [200, 429], address
        same_site = {"X-Forwarded-For": "2001:db8::2"}
        answer = server.http.post("/v1/decisions", json=DECISION, headers=same_site)
        assert_refused(answer, "ingest", QUOTA)


def test_the_recorder_waits_as_long_as_it_is_told(limited: Server) -> None:
    """And loses nothing."""
    credential = token("write", sub="recorder")
    began = time.monotonic()
    with Recorder(limited.url, token=credential, exit_timeout=60) as recorder:
        recorder.record(**DECISION)
        until(lambda: recorder.counters.sent == 1)
        send(limited, "recorder", QUOTA - 1)
        for _ in range(5):
            recorder.record(**DECISION)
        assert recorder.flush(60)
        assert recorder.counters.sent == 6
    assert time.monotonic() - began > 1.0


def test_replay_waits_as_long_as_it_is_told(limited: Server, tmp_path: Path) -> None:
    """And sends every row."""
    file = tmp_path / "rows.jsonl"
    rows = [{**DECISION, "id": f"row-{number}"} for number in range(5)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    send(limited, "importer", QUOTA)
    done = routecast(
        *("replay", file, "--server", limited.url),
        env={**os.environ, "ROUTECAST_API_KEY": token("read", "write", sub="importer")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5" in done.stdout + done.stderr


# -- streams ------------------------------------------------------------------------------------


async def refusal(server: Server, subject: str, query: str = "") -> httpx2.Response:
    """Return the answer to an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(server.ws_url + query, additional_headers=of(subject)):
            pass
    answer = refused.value.response
    return httpx2.Response(
        answer.status_code,
        headers=list(answer.headers.raw_items()),
        content=bytes(answer.body or b""),
    )


async def test_streams_of_a_subject_are_limited(limited: Server) -> None:
    """Whatever kind they are, and until they end."""
    head = of("watcher")
    async with (
        connect(limited.ws_url, additional_headers=head),
        httpx2.AsyncClient(base_url=limited.url) as http,
        http.stream("GET", "/sse/metrics", headers=head) as two,
    ):
        assert two.status_code == 200
        assert_refused(await refusal(limited, "watcher"), "streams_per_subject", 2)
        third = await http.get("/sse/metrics", headers=head)
        assert_refused(third, "streams_per_subject", 2)
        probe = await http.options("/ws/metrics", headers=head)
        assert_refused(probe, "streams_per_subject", 2)
        async with connect(limited.ws_url, additional_headers=of("another")):
            pass
    await asyncio.to_thread(wait_until_all_have_left, limited)
    async with connect(limited.ws_url, additional_headers=head) as again:
        await again.recv()


async def test_frames_that_a_subject_asks_for_are_limited(limited: Server) -> None:
    """Of the default stream by 429, of a subscription by an error."""
    head = of("fast")
    async with v1_client(limited, additional_headers=head) as client:
        assert (await client.subscribe("a", interval=0.1))["type"] == "snapshot"
        refused = await client.subscribe("b", interval=0.1)
        assert (refused["type"], refused["code"]) == ("error", "too_many")
        assert refused["message"].startswith("interval: ")
        assert not refused["retryable"]
        assert_refused(await refusal(limited, "fast", "?interval=0.1"), "frame_rate", 12)
        await client.send({"type": "unsubscribe", "id": "a"})
        assert (await client.subscribe("b", interval=0.1))["type"] == "snapshot"
    await asyncio.to_thread(wait_until_all_have_left, limited)
    async with connect(f"{limited.ws_url}?interval=0.1", additional_headers=head) as stream:
        await stream.recv()


async def code_after_pings(client: V1Client, count: int, unknown: str = "") -> int | None:
    """Send pings, and read their answers; return the code with which the server closes."""
    try:
        for _ in range(count):
            await client.send({"type": "ping", "id": "p", "unknown": unknown})
            await client.receive()
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None
    return None


async def test_messages_and_their_bytes_are_limited(limited: Server) -> None:
    """`hello` says how many; one too many closes with 4429."""
    async with v1_client(limited, additional_headers=of("talker")) as client:
        assert client.messages[0]["limits"]["messages_per_minute"] == 10
        assert await code_after_pings(client, 11) == 4429
    async with v1_client(limited, additional_headers=of("talker")) as client:
        assert await code_after_pings(client, 9, "x" * 400) == 4429
    found = hits(limited, "enforced")
    assert found["messages"] >= 1
    assert found["message_bytes"] >= 1


async def test_new_streams_of_an_address_are_limited(tmp_path: Path, edge: Edge) -> None:
    """Also those that end at once."""
    env = {"ROUTECAST_MAX_CONNECTIONS_A_MINUTE": "3"}
    with Server(tmp_path, env=env, edge=edge) as server:
        for _ in range(3):
            async with connect(server.ws_url) as stream:
                await stream.recv()
        answer = await refusal(server, "nobody")
        assert_refused(answer, "connection_rate", 3)
        assert 10 <= int(answer.headers["retry-after"]) <= 20


# -- credentials --------------------------------------------------------------------------------


def from_behind_tls(address: str) -> dict[str, str]:
    """Return what a proxy adds to a request that came over TLS."""
    return {"X-Forwarded-For": address, "X-Forwarded-Proto": "https"}


def test_refusals_become_slow_and_good_credentials_do_not(limited: Server) -> None:
    """Of HTTP requests and of upgrades alike."""

    def seconds(path: str, head: dict[str, str], address: str) -> tuple[int, float]:
        began = time.monotonic()
        answer = limited.http.get(path, headers={**head, **from_behind_tls(address)})
        return answer.status_code, time.monotonic() - began

    address, good = "198.51.100.9", of("honest")
    for number in range(3):
        status, _ = seconds("/routing/metrics", bearer(f"rc_{number}"), address)
        assert status == 401
    waits = [seconds("/routing/metrics", bearer(f"rc_x{number}"), address) for number in range(3)]
    assert [status for status, _ in waits] == [401] * 3
    for (_, waited), least in zip(waits, (0.25, 0.5, 1.0), strict=True):
        assert waited >= least
    began = time.monotonic()
    head = {**bearer("rc_y"), **from_behind_tls(address)}
    with pytest.raises(InvalidStatus) as refused:
        connect_sync(limited.ws_url, additional_headers=head)
    assert refused.value.response.status_code == 401
    assert time.monotonic() - began >= 2.0
    began = time.monotonic()
    answer = limited.http.post(
        "/auth/session",
        json={"credential": "rc_w"},
        headers={
            "Origin": limited.url.replace("http", "https", 1),
            **from_behind_tls(address),
        },
    )
    assert answer.status_code == 401
    assert time.monotonic() - began >= 4.0
    # The same address with a good credential, and another address with a bad one.
    for head, place, expected in ((good, address, 200), (bearer("rc_z"), "198.51.100.10", 401)):
        status, waited = seconds("/routing/metrics", head, place)
        assert status == expected
        assert waited < 4.0
    assert hits(limited, "enforced")["failed_sign_ins"] >= 4


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/tickets", "tickets"), ("/auth/session", "sessions")]
)
def test_a_subject_makes_few_tickets_and_sessions(limited: Server, path: str, name: str) -> None:
    """With any credential of it; another subject is not concerned."""
    url = f"{limited.url}{path}"
    made = [httpx2.post(url, headers=of("maker")).status_code for _ in range(3)]
    assert made == [200, 200, 429]
    refused = httpx2.post(url, headers=bearer(token("read", sub="maker", jti="other")))
    assert_refused(refused, name, 2)
    assert httpx2.post(url, headers=of("taker")).status_code == 200


def test_open_routes_are_no_faster_way_to_guess(limited: Server) -> None:
    """A wrong credential delays their answers; without one they come at once."""
    paths = ["/health", "/ready", "/auth/session"]
    head = from_behind_tls("198.51.100.40")
    for path in paths:
        answer = limited.http.get(path, headers={**head, **bearer("rc_1")})
        assert answer.status_code == 200
    for path in paths:
        began = time.monotonic()
        answer = limited.http.get(path, headers={**head, **bearer("rc_2")})
        assert answer.status_code == 200
        assert time.monotonic() - began >= 0.25
    for path in ("/", "/docs", *paths):  # these look at no credential, or there is none
        wrong = bearer("rc_3") if path not in paths else {}
        assert limited.http.get(path, headers={**head, **wrong}).status_code == 200


def test_refusals_that_wait_are_bounded(limited: Server) -> None:
    """Over the bound they are 429 at once."""
    request = (
        b"GET /routing/metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer rc_q\r\n"
        b"X-Forwarded-For: 198.51.100.20\r\nX-Forwarded-Proto: https\r\n\r\n"
    )
    statuses = []
    with ExitStack() as stack:
        lines = [stack.enter_context(RawConnection(limited.port)) for _ in range(30)]
        for line in lines:
            line.send(request)
        statuses = [line.answer().status for line in lines]
    assert set(statuses) == {401, 429}
    assert statuses.count(401) <= 3 + 16 + 3


# -- dry run ------------------------------------------------------------------------------------


async def test_dry_run_enforces_nothing_and_counts(dry: Server) -> None:
    """`/metrics` and the operator's view show it."""
    for _ in range(3):
        assert send(dry, "producer", QUOTA).status_code == 200
    head = of("watcher")
    async with (
        v1_client(dry, additional_headers=head) as client,
        connect(f"{dry.ws_url}?interval=0.1", additional_headers=head) as two,
        connect(f"{dry.ws_url}?interval=0.1", additional_headers=head) as three,
    ):
        for _ in range(12):
            await client.send({"type": "ping", "id": "p", "unknown": "x" * 400})
            await client.receive_until(lambda message: message["type"] == "pong")
        await two.recv()
        await three.recv()
    for _ in range(3):
        for path in ("/v1/tickets", "/auth/session"):
            assert httpx2.post(f"{dry.url}{path}", headers=head).status_code == 200
    for number in range(8):
        began = time.monotonic()
        answer = dry.http.get("/routing/metrics", headers=bearer(f"rc_{number}"))
        assert answer.status_code == 401
    assert time.monotonic() - began < 3.5
    counted = hits(dry, "dry_run")
    assert set(counted) == {
        *("streams_per_address", "streams_per_subject", "connection_rate", "messages"),
        *("message_bytes", "frame_rate", "ingest", "sessions", "tickets", "failed_sign_ins"),
    }
    assert hits(dry, "enforced") == {}
    nodes = dry.http.get("/v1/admin/nodes", headers=of("operator", "admin")).json()["nodes"]
    assert nodes[0]["limit_hits_dry_run"] == counted
    assert nodes[0]["limit_hits"] == {}


def test_an_unknown_limit_is_refused_at_the_start(tmp_path: Path) -> None:
    """In one line that lists the limits."""
    done = routecast(
        "serve", env={**os.environ, "ROUTECAST_DRY_RUN": "ingest, speed"}, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "'speed': the limits are all, connection_rate" in done.stderr


# -- two nodes ----------------------------------------------------------------------------------


def test_two_nodes_share_a_quota_until_redis_is_down(tmp_path: Path, postgres: Postgres) -> None:
    """Then each counts by itself, and refuses no client for that."""
    limits = {**SIGNED, "ROUTECAST_MAX_DECISIONS_A_MINUTE": str(QUOTA)}
    url = postgres.create()
    with RedisServer(tmp_path / "redis") as redis, ExitStack() as stack:
        one, two = nodes = [
            stack.enter_context(
                Server(tmp_path / name, env=limits, database_url=url, redis_url=redis.url)
            )
            for name in ("one", "two")
        ]

        def refuses(server: Server, subject: str) -> bool:
            return send(server, subject, 1).status_code == 429

        assert send(one, "shared", QUOTA).status_code == 200
        until(lambda: refuses(two, "shared"))  # a few may pass before it knows
        assert refuses(one, "shared")
        assert_refused(send(two, "shared", 1), "ingest", QUOTA)
        assert send(two, "other", QUOTA).status_code == 200

        redis.kill()
        for server in nodes:
            assert send(server, "later", QUOTA - 10).status_code == 200
            began = time.monotonic()
            assert send(server, "later", 5).status_code == 200
            assert time.monotonic() - began < 5.0
            assert_refused(send(server, "later", QUOTA), "ingest", QUOTA)


def test_other_clients_get_what_they_need_from_a_429(limited: Server) -> None:
    """The answer is the same document as all errors, for every client."""
    send(limited, "plain", QUOTA + 1)
    with closing(httpx2.Client(base_url=limited.url)) as http:
        answer: Any = http.post("/v1/decisions", json=DECISION, headers=of("plain"))
    problem = answer.json()
    assert problem["title"] == "Too Many Requests"
    assert "60 decisions in a minute" in problem["detail"]
