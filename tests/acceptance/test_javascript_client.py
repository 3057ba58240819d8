"""The JavaScript client: its own tests, its package, and reconnects to a real server."""

import json
import os
import shutil
import subprocess
import tarfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.needs import skip_without
from tests.support.node import CLIENT, ROOT, FollowerProcess, modules, node
from tests.support.server import Server

DECISION = {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9}
VIEW: dict[str, Any] = {"interval": 0.1}


def run(*words: str, cwd: Path, **env: str) -> str:
    """Run a program to its end, which must succeed; return its output."""
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("implementation", ["ws", "global"])
def test_its_own_tests_pass(implementation: str) -> None:
    """They pass with the WebSocket of Node.js and with the package `ws`."""
    modules()
    flags = [] if implementation == "ws" else ["--experimental-websocket"]
    tests = [str(path) for path in sorted(CLIENT.glob("test/*.test.js"))]
    assert tests
    run(node(), *flags, "--test", *tests, cwd=CLIENT, ROUTECAST_TEST_WEBSOCKET=implementation)


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as `npm pack` makes it."""
    npm = shutil.which("npm")
    if npm is None:
        skip_without("npm", "apt install npm")
    # In a copy: types are made beside the scripts while it is packed.
    folder = tmp_path_factory.mktemp("pack")
    copy = folder / "clients" / "js"
    shutil.copytree(CLIENT, copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(modules())
    shutil.copy(ROOT / "jsconfig.json", folder)
    (packed,) = json.loads(run(npm, "pack", "--json", cwd=copy))
    tarball: Path = copy / packed["filename"]
    return tarball


@pytest.fixture(scope="module")
def project(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has the package installed, and little else."""
    folder = tmp_path_factory.mktemp("project")
    installed = folder / "node_modules" / "@routecast" / "client"
    installed.parent.mkdir(parents=True)
    with tarfile.open(tarball) as packed:
        packed.extractall(installed.parent, filter="data")
    (installed.parent / "package").rename(installed)
    for name in ("ws", "react", "@types", "csstype"):
        (folder / "node_modules" / name).symlink_to(modules() / name)
    return folder


