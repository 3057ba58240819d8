"""The operator's page, in a real Chromium with two real nodes that need a credential."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from websockets.asyncio.client import ClientConnection, connect

from tests.support.credentials import SIGNED, bearer, token
from tests.support.server import Server
from tests.support.tab import Tab
from tests.support.v1 import JSON
from tests.support.waiting import until

CONNECTIONS = "/v1/admin/connections"
NODES = "/v1/admin/nodes"
PAGE_SIZE = 50
ONE_OF_MANY: dict[str, Any] = {
    "node": "a",
    "credential": None,
    "expires": None,
    "address": "192.0.2.1",
    "client": "c",
    "protocol": "default",
    "started": "2026-12-01T12:00:00.000000+00:00",
    "subscriptions": [],
    "histories": 0,
    "messages": 1,
    "bytes": 1,
    "saved_by_patches": 1_500,
    "saved_by_compression": 700,
    "conflated": 0,
    "lag": None,
    "pong_age": None,
    "round_trip_ms": None,
    "unsent": 0,
}
MARKUP = "<img src=x onerror=alert(1)>"


class Crowd:
    """Streams that other people have open, in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._streams: list[ClientConnection] = []

    def run(self, work: Any) -> Any:
        """Run a coroutine to its end."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(60)

    def join(self, server: Server, subject: str, agent: str = "wall/1", **claims: Any) -> None:
        """Open a stream, and read its first message."""

        async def join() -> None:
            stream = await connect(
                server.ws_url,
                additional_headers=bearer(token("read", sub=subject, **claims)),
                user_agent_header=agent,
                subprotocols=[JSON] if agent.startswith("v1") else None,  # type: ignore[list-item]  # -- a NewType
            )
            await stream.recv()
            self._streams.append(stream)

        self.run(join())

    def leave(self) -> None:
        """Close all streams."""

        async def leave() -> None:
            await asyncio.gather(*(stream.close() for stream in self._streams))

        self.run(leave())
        self._streams.clear()

    def end(self) -> None:
        """Close all streams, and end the thread."""
        self.leave()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def wait_for_nodes(server: Server) -> None:
    """Wait until a node knows the other one."""
    until(lambda: len(server.http.get(NODES).json()["nodes"]) == 2)


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> Iterator[tuple[Server, Server]]:
    """Two nodes that know each other."""
    folder = tmp_path_factory.mktemp("nodes")
    env = {**SIGNED, "ROUTECAST_REDIS_PREFIX": folder.name}
    first = Server(folder / "one", redis_url=redis_url, env=env)
    second = Server(folder / "two", redis_url=redis_url, env=env, role="stream")
    with first, second:
        for node in (first, second):
            node.http.headers.update(bearer(token("read", "write", "admin", sub="olga")))
            wait_for_nodes(node)
        first.post({"strategy": "hybrid", "provider": "gemini"})
        yield first, second


@pytest.fixture
def crowd(nodes: tuple[Server, Server]) -> Iterator[Crowd]:
    """No client is connected at first."""
    until(lambda: nodes[0].http.get(CONNECTIONS).json()["total"] == 0)
    people = Crowd()
    yield people
    people.end()


def open_page(tab: Tab, server: Server) -> Page:
    """Open the page as an operator."""
    page = tab.page
    page.goto(f"{server.url}/admin#key={token('admin', sub='olga')}")
    expect(page.locator("#state")).to_have_text("Live")
    return page


def wait_in(page: Page, met: Callable[[], bool]) -> None:
    """Return when a condition is true, while the browser's events are handled."""
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)  # time between two checks; the result is the event


def rows(page: Page, table: str = "open") -> Any:
    return page.locator(f"#{table} tbody tr")


