"""Pages that the server refuses, of this site and of others: what they show, and why."""

from pathlib import Path

from playwright.sync_api import expect

from tests.support.proxies_and_sites import plain_proxy, site
from tests.support.server import Server
from tests.support.tab import Tab, wait_seconds


def by_name(server: Server) -> str:
    """The server's address by a name instead of a number."""
    return server.url.replace("127.0.0.1", "metrics.example")


KNOWN = {"ROUTECAST_ALLOWED_HOSTS": "metrics.example"}

READ_AS_OWN = """async () => {
    const read = async (path) => (await fetch(path)).status;
    const opened = await new Promise((resolve) => {
        const events = new EventSource("/sse/metrics");
        events.onopen = () => resolve(true);
        events.onerror = () => resolve(false);
    });
    const paths = ["/", "/routing/metrics", "/v1/history", "/health", "/metrics"];
    return [await Promise.all(paths.map(read)), opened];
}"""


def test_a_name_that_was_made_to_point_here_reads_nothing(server: Server, tab: Tab) -> None:
    """To a browser, the page of such a name is of the server's own site (DNS rebinding)."""
    answer = tab.page.goto(by_name(server))
    assert answer is not None
    assert answer.status == 421
    assert "ROUTECAST_ALLOWED_HOSTS" in answer.text()
    assert "ROUTECAST_ALLOWED_ORIGINS" in answer.text()
    assert tab.page.evaluate(READ_AS_OWN) == [[421] * 5, False]


def test_the_page_may_reach_its_own_server_alone(server: Server, tmp_path: Path, tab: Tab) -> None:
    """By WebSocket as by anything else, another port of this machine is out of its reach."""
    tab.open(server)
    with Server(tmp_path / "other") as other:
        answer = tab.page.evaluate(
            """(url) => new Promise((resolve) => {
                document.addEventListener("securitypolicyviolation",
                    (event) => resolve(event.effectiveDirective));
                new WebSocket(url).onopen = () => resolve("open");
            })""",
            other.ws_url,
        )
    assert answer == "connect-src"


def test_a_page_opened_by_a_name_says_what_to_set(tmp_path: Path, tab: Tab) -> None:
    """Refused for its name, it says so, and shows the setting that lets it in."""
    page = tab.page
    with Server(tmp_path, env=KNOWN) as server:
        page.goto(by_name(server))
        expect(page.get_by_role("status")).to_have_text("Refused")
        expect(page.get_by_role("heading", name="The server refuses this page")).to_be_visible()
        setting = f"ROUTECAST_ALLOWED_ORIGINS={by_name(server)}"
        expect(page.get_by_label("Setting that allows this page")).to_have_text(setting)
        expect(page.locator("#numbers")).to_be_hidden()


def test_a_page_opened_by_a_name_that_is_allowed_is_live(tmp_path: Path, tab: Tab) -> None:
    """The setting that the refused page shows is the one that helps."""
    with Server(tmp_path, env=KNOWN) as server:
        tab.page.goto(by_name(server))
        setting = tab.page.get_by_label("Setting that allows this page").inner_text()
        server.stop()
        name, _, value = setting.partition("=")
        server.env[name] = value
        server.start()
        tab.page.get_by_role("button", name="Retry now").click()
        expect(tab.page.get_by_role("status")).to_have_text("Live")
        expect(tab.page.get_by_role("heading", name="refuses this page")).to_be_hidden()


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
