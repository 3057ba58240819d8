"""Clients and commands on a real server that needs a token or an API key."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from routecast.client import (
    Counters,
    Recorder,
    Refused,
    State,
    Unauthenticated,
    connect,
    stream,
    stream_sync,
)
from tests.support.command import routecast
from tests.support.credentials import SIGNED, bearer, token
from tests.support.scripted_server import until
from tests.support.server import Server

DECISION = {"strategy": "hybrid", "provider": "gemini"}
WAIT_SECONDS = 30.0
MISSING = "give a token or an API key, as `token` in a program, in ROUTECAST_API_KEY for a command"


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one decision that needs a credential."""
    with Server(tmp_path_factory.mktemp("signed"), env=SIGNED) as server:
        server.http.headers.update(bearer(token("read", "write", "admin")))
        server.post(DECISION)
        yield server


def command(*words: object, key: str | None = None) -> Any:
    """Run a command with this key in its environment."""
    env = {name: value for name, value in os.environ.items() if name != "ROUTECAST_API_KEY"}
    return routecast(*words, env=env if key is None else {**env, "ROUTECAST_API_KEY": key})


# -- streams ------------------------------------------------------------------------------------


async def test_a_stream_sends_its_token(closed_server: Server) -> None:
    """Views and histories come over the same connection."""
    async with connect(closed_server.url, token=token("read")) as client:
        metrics = await anext(await client.subscribe())
        assert metrics.total_decisions is not None
        assert metrics.total_decisions >= 1
        assert await anext(await client.history(timedelta(hours=1)))
    for newest in stream_sync(closed_server.url, token=token("read")):
        assert newest.total_decisions
        break


@pytest.mark.parametrize("protocols", [("routecast.v1.json",), ()], ids=["v1", "default"])
async def test_a_stream_without_a_token_says_how_to_give_one(
    closed_server: Server, protocols: tuple[str, ...]
) -> None:
    """It is refused with 401, and does not try again."""
    async with connect(closed_server.url, protocols=protocols) as client:
        with pytest.raises(Unauthenticated) as raised:
            await anext(await client.subscribe())
    assert raised.value.code == 401
    assert str(raised.value).endswith(MISSING)


async def test_a_token_that_may_not_read_is_explained(closed_server: Server) -> None:
    """It is refused with 403, and the text names the scope."""
    with pytest.raises(Refused) as raised:
        await anext(stream(closed_server.url, token=token("write")))
    assert (raised.value.code, type(raised.value)) == (403, Refused)
    assert "`read`" in str(raised.value)
    assert str(raised.value).endswith("use a token or an API key that has it")


@pytest.mark.parametrize("protocols", [("routecast.v1.json",), ("routecast.v1.msgpack",), ()])
async def test_a_function_keeps_a_stream_alive(
    closed_server: Server, protocols: tuple[str, ...]
) -> None:
    """A stream with a text ends when its token expires; one with a function does not.

    On routecast.v1 it stays on its connection.
    """
    asked = 0
    states: list[State] = []

    def renewed() -> str:
        nonlocal asked
        asked += 1
        return token("read", seconds=2 if asked == 1 else 3600, jti=str(asked))

    async def read(metrics: AsyncIterator[Any]) -> None:
        async for _ in metrics:
            pass

    async with connect(
        closed_server.url,
        token=renewed,
        protocols=protocols,
        on_change=lambda health: states.append(health.state),
    ) as client:
        kept = await client.subscribe(interval=0.5)
        await anext(kept)
        async with connect(closed_server.url, token=token("read", seconds=2)) as other:
            with pytest.raises(
                Unauthenticated, match="a function as `token` can renew it"
            ) as ended:
                await read(await other.subscribe())
            assert ended.value.code == 4401
        await until(lambda: asked >= 2, WAIT_SECONDS)
        closed_server.post(DECISION)
        await anext(kept)
        if protocols:
            assert states == [State.CONNECTED]


# -- the recorder -------------------------------------------------------------------------------


def test_a_recorder_sends_its_token(closed_server: Server) -> None:
    """The decisions count in the token's only project."""
    before = closed_server.metrics(project="chat")["total_decisions"]
    with Recorder(closed_server.url, token=token("write", projects=["chat"])) as recorder:
        recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(sent=1)
    assert closed_server.metrics(project="chat")["total_decisions"] == before + 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, MISSING),
        (token("read"), "`write`, which the credential does not have; use a token or an API key"),
        ("rc_wrong", "give another token or API key"),
    ],
    ids=["none", "read only", "wrong"],
)
def test_a_recorder_logs_why_it_is_refused(
    closed_server: Server, caplog: pytest.LogCaptureFixture, given: str | None, words: str
) -> None:
    """Its decisions count as rejected, and the log has what to do and no credential."""
    with Recorder(closed_server.url, token=given) as recorder:
        recorder.record(DECISION)
        assert recorder.flush(WAIT_SECONDS)
        assert recorder.counters == Counters(rejected=1)
    assert words in caplog.text
    assert given is None or given not in caplog.text


# -- commands -----------------------------------------------------------------------------------


def test_watch_sends_the_key_of_the_environment(closed_server: Server) -> None:
    """Without one, and with a wrong one, it says what to set."""
    words = ("watch", "--once", "--json", "--server", closed_server.url)
    done = command(*words, key=f"{token('read')}\n")
    assert json.loads(done.stdout)["total_decisions"] >= 1
    missing = command(*words)
    assert (missing.returncode, "Traceback" in missing.stderr) == (1, False)
    assert MISSING in missing.stderr
    wrong = command(*words, key="rc_wrong")
    assert wrong.returncode == 1
    assert "in ROUTECAST_API_KEY for a command" in wrong.stderr
    assert "rc_wrong" not in wrong.stderr
    bad = command(*words, key="se cret")
    assert bad.returncode == 2
    assert bad.stderr == (
        "routecast: ROUTECAST_API_KEY: must be visible ASCII characters, without spaces\n"
    )


def test_bench_sends_the_key_of_the_environment(closed_server: Server) -> None:
    """Without one, each stream fails, and the result says what to set."""
    words = ("bench", "--connections", 2, "--seconds", 0.2, "--json", "--server", closed_server.url)
    done = command(*words, key=token("read"))
    assert (done.returncode, json.loads(done.stdout)["opened"]) == (0, 2)
    missing = command(*words)
    assert missing.returncode == 1
    assert MISSING in next(iter(json.loads(missing.stdout)["failures"]))


def test_replay_sends_the_key_of_the_environment(closed_server: Server, tmp_path: Path) -> None:
    """Without one, or with one that may not write, it sends nothing and says why."""
    path = tmp_path / "calls.csv"
    path.write_text("strategy,provider\nhybrid,gemini\n")
    words = ("replay", path, "--server", closed_server.url)
    done = command(*words, key=token("write"))
    assert done.returncode == 0, done.stderr
    assert "accepted 1" in done.stdout
    missing = command(*words)
    assert missing.returncode == 1
    assert MISSING in missing.stderr
    reader = command(*words, key=token("read"))
    assert reader.returncode == 1
    assert "`write`" in reader.stderr