def test_only_operators_see_it(nodes: tuple[Server, Server], tab: Tab) -> None:
    """The form says what is missing, and takes another credential; signing out ends it."""
    page = tab.page
    page.goto(f"{nodes[0].url}/admin")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.locator("#numbers")).to_be_hidden()
    page.get_by_label("Paste a token or API key").fill(token("read"))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("`admin`")
    expect(page.locator("#numbers")).to_be_hidden()
    page.get_by_label("Paste a token or API key").fill(token("admin", sub="olga"))
    page.get_by_role("button", name="Sign in").click()
    expect(rows(page, "nodes")).to_have_count(2)
    expect(page.get_by_role("heading", name="Sign in")).to_be_hidden()
    expect(page.locator("#subject")).to_have_text("olga")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.locator("#numbers")).to_be_hidden()
    assert not [error for error in tab.errors if "Content Security Policy" in error]


def test_connections_of_all_nodes_are_live(
    nodes: tuple[Server, Server], tab: Tab, crowd: Crowd
) -> None:
    """They appear and disappear by themselves; names of clients are text."""
    page = open_page(tab, nodes[0])
    expect(page.locator("#nothing")).to_have_text("Nobody is connected.")
    crowd.join(nodes[0], "ann", MARKUP)
    crowd.join(nodes[1], MARKUP)
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#count")).to_have_text("2 open connections")
    assert page.locator("#numbers img").count() == 0
    expect(rows(page, "nodes").locator(".streams")).to_have_text(["1", "1"])
    expect(rows(page, "nodes").locator(".cpu").first).to_contain_text("%")
    crowd.leave()
    expect(rows(page)).to_have_count(0)
    page.get_by_role("button", name="Closed").click()
    expect(rows(page, "closed").first.locator(".code")).to_have_text("1000")
    expect(rows(page, "closed").first.locator(".reason")).to_have_text("done")
    assert not tab.errors
    assert tab.hosts <= {f"127.0.0.1:{node.port}" for node in nodes}


def test_search_filters_and_order(nodes: tuple[Server, Server], tab: Tab, crowd: Crowd) -> None:
    """They are those of the API, over all nodes."""
    for number, (name, agent) in enumerate(
        [("ann", "wall/1"), ("bob", "v1/1"), ("cyd", "wall/2"), ("ann", "v1/2")]
    ):
        crowd.join(nodes[number % 2], name, agent)
    page = open_page(tab, nodes[0])
    expect(rows(page)).to_have_count(4)
    page.get_by_label("Search").fill("ANN")
    expect(rows(page).locator(".client")).to_have_text(["v1/2", "wall/1"])
    page.get_by_label("Protocol").select_option("v1 json")
    expect(rows(page).locator(".client")).to_have_text(["v1/2"])
    page.get_by_label("Search").fill("")
    expect(rows(page)).to_have_count(2)
    page.get_by_label("Protocol").select_option("All protocols")
    expect(rows(page)).to_have_count(4)
    page.get_by_role("button", name="Age").click()
    expect(rows(page).first.locator(".client")).to_have_text("wall/1")
    expect(page.locator("#open th.age").first).to_have_attribute("aria-sort", "descending")
    page.get_by_role("button", name="Sent").click()
    expect(page.locator("#open th.bytes").first).to_have_attribute("aria-sort", "descending")
    expect(page.locator("#open thead [aria-sort]")).to_have_count(1)
    stream_node = rows(page, "nodes").filter(has_text="stream")
    stream_node.click()
    expect(rows(page).locator(".subject")).to_have_count(2)
    stream_node.click()
    expect(rows(page)).to_have_count(4)
    page.get_by_label("Search").fill("nobody")
    expect(page.locator("#nothing")).to_have_text("No connection matches.")


