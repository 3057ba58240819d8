"""Pages of this site and of others that the server refuses, and what they show."""

from pathlib import Path

from playwright.sync_api import expect

from tests.support.proxies_and_sites import plain_proxy, site
from tests.support.server import Server
from tests.support.tab import Tab, wait_seconds


def by_name(server: Server) -> str:
    """Return the server's address with a name in place of the number."""
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


def test_a_foreign_name_of_this_server_reads_nothing(server: Server, tab: Tab) -> None:
    """With DNS rebinding, a browser considers a page of that name a page of this server."""
    answer = tab.page.goto(by_name(server))
    assert answer is not None
    assert answer.status == 421
    assert "ROUTECAST_ALLOWED_HOSTS" in answer.text()
    assert "ROUTECAST_ALLOWED_ORIGINS" in answer.text()
    assert tab.page.evaluate(READ_AS_OWN) == [[421] * 5, False]


def test_the_page_can_reach_only_its_own_server(server: Server, tmp_path: Path, tab: Tab) -> None:
    """Another port of this machine is not allowed, for WebSockets either."""
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
    """The server refuses its origin, and the page shows the setting that allows it."""
    page = tab.page
    with Server(tmp_path, env=KNOWN) as server:
        page.goto(by_name(server))
        expect(page.get_by_role("status")).to_have_text("Refused")
        expect(page.get_by_role("heading", name="The server refuses this page")).to_be_visible()
        setting = f"ROUTECAST_ALLOWED_ORIGINS={by_name(server)}"
        expect(page.get_by_label("Setting that allows this page")).to_have_text(setting)
        expect(page.locator("#numbers")).to_be_hidden()


def test_a_page_opened_by_an_allowed_name_is_live(tmp_path: Path, tab: Tab) -> None:
    """The setting is the one that the refused page shows."""
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


def test_a_page_of_an_allowed_site_can_use_the_server(tmp_path: Path, tab: Tab) -> None:
    """It can send decisions and read every answer."""
    with site() as address:
        env = {"ROUTECAST_ALLOWED_ORIGINS": address}
        with Server(tmp_path, env=env) as server:
            tab.page.goto(address)
            assert tab.page.evaluate(READ_ALL, server.url) == [1, 1, "ok", 1, 1]


def test_a_page_of_another_site_cannot_use_the_server(server: Server, tab: Tab) -> None:
    """The browser gives it no answer."""
    with site() as address:
        tab.page.goto(address)
        for call in ("fetch(`${url}/routing/metrics`)", "fetch(`${url}/health`)"):
            result = tab.page.evaluate(f"(url) => {call}.catch(String)", server.url)
            assert result == "TypeError: Failed to fetch"


def test_a_page_without_room_says_so(tmp_path: Path, tab: Tab) -> None:
    """A full server is not shown as unreachable, and is tried again."""
    tab.wait_longest()
    with Server(tmp_path, env={"ROUTECAST_MAX_CONNECTIONS": "1"}) as server:
        tab.open(server)
        other = tab.page.context.new_page()
        with other.expect_response(lambda answer: answer.request.method == "OPTIONS") as refusal:
            other.goto(server.url)
        expect(other.locator("#updated")).to_contain_text("too many connections")
        asked = int(refusal.value.headers["retry-after"])
        assert 5 <= asked <= 15
        wait_seconds(other, asked + 5, asked + 5)  # the longest random part of the first delay


def test_a_proxy_without_upgrades_is_named(server: Server, tab: Tab) -> None:
    """If requests pass and WebSockets do not, the page says what to check."""
    tab.wait_longest()
    with plain_proxy(server) as url:
        tab.page.goto(url)
        expect(tab.page.locator("#updated")).to_contain_text(
            "a proxy in between must pass upgrades"
        )
        wait_seconds(tab.page, 5, 5)
