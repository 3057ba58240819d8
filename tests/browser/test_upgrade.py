"""The page while one proxy serves nodes of two versions, and when files cannot be loaded."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, expect

import routecast
from tests.support.nginx import Nginx, executable
from tests.support.server import Server
from tests.support.tab import Tab

PAGES = 24
# Longer than three pauses and three reloads.
RELOADS_MS = 60_000


def other_version(folder: Path) -> dict[str, str]:
    """Make a package with other scripts; return the environment that runs it."""
    package = folder / "routecast"
    shutil.copytree(Path(routecast.__file__).parent, package)
    changed = 0
    for path in package.glob("dashboard/*.js"):
        text = path.read_text("utf-8")
        # This is like a refactoring: one module has a new name, and others import it.
        path.write_text(text.replace("formatAge", "ageInWords"), "utf-8")
        changed += "formatAge" in text
    assert changed > 1
    return {"PYTHONPATH": str(folder)}


@pytest.fixture
def versions(tmp_path: Path) -> Iterator[list[int]]:
    """The ports of two nodes with different pages."""
    executable()
    nodes = (
        Server(tmp_path / "old"),
        Server(tmp_path / "new", env=other_version(tmp_path / "source")),
    )
    with ExitStack() as stack:
        for node in nodes:
            stack.enter_context(node)
        yield [node.port for node in nodes]


def load(browser: Browser, url: str) -> set[str]:
    """Open the page in a new browser profile until it is live; return the versions of its files."""
    with browser.new_context() as context:
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        expect(page.get_by_role("status")).to_have_text("Live", timeout=RELOADS_MS)
        assert errors == []
        return set(page.evaluate(LOADED_VERSIONS))


# The versions in the addresses of scripts and styles that the page itself loaded.
LOADED_VERSIONS = """() => performance.getEntriesByType("resource")
    .filter(({ initiatorType }) => ["script", "link", "other"].includes(initiatorType))
    .map(({ name }) => new URL(name).pathname.split("/"))
    .filter(([, folder]) => folder === "dashboard")
    .map(([, , version]) => version)"""


def test_no_page_has_files_of_two_versions(
    tmp_path: Path, browser: Browser, versions: list[int]
) -> None:
    """nginx finds the files of a page's version, and no page has to reload."""
    with Nginx(tmp_path / "nginx", versions) as nginx:
        seen = [load(browser, nginx.url) for _ in range(PAGES)]
    assert all(len(loaded) == 1 for loaded in seen), seen
    assert len(set.union(*seen)) == 2


def test_a_proxy_that_asks_no_other_node_is_enough(
    tmp_path: Path, browser: Browser, versions: list[int]
) -> None:
    """Behind such a proxy, a page reloads until it has all its files."""
    plain = {"proxy_next_upstream error timeout http_404;": "", "least_conn;": ""}
    with Nginx(tmp_path / "nginx", versions, replaced=plain) as nginx:
        seen = [load(browser, nginx.url) for _ in range(4)]
    assert all(len(loaded) == 1 for loaded in seen), seen


def refuse(page: Page, file: str) -> list[str]:
    """Answer one file always with 404; return the list of its requests."""
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.resource_type)
        route.fulfill(status=404)

    page.route(f"**/{file}", answer)
    return asked


@pytest.mark.parametrize("file", ["main.js", "format.js", "client/connection.js", "theme.css"])
def test_an_incomplete_page_says_so(server: Server, tab: Tab, file: str) -> None:
    """It reloads three times, and after that only with the button."""
    page = tab.page
    loads: list[str] = []
    page.on("request", lambda it: it.is_navigation_request() and loads.append(it.url))
    refuse(page, file)
    page.goto(server.url)
    heading = page.get_by_role("heading", name="This page is not complete")
    expect(heading).to_be_visible(timeout=RELOADS_MS)
    assert len(loads) == 4, tab.errors
    page.unroute(f"**/{file}")
    page.get_by_role("button", name="Load again").click()
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(heading).to_be_hidden()
    assert page.evaluate("history.state") is None


def test_an_incomplete_page_stays_without_a_server(server: Server, tab: Tab) -> None:
    """The browser's own error page does not replace it."""
    page = tab.page
    page.route("**/main.js", lambda route: route.abort())
    page.goto(server.url)
    expect(page.get_by_role("status")).to_have_text("Loading again")
    server.stop()
    expect(page.get_by_role("heading", name="not complete")).to_be_visible(timeout=RELOADS_MS)
    assert urlsplit(page.url).port == server.port
    server.start()
    page.unroute("**/main.js")
    page.get_by_role("button", name="Load again").click()
    expect(page.get_by_role("status")).to_have_text("Live")