def test_a_connection_is_shown_and_disconnected(
    nodes: tuple[Server, Server], tab: Tab, crowd: Crowd
) -> None:
    """After a confirmation; the details then say how it ended."""
    crowd.join(nodes[1], "ann", jti="ticket-7")
    page = open_page(tab, nodes[0])
    page.get_by_role("button", name="ann").click()
    details = page.get_by_role("dialog")
    expect(details).to_contain_text("ticket-7")
    expect(details).to_contain_text("total_decisions")
    expect(details).to_contain_text("0 B by patches")
    details.get_by_role("button", name="Disconnect…", exact=True).click()
    expect(details).to_contain_text("Disconnect this connection from 127.0.0.1?")
    details.get_by_role("button", name="Cancel").click()
    assert nodes[0].http.get(CONNECTIONS).json()["total"] == 1
    details.get_by_role("button", name="Disconnect…", exact=True).click()
    details.get_by_role("button", name="Disconnect", exact=True).click()
    expect(details).to_contain_text("closed with 4403: an operator closed it")
    expect(details.get_by_role("button", name="Disconnect…", exact=True)).to_be_hidden()
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()
    expect(rows(page)).to_have_count(0)


def test_all_of_a_subject_are_disconnected(
    nodes: tuple[Server, Server], tab: Tab, crowd: Crowd
) -> None:
    """On all nodes, and no others; they may be allowed to come back."""
    for node in nodes:
        crowd.join(node, "ann")
        crowd.join(node, "bob")
    page = open_page(tab, nodes[0])
    page.get_by_role("button", name="ann").first.click()
    details = page.get_by_role("dialog")
    details.get_by_role("button", name="Disconnect all of ann…").click()
    details.get_by_role("checkbox").check()
    details.get_by_role("button", name="Disconnect", exact=True).click()
    expect(rows(page).locator(".subject")).to_have_text(["bob", "bob"])
    expect(details).to_contain_text("closed with 1012")
    found = nodes[0].http.get(CONNECTIONS, params={"closed": "true", "search": "ann"}).json()
    assert [row["code"] for row in found["connections"][:2]] == [1012, 1012]


def page_of(count: int, after: str) -> dict[str, Any]:
    """Return an answer of the API about many connections."""
    first = int(after or 0)
    numbers = range(first, min(first + PAGE_SIZE, count))
    following = str(first + PAGE_SIZE) if first + PAGE_SIZE < count else None
    rows_of_page = [
        ONE_OF_MANY | {"id": f"{number:015x}", "subject": f"s{number}"} for number in numbers
    ]
    given = {"node": "a", "total": count, "next": following, "missing": None}
    return given | {"connections": rows_of_page}


def test_ten_thousand_connections_are_pages(nodes: tuple[Server, Server], tab: Tab) -> None:
    """The browser holds one page of them."""
    asked: list[str] = []

    def answer(route: Any) -> None:
        query = dict(pair.split("=") for pair in route.request.url.partition("?")[2].split("&"))
        asked.append(query.get("after", ""))
        route.fulfill(json=page_of(10_000, query.get("after", "")))

    tab.page.route(f"**{CONNECTIONS}?*", answer)
    page = open_page(tab, nodes[0])
    expect(page.locator("#count")).to_have_text("10,000 open connections")
    expect(rows(page)).to_have_count(PAGE_SIZE)
    saved = rows(page).first.locator(".saved")
    expect(saved).to_have_text("2.2 kB")
    expect(saved).to_have_attribute("title", "1.5 kB by patches, 700 B by compression")
    expect(page.locator("#page")).to_have_text("Page 1 of 200")
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("button", name="s50", exact=True)).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#page")).to_have_text("Page 3 of 200")
    page.get_by_role("button", name="Previous").click()
    expect(page.locator("#page")).to_have_text("Page 2 of 200")
    wait_in(page, lambda: asked[-2:] == ["50", "50"])
    expect(rows(page)).to_have_count(PAGE_SIZE)


