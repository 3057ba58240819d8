"""Pages that are refused, of this site and of others: what they are told, and what they get."""

from pathlib import Path

from playwright.sync_api import expect

from tests.support.around import plain_proxy, site
from tests.support.server import Server
from tests.support.tab import Tab, wait_seconds


def by_name(server: Server) -> str:
    """The server's address by a name instead of a number."""
    return server.url.replace("127.0.0.1", "metrics.example")


def test_a_page_opened_by_a_name_says_what_to_set(server: Server, tab: Tab) -> None:
    """Refused for its name, it says so, and shows the setting that lets it in."""
    page = tab.page
    page.goto(by_name(server))
    expect(page.get_by_role("status")).to_have_text("Refused")
    expect(page.get_by_role("heading", name="does not let this page in")).to_be_visible()
    setting = f"ROUTECAST_ALLOWED_ORIGINS={by_name(server)}"
    expect(page.get_by_label("Setting that lets this page in")).to_have_text(setting)
    expect(page.locator("#numbers")).to_be_hidden()


def test_a_page_opened_by_a_name_that_is_allowed_is_live(tmp_path: Path, tab: Tab) -> None:
    """The setting that the refused page shows is the one that helps."""
    with Server(tmp_path) as server:
        tab.page.goto(by_name(server))
        setting = tab.page.get_by_label("Setting that lets this page in").inner_text()
        server.stop()
        name, _, value = setting.partition("=")
        server.env[name] = value
        server.start()
        tab.page.get_by_role("button", name="Retry now").click()
        expect(tab.page.get_by_role("status")).to_have_text("Live")
        expect(tab.page.get_by_role("heading", name="does not let")).to_be_hidden()


READ_ALL = """async (server) => {
    const json = { "Content-Type": "application/json" };
    const body = JSON.stringify({ strategy: "hybrid", provider: "gemini" });
    const sent = await fetch(`${server}/v1/decisions`, { method: "POST", headers: json, body });
    const metrics = await fetch(`${server}/routing/metrics`);
    const health = await fetch(`${server}/health`);
    const first = (source) => new Promise((resolve, reject) => {
        source.onmessage = ({ data }) => (source.close(), resolve(JSON.parse(data)));
        source.onerror = reject;
    });
    const event = await first(new EventSource(`${server}/sse/metrics`));
    const message = await first(new WebSocket(`${server.replace("http", "ws")}/ws/metrics`));
    return [
        (await sent.json()).accepted,
        (await metrics.json()).total_decisions,
        (await health.json()).status,
        event.total_decisions,
        message.total_decisions,
    ];
}"""


def test_a_page_of_an_allowed_site_may_use_all_of_it(tmp_path: Path, tab: Tab) -> None:
    """A browser sends its decision, and hands it every answer."""
    with site() as address:
        env = {"ROUTECAST_ALLOWED_ORIGINS": address}
        with Server(tmp_path, env=env) as server:
            tab.page.goto(address)
            assert tab.page.evaluate(READ_ALL, server.url) == [1, 1, "ok", 1, 1]


def test_a_page_of_another_site_may_use_none_of_it(server: Server, tab: Tab) -> None:
    """A browser keeps what it was not told to hand over."""
    with site() as address:
        tab.page.goto(address)
        for call in ("fetch(`${url}/routing/metrics`)", "fetch(`${url}/health`)"):
            result = tab.page.evaluate(f"(url) => {call}.catch(String)", server.url)
            assert result == "TypeError: Failed to fetch"


def test_a_page_that_finds_no_room_says_so(tmp_path: Path, tab: Tab) -> None:
    """A server that is full is not called unreachable, and is tried again."""
    with Server(tmp_path, env={"ROUTECAST_MAX_CONNECTIONS": "1"}) as server:
        tab.open(server)
        other = tab.page.context.new_page()
        other.goto(server.url)
        expect(other.locator("#updated")).to_contain_text("too many connections")
        wait_seconds(other, 1, 15)  # as long as the server says, 5 s or more


def test_a_proxy_that_passes_no_upgrade_is_named(server: Server, tab: Tab) -> None:
    """Where requests get through and WebSocket does not, the page says what is to be looked at."""
    with plain_proxy(server) as url:
        tab.page.goto(url)
        expect(tab.page.locator("#updated")).to_contain_text(
            "a proxy in between must pass upgrades"
        )
        wait_seconds(tab.page, 1, 6)
