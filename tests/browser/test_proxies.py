"""The page and an `EventSource` behind a proxy that refuses their requests."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Error, expect

from tests.support.nginx import CustomNginx
from tests.support.node import ROOT
from tests.support.ports import free_port
from tests.support.server import Server
from tests.support.tab import Tab

DECISION = {"strategy": "hybrid", "provider": "gemini"}
MAP = 'map $http_upgrade $connection_upgrade { default upgrade; "" ""; }'
TURNED_AWAY = {
    "302": "location = /login { return 200; } location / { return 302 /login?rd=$request_uri; }",
    "401": 'location / { default_type text/html; return 401 "<h1>Sign in</h1>"; }',
    "200": 'location / { default_type text/html; return 200 "<h1>Sign in</h1>"; }',
}


def listening(port: int, inside: str) -> str:
    """Return a `server` block of nginx."""
    return f"{MAP} server {{ listen 127.0.0.1:{port}; {inside} }}"


def passing(server: Server) -> str:
    """Return a location that passes everything to a node, including upgrades."""
    return (
        f"location / {{ proxy_pass {server.url}; proxy_http_version 1.1; proxy_buffering off; "
        "proxy_set_header Host $host:$server_port; proxy_set_header Upgrade $http_upgrade; "
        "proxy_set_header Connection $connection_upgrade; }"
    )


@pytest.mark.parametrize("answer", TURNED_AWAY)
def test_the_page_asks_to_sign_in_again(
    server: Server, tab: Tab, tmp_path: Path, answer: str
) -> None:
    """The sign-in at a proxy has expired; the page goes on by itself after a new one."""
    port = free_port()
    server.post([DECISION])
    with CustomNginx(tmp_path / "nginx", port, listening(port, passing(server))) as proxy:
        page = tab.page
        page.goto(proxy.url)
        expect(page.get_by_role("status")).to_have_text("Live")
        proxy.serve(listening(port, TURNED_AWAY[answer]))
        expect(page.locator("#updated")).to_contain_text(
            "you may have to sign in again", timeout=30_000
        )
        expect(page.locator("#state")).to_have_text("Reconnecting")
        retry = page.get_by_role("button", name="Retry")
        expect(retry).to_be_visible()
        proxy.serve(listening(port, passing(server)))
        with suppress(Error):  # without a button if the page has reconnected already
            retry.click(timeout=1_000)
        expect(page.get_by_role("status")).to_have_text("Live", timeout=30_000)


def test_a_failed_event_source_is_replaced(server: Server, tab: Tab, tmp_path: Path) -> None:
    """The program in docs/protocol.md does so after an answer at which a browser gives up."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    (lines,) = re.findall(r"```js\n(function follow\(.*?)```", text, re.DOTALL)
    port = free_port()
    server.post([DECISION] * 3)
    refusing = f"location = /sse/metrics {{ return 502; }} {passing(server)}"
    with CustomNginx(tmp_path / "nginx", port, listening(port, refusing)) as proxy:
        page = tab.page
        page.goto(f"{proxy.url}/health")
        page.evaluate(
            f"""() => {{
              {lines}
              const Original = EventSource;
              window.states = [];
              window.EventSource = class extends Original {{
                constructor(url) {{
                  super(url);
                  this.addEventListener("error", () => states.push(this.readyState));
                }}
              }};
              follow("/sse/metrics?interval=0.5", (metrics) => (window.seen = metrics));
            }}"""
        )
        page.wait_for_function("states.length > 1")
        assert set(page.evaluate("states")) == {2}
        proxy.serve(listening(port, passing(server)))
        page.wait_for_function("window.seen?.total_decisions === 3")
