"""Fixtures of browser tests: Chromium, and a tab with the page."""

import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.needs import skip_without
from tests.support.tab import Tab

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # A name that leads to this machine, as behind a proxy.
    "--host-resolver-rules=MAP metrics.example 127.0.0.1",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    if CHROMIUM is None:
        skip_without("Chromium", "apt install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """A new tab of the width of a desktop."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    tab = Tab(context.new_page())
    page = tab.page
    page.on("console", lambda message: tab.errors.append(message.text))
    page.on("pageerror", lambda error: tab.errors.append(str(error)))
    page.on("request", lambda request: tab.hosts.add(urlsplit(request.url).netloc))
    page.on("websocket", lambda socket: tab.hosts.add(urlsplit(socket.url).netloc))
    yield tab
    context.close()