def test_a_hidden_page_rests(nodes: tuple[Server, Server], tab: Tab) -> None:
    """It asks at once when it is seen again."""
    page = tab.page
    page.clock.install()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if NODES in request.url else None)
    page.goto(f"{nodes[0].url}/admin#key={token('admin')}")
    while page.locator("#state").inner_text() != "Live":
        page.clock.run_for(200)
    page.evaluate("""() => {
        Object.defineProperty(document, "hidden", { get: () => window.isHidden });
        window.isHidden = true;
    }""")
    page.clock.run_for(2_000)
    page.wait_for_timeout(300)
    count = len(asked)
    page.clock.run_for(20_000)
    page.wait_for_timeout(300)
    assert len(asked) <= count + 1
    page.evaluate("""() => {
        window.isHidden = false;
        document.dispatchEvent(new Event("visibilitychange"));
    }""")
    wait_in(page, lambda: len(asked) > count + 1)


def test_a_server_that_is_away_is_said(nodes: tuple[Server, Server], tab: Tab) -> None:
    """The last numbers stay, and are marked as old; the page recovers by itself."""
    page = open_page(tab, nodes[0])
    page.route("**/v1/admin/**", lambda route: route.abort())
    expect(page.locator("#state")).to_have_text("Stale")
    expect(page.locator("#updated")).to_contain_text("the server cannot be reached")
    expect(rows(page, "nodes")).to_have_count(2)
    page.unroute("**/v1/admin/**")
    expect(page.locator("#state")).to_have_text("Live", timeout=20_000)


def test_nodes_that_do_not_answer_are_named(nodes: tuple[Server, Server], tab: Tab) -> None:
    """Otherwise the list would look complete."""
    page = open_page(tab, nodes[0])
    name = nodes[1].http.get(CONNECTIONS).json()["node"]
    nodes[1].freeze()
    try:
        expect(page.locator("#missing")).to_contain_text(name, timeout=15_000)
    finally:
        nodes[1].thaw()
    expect(page.locator("#missing")).to_be_hidden(timeout=20_000)


def test_without_authentication_it_is_open(tmp_path: Path, tab: Tab) -> None:
    """As everything is; there is no subject to disconnect clients by."""
    people = Crowd()
    with Server(tmp_path) as server:
        page = tab.page
        page.goto(f"{server.url}/admin")
        expect(rows(page, "nodes")).to_have_count(1)
        people.join(server, "ann")
        page.get_by_role("button", name="anonymous").click()
        details = page.get_by_role("dialog")
        expect(details.get_by_role("button", name="Disconnect…", exact=True)).to_be_visible()
        expect(details.get_by_role("button", name="Disconnect all")).to_be_hidden()
        people.end()
        assert not tab.errors


@pytest.mark.parametrize("width", [360, 700, 1000, 1440, 2560])
def test_the_page_fits_its_window(
    nodes: tuple[Server, Server], tab: Tab, crowd: Crowd, width: int
) -> None:
    """Nothing makes it wider than the window, however long the names."""
    crowd.join(nodes[0], "n" * 200, "a" * 200)
    tab.page.set_viewport_size({"width": width, "height": 800})
    page = open_page(tab, nodes[0])
    expect(rows(page)).to_have_count(1)
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    tables = (
        "() => [...document.querySelectorAll('.wide')].map((e) => e.scrollWidth - e.clientWidth)"
    )
    assert max(page.evaluate(tables)) <= 1
    rows(page).first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    dialog = "(e) => e.scrollWidth - e.clientWidth"
    assert page.get_by_role("dialog").evaluate(dialog) == 0


def test_the_page_leads_operators_to_it(nodes: tuple[Server, Server], tab: Tab) -> None:
    """Other people do not see the link."""
    page = tab.page
    page.goto(f"{nodes[0].url}/#key={token('read')}")
    expect(page.locator("#state")).to_have_text("Live")
    link = page.get_by_role("link", name="Nodes and connections")
    expect(link).to_be_hidden()
    page.goto("about:blank")
    page.goto(f"{nodes[0].url}/#key={token('read', 'admin')}")
    link.click()
    expect(page).to_have_url(f"{nodes[0].url}/admin")
    expect(rows(page, "nodes")).to_have_count(2)
