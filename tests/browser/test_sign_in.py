"""Signing in on the page, in a real Chromium with a real server that needs a credential."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, expect

from tests.support.command import routecast
from tests.support.credentials import SIGNED, bearer, token
from tests.support.default_stream_server import plain_server
from tests.support.server import Server
from tests.support.tab import Tab
from tests.support.waiting import until

DECISION = {"strategy": "hybrid", "provider": "gemini"}
# All places in which a script could find a credential later; it cannot read the cookie.
STORED = """async () => [
    { ...localStorage }, { ...sessionStorage }, document.cookie, JSON.stringify(history.state),
    (await indexedDB.databases()).length, (await caches.keys()).length,
]"""
NOTHING_STORED = [{}, {}, "", "null", 0, 0]


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two decisions that needs a credential."""
    with Server(tmp_path_factory.mktemp("signed"), env=SIGNED) as server:
        server.http.headers.update(bearer(token("read", "write", "admin")))
        server.post([DECISION, {**DECISION, "project": "search"}])
        yield server


def enter(page: Page, text: str) -> None:
    """Paste a credential into the form, and send it."""
    page.get_by_label("Paste a token or API key").fill(text)
    page.get_by_role("button", name="Sign in").click()


def expect_form(page: Page) -> None:
    """Expect the form, and no numbers."""
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("Sign in")
    expect(page.locator("#numbers")).to_be_hidden()


def expect_numbers(page: Page, total: int) -> None:
    """Expect live numbers, and no form."""
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.locator("#total")).to_have_text(str(total))
    expect(page.get_by_role("heading", name="Sign in")).to_be_hidden()


def test_a_pasted_token_shows_the_numbers(closed_server: Server, tab: Tab) -> None:
    """No script can find it later, the browser reports no broken rule, and it outlives a reload."""
    page = tab.page
    page.goto(closed_server.url)
    expect_form(page)
    expect(page.get_by_label("Paste a token or API key")).to_be_focused()
    expect(page.get_by_role("alert")).to_be_hidden()
    secret = token("read")
    enter(page, f" {secret}\n")
    expect_numbers(page, 2)
    assert page.get_by_label("Paste a token or API key").input_value() == ""
    assert page.evaluate(STORED) == NOTHING_STORED
    assert page.url == f"{closed_server.url}/"
    assert secret not in page.content()
    assert not [error for error in tab.errors if "Content Security Policy" in error]
    expect(page.locator("#subject")).to_have_text("ann")
    page.reload()
    expect_numbers(page, 2)
    expect(page.locator("#subject")).to_have_text("ann")
    assert page.evaluate(STORED) == NOTHING_STORED


def test_no_request_of_the_page_has_the_token(closed_server: Server, tab: Tab) -> None:
    """But the one that signs in. An operator is shown the server's health, others the version."""
    page = tab.page
    page.goto(closed_server.url)
    expect_form(page)
    given: list[tuple[str, str]] = []
    page.on("request", lambda request: given.append(sent(request)))
    secret = token("read", "admin")
    enter(page, secret)
    expect(page.locator("#health")).to_contain_text("1 open stream")
    assert [url for url, text in given if secret in text] == [f"{closed_server.url}/auth/session"]
    page.get_by_role("button", name="Sign out").click()
    expect_form(page)
    enter(page, token("read"))
    expect(page.locator("#health")).to_have_text(re.compile(r"^Routecast \S+$"))


def sent(request: Request) -> tuple[str, str]:
    """Return the URL of a request, and all that is in it."""
    return request.url, f"{request.url} {request.headers} {request.post_data}"


def test_signing_out_ends_the_streams_of_all_tabs(closed_server: Server, tab: Tab) -> None:
    """Both show the form, and neither comes back by a reload."""
    first = tab.page
    first.goto(f"{closed_server.url}/#key={token('read')}")
    expect_numbers(first, 2)
    second = first.context.new_page()
    second.goto(closed_server.url)
    expect_numbers(second, 2)
    second.get_by_role("button", name="Sign out").click()
    for page in (second, first):
        expect_form(page)
        expect(page.get_by_role("button", name="Sign out")).to_be_hidden()
    expect(first.get_by_role("alert")).to_have_text("Your session has ended.")
    expect(second.get_by_role("alert")).to_be_hidden()
    first.reload()
    expect_form(first)
    assert not [each for each in first.context.cookies() if "session" in each["name"]]