def test_its_package_holds_what_is_used_and_no_more(tarball: Path) -> None:
    """It has scripts with their types, the licence and the README, under their names."""
    with tarfile.open(tarball) as packed:
        names = {name.removeprefix("package/") for name in packed.getnames()}
    scripts = {path.name for path in CLIENT.glob("*.js")}
    types = {name.replace(".js", ".d.ts") for name in scripts} | {"types.d.ts"}
    assert names == scripts | types | {"package.json", "README.md", "LICENSE"}
    assert f"/clients/js/{tarball.name}\n" in (CLIENT / "README.md").read_text()
    assert (CLIENT / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_page_uses_its_very_files() -> None:
    """Each of its scripts but React's is linked into the page's folder."""
    linked = ROOT / "src" / "routecast" / "dashboard" / "client"
    scripts = {path for path in CLIENT.glob("*.js") if path.name != "react.js"}
    assert {path.resolve() for path in linked.iterdir()} == scripts


CONSUMER = """
import { connect, fetchTicket, RoutecastError, type Metrics, type State } from "@routecast/client";
import { useMetrics } from "@routecast/client/react";
import { WebSocket } from "ws";

const client = connect("http://127.0.0.1:8000", { WebSocket: globalThis.WebSocket, patience: 1 });
const options = { token: async () => "t", tickets: true };
connect(new URL("http://127.0.0.1:8000"), { WebSocket: WebSocket as any, ...options });
const ticket: Promise<string> = fetchTicket("http://127.0.0.1:8000", "t");
client.subscribe({ fields: ["total_decisions"], window: "1h" }, (metrics: Metrics, { source }) => {
  const total: number | undefined = metrics.total_decisions;
  // @ts-expect-error what is unknown is undefined
  const certain: number = metrics.avg_confidence;
});
// @ts-expect-error there is no such window
client.subscribe({ window: "2h" });
client.onState((state: State) => state.name === "reconnecting" && state.at.toFixed());
async function read() {
  for await (const { timestamp } of client.subscribe()) timestamp.length;
  for await (const { series } of client.history({ from: new Date(), fields: ["count"] }))
    series[0]?.count?.length;
}
function Component() {
  const { metrics, state, error } = useMetrics("/", { interval: 1 });
  return error instanceof RoutecastError ? error.code : metrics?.rate ?? state.name;
}
"""


def test_its_types_are_read_by_typescript(project: Path) -> None:
    """A strict TypeScript program finds each name, and gets an error for a wrong use."""
    (project / "consumer.ts").write_text(CONSUMER.replace('from "ws"', 'from "./ws.js"'))
    (project / "ws.d.ts").write_text("export declare const WebSocket: unknown;")
    options = ["--noEmit", "--strict", "--target", "es2023", "--module", "nodenext"]
    lib = ["--lib", "es2023,dom,dom.iterable", "--types", ""]
    run(str(modules() / ".bin" / "tsc"), *options, *lib, "consumer.ts", cwd=project)


@pytest.mark.parametrize("options", [(), ("--worker",)], ids=["main", "worker"])
def test_it_shows_what_the_server_counts(
    server: Server, project: Path, options: tuple[str, ...]
) -> None:
    """In a program and in a worker it shows the server's document at its position."""
    server.post(DECISION)
    with FollowerProcess(project, server.url, VIEW, *options) as client:
        assert client.state("connected")["protocol"] == "routecast.v1"
        client.total(1)
        receipt = server.post([DECISION, {**DECISION, "strategy": "complexity", "cost": 0.5}])
        shown = client.total(3)
        assert shown["frame"]["position"] == receipt["position"]
        assert shown["frame"]["source"] == "live"
        assert without(shown["metrics"], "timestamp") == without(server.metrics(), "timestamp")


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a document without some names, and without names that have no value."""
    return {
        name: without(value) if isinstance(value, dict) else value
        for name, value in document.items()
        if value is not None and name not in names
    }


def test_it_comes_back_after_a_kill_and_misses_nothing(server: Server, project: Path) -> None:
    """It reconnects after the server was killed and restarted, and shows new numbers."""
    server.post(DECISION)
    with FollowerProcess(project, server.url, VIEW) as client:
        client.total(1)
        server.kill()
        assert client.state("reconnecting")["reason"] == "the server cannot be reached"
        server.start()
        server.post([DECISION] * 2)
        assert client.total(3)["metrics"]["provider_usage"] == {"gemini": 3}


def test_it_reconnects_at_the_time_of_the_server(server: Server, project: Path) -> None:
    """It reconnects at the time that a stopping server names."""
    server.post(DECISION)
    with FollowerProcess(project, server.url, VIEW) as client:
        client.total(1)
        server.stop()
        assert client.state("reconnecting")["reason"] == "the server restarts"
        server.start()
        client.total(1)


def test_it_calls_a_frozen_server_stale(server: Server, project: Path) -> None:
    """Documents are stale while an open connection is silent, and then fresh again."""
    server.post(DECISION)
    with FollowerProcess(project, server.url, VIEW) as client:
        client.total(1)
        server.freeze()
        try:
            assert client.state("stale")["reason"] == "the connection is open but silent"
        finally:
            server.thaw()
        client.state("connected")


def test_it_looks_back(server: Server, project: Path) -> None:
    """A history is the one that the server returns over HTTP."""
    server.post([DECISION, {**DECISION, "strategy": "complexity"}])
    view = {"from": "1970-01-01T00:00:00Z", "points": 5, "group_by": "strategy"}
    with FollowerProcess(project, server.url, view) as client:
        told = client.until(lambda line: "history" in line)["history"]
    assert told == server.http.get("/v1/history", params=view).json()


def test_a_history_goes_on_after_a_kill(server: Server, project: Path) -> None:
    """A late decision arrives over the next connection, in its own bucket."""
    now = time.time()
    server.post({**DECISION, "timestamp": now - 600})
    with FollowerProcess(project, server.url, {"from": iso(now - 900), "follow": True}) as client:
        client.until(lambda line: counted(line) == 1)
        server.kill()
        server.start()
        server.post({**DECISION, "timestamp": now - 600})
        series = client.until(lambda line: counted(line) == 2)["history"]["series"]
    assert max(series[0]["count"]) == 2


def iso(moment: float) -> str:
    """Return seconds since 1970 as RFC 3339."""
    return datetime.fromtimestamp(moment, UTC).isoformat()


def counted(line: dict[str, Any]) -> int | None:
    """Return the decisions in the history of a line; None if the line has no history."""
    history = line.get("history")
    return history and sum(sum(series["count"]) for series in history["series"])


def test_a_bad_view_is_an_error_with_its_field(server: Server, project: Path) -> None:
    """The error names the field, and the connection stays."""
    with FollowerProcess(project, server.url, {"interval": 0.01}) as client:
        error = client.until(lambda line: "error" in line)["error"]
        assert error["code"] == "bad_request"
        assert "interval" in error["message"]
        assert server.active() == 1


def test_it_says_why_it_was_refused(server: Server, project: Path) -> None:
    """Without a stream it reports the server's answer, and does not reconnect."""
    with FollowerProcess(project, f"{server.url}/elsewhere", VIEW) as client:
        closed = client.state("closed")
        assert closed["status"] == 404
        assert closed["reason"] == "the server refused the connection (Not Found)"
