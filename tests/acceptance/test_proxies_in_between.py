"""Clients behind a real nginx that answers itself: redirects, sign-in pages, deployments."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from routecast.client import Metrics, Recorder, stream
from tests.support.command import routecast
from tests.support.nginx import CustomNginx
from tests.support.node import FollowerProcess, modules
from tests.support.ports import free_port
from tests.support.scripted_server import until
from tests.support.server import Server
from tests.support.waiting import until as met

WAIT_SECONDS = 60.0
DECISION = {"strategy": "hybrid", "provider": "gemini"}


def passing(server: Server) -> str:
    """Return directives that pass all requests to a node, also upgrades."""
    return (
        f"proxy_pass {server.url}; proxy_http_version 1.1; proxy_set_header Host $host; "
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;"
    )


MAP = 'map $http_upgrade $connection_upgrade { default upgrade; "" ""; }'

SIGN_IN = """location / { default_type text/html; return %d "<h1>Sign in</h1>"; }"""
ANSWERS = {
    "401": SIGN_IN % 401,
    "200": SIGN_IN % 200,
    "404": "location / { return 404; }",
    "302": "location = /login { return 200; } location / { return 302 /login?rd=$request_uri; }",
    "444": "location / { return 444; } location = / { return 200; }",
}


def listening(port: int, inside: str) -> str:
    """Return a server block of nginx."""
    return f"{MAP} server {{ listen 127.0.0.1:{port}; {inside} }}"


async def first(metrics: AsyncIterator[Metrics]) -> int | None:
    """Return the total of the next metrics."""
    return (await anext(metrics)).total_decisions


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_recorder_waits_until_it_is_let_through(
    server: Server, tmp_path: Path, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All decisions arrive once when the proxy lets them through; one log line has its answer."""
    port = free_port()
    proxy = CustomNginx(tmp_path / "nginx", port, listening(port, ANSWERS[answer]))
    with proxy, Recorder(proxy.url, linger=0) as recorder:
        for _ in range(50):
            recorder.record(DECISION)
        assert not recorder.flush(0.5)
        assert recorder.counters.waiting == 50
        words = "the connection broke" if answer == "444" else f"answered {answer} "
        met(lambda: any(words in r.getMessage() for r in list(caplog.records)))
        warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert sum(words in line for line in warned) == 1
        proxy.serve(listening(port, f"location / {{ {passing(server)} }}"))
        assert recorder.flush(WAIT_SECONDS)
        assert (recorder.counters.sent, recorder.counters.dropped) == (50, 0)
    assert server.metrics()["total_decisions"] == 50


@pytest.mark.parametrize("answer", ["401", "404", "302"])
async def test_a_stream_waits_until_it_is_let_through(
    server: Server, tmp_path: Path, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy's answers never end a stream, and are logged once."""
    server.post([DECISION] * 3)
    port = free_port()
    with CustomNginx(tmp_path / "nginx", port, listening(port, ANSWERS[answer])) as proxy:
        async with aclosing(stream(proxy.url)) as metrics:
            task = asyncio.ensure_future(first(metrics))
            words = f"it answered {answer} "
            await until(lambda: any(words in r.getMessage() for r in caplog.records))
            proxy.serve(listening(port, f"location / {{ {passing(server)} }}"))
            assert await task == 3
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert sum("it answered" in line for line in warned) == 1


def moved(port: int, tls: int, certificate: Path, server: Server) -> str:
    """Return server blocks of nginx: one that redirects all requests, and its target."""
    return (
        f"{MAP} server {{ listen 127.0.0.1:{port}; location = / {{ return 200; }}"
        f" location / {{ return 301 https://$host:{tls}$request_uri; }} }}"
        f" server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate {certificate};"
        f" ssl_certificate_key {certificate}; location / {{ {passing(server)} }} }}"
    )


async def test_a_redirect_to_tls_on_the_same_host_is_followed(
    server: Server,
    tmp_path: Path,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Producers, streams and commands follow it, as POST; one log line has the new address."""
    port, tls = free_port(), free_port()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with CustomNginx(tmp_path / "nginx", port, moved(port, tls, certificate, server)) as proxy:
        with Recorder(proxy.url, linger=0) as recorder:
            for _ in range(3):
                recorder.record(DECISION)
                assert recorder.flush(WAIT_SECONDS)
            assert (recorder.counters.sent, recorder.counters.retried) == (3, 0)
        async with aclosing(stream(proxy.url)) as metrics:
            assert await first(metrics) == 3
        path = tmp_path / "x.csv"
        path.write_text("strategy,provider\ns,p\ns,p\n")
        done = routecast("replay", path, "--server", proxy.url)
        assert done.returncode == 0, done.stdout + done.stderr
        shown = routecast("watch", "--once", "--server", proxy.url)
        assert shown.returncode == 0, shown.stderr
    assert server.metrics()["total_decisions"] == 5
    words = f"answered 301 to https://127.0.0.1:{tls}: use that address; following it"
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [re.sub(".*answered", "answered", line) for line in warned] == [words] * 2


def test_the_javascript_client_follows_it_too(
    server: Server, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does in Node.js, which unlike a browser shows where a redirect leads."""
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(certificate))
    server.post([DECISION] * 3)
    port, tls = free_port(), free_port()
    folder = tmp_path / "project"
    installed = folder / "node_modules" / "@routecast"
    installed.mkdir(parents=True)
    (installed / "client").symlink_to(modules().parent)
    (folder / "node_modules" / "ws").symlink_to(modules() / "ws")
    with (
        CustomNginx(tmp_path / "nginx", port, moved(port, tls, certificate, server)) as proxy,
        FollowerProcess(folder, proxy.url, {"interval": 0.1}) as client,
    ):
        client.total(3)