def test_a_tab_is_signed_in_by_another(closed_server: Server, tab: Tab) -> None:
    """A person who has signed in elsewhere only has to load the page again."""
    first = tab.page
    first.goto(closed_server.url)
    expect_form(first)
    second = first.context.new_page()
    second.goto(f"{closed_server.url}/#key={token('read')}")
    expect_numbers(second, 2)
    first.reload()
    expect_numbers(first, 2)


ATTACK = """async ({ url, stream, decision }) => {
    const opened = (socket) => new Promise((resolve) => {
        socket.onopen = socket.onmessage = () => resolve("open");
        socket.onerror = () => resolve("refused");
    });
    const told = (promise) => promise.then((answer) => answer.status, () => "unreadable");
    const options = { credentials: "include", mode: "cors" };
    const post = { ...options, method: "POST", body: decision };
    await fetch(`${url}/v1/decisions`, { ...post, mode: "no-cors" }).catch(() => {});
    return {
        socket: await opened(new WebSocket(stream)),
        events: await opened(new EventSource(`${url}/sse/metrics`, { withCredentials: true })),
        read: await told(fetch(`${url}/routing/metrics`, options)),
        write: await told(fetch(`${url}/v1/decisions`, post)),
        ticket: await told(fetch(`${url}/v1/tickets`, { ...options, method: "POST" })),
        signOut: await told(fetch(`${url}/auth/session`, { ...options, method: "DELETE" })),
    };
}"""


def test_a_hostile_page_cannot_use_the_session(tmp_path: Path, tab: Tab) -> None:
    """It is of another port of this host, to which the browser sends the cookie all the same."""
    env = {**SIGNED, "ROUTECAST_LOG_FORMAT": "json"}
    with plain_server() as hostile, Server(tmp_path, env=env) as server:
        page = tab.page
        page.goto(f"{server.url}/#key={token('read', 'write', 'admin')}")
        expect(page.get_by_role("status")).to_have_text("Live")
        other = page.context.new_page()
        other.goto(hostile.replace("localhost", "127.0.0.1"))
        found = other.evaluate(
            ATTACK,
            {
                "url": server.url,
                "stream": server.ws_url,
                "decision": '{"strategy":"evil","provider":"evil"}',
            },
        )
        assert found["socket"] == found["events"] == "refused"
        for kind in ("read", "write", "ticket", "signOut"):
            assert found[kind] in ("unreadable", 401, 403), (kind, found[kind])
        # The cookie was sent, and the server has refused it.
        server.wait_for_log("a request with a session's cookie needs an `Origin` of this server")
        page.reload()
        expect(page.get_by_role("status")).to_have_text("Live")
        expect(page.get_by_role("heading", name="No decisions yet")).to_be_visible()


@pytest.mark.parametrize(
    "wrong",
    ["rc_nobody", "not a token", "schlüssel", token("read")[:-4]],
    ids=["unknown", "spaces", "letters", "cut off"],
)
def test_a_wrong_token_is_explained(closed_server: Server, tab: Tab, wrong: str) -> None:
    """The form stays, says why, and takes another one."""
    page = tab.page
    page.goto(closed_server.url)
    enter(page, wrong)
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("alert")).not_to_contain_text(wrong)
    expect_form(page)
    enter(page, token("read"))
    expect_numbers(page, 2)


def test_a_token_that_may_not_read_is_explained(closed_server: Server, tab: Tab) -> None:
    """The text names the scope."""
    page = tab.page
    page.goto(closed_server.url)
    enter(page, token("write"))
    expect(page.get_by_role("alert")).to_contain_text("`read`")
    expect(page.get_by_role("heading", name="The server refuses this page")).to_be_hidden()
    expect_form(page)


def test_a_link_with_a_key_signs_in(closed_server: Server, tab: Tab) -> None:
    """The key is removed from the address, also from where “back” leads, and sent in no URL."""
    page = tab.page
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.on("websocket", lambda socket: urls.append(socket.url))
    secret = token("read")
    page.goto(f"{closed_server.url}/?a=b#key={secret}")
    expect_numbers(page, 2)
    assert page.url == f"{closed_server.url}/?a=b"
    assert page.evaluate(STORED) == NOTHING_STORED
    # The browser's own report of the navigation has the fragment, which is not sent.
    assert not [url for url in urls if secret in url.partition("#")[0]]
    page.goto("about:blank")
    page.go_back()
    assert page.url == f"{closed_server.url}/?a=b"


