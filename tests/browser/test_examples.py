"""`examples/javascript/index.html` in a real Chromium against a real server."""

from playwright.sync_api import expect

from tests.support.node import ROOT
from tests.support.proxies_and_sites import folder
from tests.support.server import Server
from tests.support.tab import Tab


def test_the_example_page_shows_a_server(server: Server, tab: Tab) -> None:
    """The address may be that of the server or of its stream, with http or ws."""
    server.post([{"strategy": "hybrid", "provider": "gemini"}] * 3)
    with folder(ROOT / "examples" / "javascript") as site:
        for address in (server.url, server.ws_url):
            tab.page.goto(f"{site}?server={address}")
            expect(tab.page.locator("#total")).to_have_text("3")
            expect(tab.page.get_by_role("status")).to_have_text("live")
            expect(tab.page.get_by_role("row")).to_have_text("hybrid3")
