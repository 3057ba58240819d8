"""The JavaScript client in a real Chromium: in a page and in a worker, against real servers."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Error, Page

from tests.support.default_stream_server import plain_server
from tests.support.server import Server
from tests.support.tab import Tab

DECISION = {"strategy": "hybrid", "provider": "gemini"}
GIVEN = {"options": {"firstDelay": 100, "longestDelay": 100}, "view": {"interval": 0.1}}

# Both scripts append all events to a list of the page.
IN_THE_PAGE = """async ({ url, options, view }) => {
    const { connect } = await import("/client/routecast.js");
    globalThis.heard = [];
    const client = connect(url, options);
    client.onState((state) => heard.push({ state }));
    client.subscribe(view, (metrics, frame) => heard.push({ metrics, frame }));
}"""
IN_A_WORKER = """(given) => {
    globalThis.heard = [];
    const worker = new Worker("/client/test/worker.js", { type: "module" });
    worker.onmessage = ({ data }) => heard.push(data);
    worker.postMessage(given);
}"""

both = pytest.mark.parametrize("script", [IN_THE_PAGE, IN_A_WORKER], ids=["page", "worker"])


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a site with the client."""
    with plain_server() as address:
        yield address


def wait_for(page: Page, condition: str) -> Any:
    """Wait for a line with which a JavaScript condition on `line` is true; return the last one."""
    find = f"() => heard.findLast((line) => {condition})"
    try:
        return page.wait_for_function(find, timeout=20_000).json_value()
    except Error:
        raise AssertionError(f"no {condition} in {page.evaluate('heard')}") from None


@both
def test_it_follows_and_reconnects(server: Server, site: str, tab: Tab, script: str) -> None:
    """It uses routecast.v1, also after the server was killed."""
    server.post(DECISION)
    tab.page.goto(site)
    tab.page.evaluate(script, {**GIVEN, "url": server.url})
    connected = wait_for(tab.page, "line.state?.name === 'connected'")
    assert connected["state"]["protocol"] == "routecast.v1"
    wait_for(tab.page, "line.metrics?.total_decisions === 1")
    server.kill()
    lost = wait_for(tab.page, "line.state?.name === 'reconnecting'")
    assert lost["state"]["reason"] == "the server cannot be reached"
    server.start()
    receipt = server.post(DECISION)
    shown = wait_for(tab.page, "line.metrics?.total_decisions === 2")
    assert shown["frame"]["position"] == receipt["position"]


@both
def test_it_falls_back_to_the_default_stream(site: str, tab: Tab, script: str) -> None:
    """A browser refuses an answer without the subprotocol; the client then asks for none."""
    tab.page.goto(site)
    tab.page.evaluate(script, {**GIVEN, "url": site})
    connected = wait_for(tab.page, "line.state?.name === 'connected'")
    assert connected["state"]["protocol"] == "default"
    shown = wait_for(tab.page, "line.metrics")
    assert shown["metrics"]["query"] == "interval=0.1"
    assert "avg_confidence" not in shown["metrics"]


def test_a_machine_that_slept_connects_again(server: Server, site: str, tab: Tab) -> None:
    """A connection is considered dead after a time in which a server always sends something."""
    tab.page.goto(site)
    tab.page.evaluate(IN_THE_PAGE, {**GIVEN, "url": server.url})
    wait_for(tab.page, "line.metrics?.total_decisions === 0")
    tab.page.evaluate(
        """() => {
            heard.length = 0;
            const now = Date.now;
            Date.now = () => now() + 60_000;
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    wait_for(tab.page, "line.state?.name === 'connecting' && line.state.again")
    wait_for(tab.page, "line.state?.name === 'connected'")


def test_a_connection_that_survives_offline_is_kept(server: Server, site: str, tab: Tab) -> None:
    """The client asks the server at once, and the server answers."""
    tab.page.goto(site)
    tab.page.evaluate(IN_THE_PAGE, {**GIVEN, "url": server.url})
    wait_for(tab.page, "line.metrics?.total_decisions === 0")
    frames: list[str] = []
    tab.page.on("websocket", lambda socket: frames.append(socket.url))
    tab.page.evaluate("dispatchEvent(new Event('offline'))")
    server.post(DECISION)
    wait_for(tab.page, "line.metrics?.total_decisions === 1")
    assert frames == []