def test_a_key_can_be_added_to_an_open_page(closed_server: Server, tab: Tab) -> None:
    """As when a person edits the address."""
    page = tab.page
    page.goto(closed_server.url)
    expect_form(page)
    page.evaluate("(key) => { location.hash = `key=${key}`; }", token("read"))
    expect_numbers(page, 2)
    assert page.url == f"{closed_server.url}/"


def test_a_token_of_one_project_shows_its_numbers(closed_server: Server, tab: Tab) -> None:
    """The page asks for no project, and gets the token's."""
    tab.page.goto(f"{closed_server.url}/#key={token('read', projects=['search'])}")
    expect_numbers(tab.page, 1)


def test_a_token_that_expires_shows_the_form(closed_server: Server, tab: Tab) -> None:
    """Another token then continues."""
    page = tab.page
    page.goto(f"{closed_server.url}/#key={token('read', seconds=12)}")
    expect_numbers(page, 2)
    expect(page.get_by_role("alert")).to_be_visible(timeout=40_000)
    expect_form(page)
    enter(page, token("read"))
    expect_numbers(page, 2)


def test_the_command_of_the_empty_page_has_a_key(tmp_path: Path, tab: Tab) -> None:
    """It is the reader's own from the environment: that of the page may not allow to write."""
    with Server(tmp_path, env=SIGNED) as server:
        tab.page.goto(f"{server.url}/#key={token('read')}")
        line = tab.page.locator("#first-decision")
        expect(line).to_contain_text('-H "Authorization: Bearer $ROUTECAST_API_KEY"')


def test_without_authentication_there_is_no_form(server: Server, tab: Tab) -> None:
    """A key in the address does no harm there."""
    page = tab.page
    page.goto(f"{server.url}/#key=rc_anything")
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.get_by_role("heading", name="Sign in")).to_be_hidden()
    assert page.url == f"{server.url}/"


def test_a_key_made_by_the_command_signs_in(closed_server: Server, tab: Tab) -> None:
    """Until it is revoked: then the page shows the form."""
    made = routecast("keys", "create", "--name", "screen", "--scope", "read", env=closed_server.env)
    assert made.returncode == 0, made.stderr
    found = re.search(r"rc_\S+", made.stdout)
    assert found
    header = bearer(found[0])
    until(lambda: closed_server.http.get("/routing/metrics", headers=header).status_code == 200)
    page = tab.page
    page.goto(f"{closed_server.url}/#key={found[0]}")
    expect_numbers(page, 2)
    revoked = routecast("keys", "revoke", "screen", env=closed_server.env)
    assert revoked.returncode == 0, revoked.stderr
    expect(page.get_by_role("alert")).to_be_visible()
    expect_form(page)


# -- the client in pages of other sites -----------------------------------------------------------

FOLLOW = """async ({ url, token }) => {
    const { connect } = await import("/client/routecast.js");
    const client = connect(url, { firstDelay: 100, longestDelay: 100, token });
    return await new Promise((resolve) => {
        client.onState((state) => {
            const { name, reason } = state;
            if (name === "closed" || name === "reconnecting") resolve([name, reason]);
        });
        client.subscribe({}, (metrics) => resolve(["shown", String(metrics.total_decisions)]));
    });
}"""


def test_a_page_of_an_allowed_site_sends_a_token(tmp_path: Path, tab: Tab) -> None:
    """It is shown numbers, or why it is refused."""
    with plain_server() as site:
        env = {**SIGNED, "ROUTECAST_ALLOWED_ORIGINS": site}
        with Server(tmp_path, env=env) as server:
            tab.page.goto(site)

            def follow(given: str | None) -> list[str]:
                found: list[str] = tab.page.evaluate(FOLLOW, {"url": server.url, "token": given})
                return found

            assert follow(token("read")) == ["shown", "0"]
            for given in (None, "rc_wrong"):
                name, reason = follow(given)
                assert name == "closed"
                assert reason.endswith("; a valid token or API key is needed")
            name, reason = follow(token("write"))
            assert name == "closed"
            assert "`read`" in reason


def test_a_token_is_no_hindrance_without_authentication(tmp_path: Path, tab: Tab) -> None:
    """A page of another site that gives one is told why it is refused."""
    with plain_server() as site, Server(tmp_path, env={"ROUTECAST_MAX_CONNECTIONS": "1"}) as server:
        tab.page.goto(site)
        given = {"url": server.url, "token": "rc_anything"}
        assert tab.page.evaluate(FOLLOW, given) == ["shown", "0"]
        name, reason = tab.page.evaluate(FOLLOW, given)
        assert name == "reconnecting"
        assert "too many connections" in reason
