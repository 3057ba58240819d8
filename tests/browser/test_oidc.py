"""Signing in by a real OpenID Connect provider, in a real Chromium."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.support.oidc import CLIENT_SECRET, OidcServer
from tests.support.server import Server
from tests.support.tab import Tab

RULES = "operators=read,admin,write; search=read:search; writers=write"
SESSIONS = 3  # that a person may begin in a day
DECISION = {"strategy": "hybrid", "provider": "gemini"}


class Signed:
    """A server whose people sign in at a provider."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.server = Server(folder)
        self.provider = OidcServer(self.server.url)
        self.server.env |= {
            "ROUTECAST_OIDC_ISSUER": self.provider.issuer,
            "ROUTECAST_OIDC_CLIENT_ID": "routecast",
            "ROUTECAST_OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "ROUTECAST_OIDC_SCOPES": "openid email groups",
            "ROUTECAST_GROUP_RULES": RULES,
            "ROUTECAST_MAX_SESSIONS_A_DAY": f"{SESSIONS}",
            **env,
        }


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    """Both of them, with two decisions."""
    made = Signed(tmp_path_factory.mktemp("oidc"))
    with made.provider, made.server:
        yield made


def sign_in(page: Page, name: str) -> None:
    """Sign in from the page, by the forms of the provider."""
    page.get_by_role("link", name="Sign in with your identity provider").click()
    page.locator("input[name=login]").fill(name)
    page.locator("input[name=password]").fill("any")
    page.get_by_role("button", name="Sign-in").click()
    page.get_by_role("button", name="Continue").click()


def test_a_person_signs_in_and_out(signed: Signed, tab: Tab) -> None:
    """With the scopes of the group; a reload changes nothing, and signing out ends the stream."""
    page = tab.page
    page.goto(signed.server.url)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    sign_in(page, "operators")
    expect(page.get_by_role("status")).to_have_text("Live")
    assert page.url == f"{signed.server.url}/"
    expect(page.locator("#subject")).to_have_text("operators")
    state = page.evaluate("async () => (await fetch('auth/session')).json()")
    assert state["person"]["scopes"] == ["admin", "read", "write"]
    assert state["person"]["projects"] is None
    sent = page.evaluate(
        "async (body) => (await fetch('v1/decisions', { method: 'POST', body })).status",
        '[{"strategy":"a","provider":"b"},{"strategy":"a","provider":"b","project":"search"}]',
    )
    assert sent == 200
    page.reload()
    expect(page.locator("#total")).to_have_text("2")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_group_is_limited_to_its_projects(signed: Signed, tab: Tab) -> None:
    """In numbers, too."""
    page = tab.page
    page.goto(signed.server.url)
    sign_in(page, "search")
    expect(page.get_by_role("status")).to_have_text("Live")
    state = page.evaluate("async () => (await fetch('auth/session')).json()")
    assert state["person"]["projects"] == ["search"]


def test_a_person_without_a_rule_gets_nothing(signed: Signed, tab: Tab) -> None:
    """And is told so."""
    page = tab.page
    page.goto(signed.server.url)
    sign_in(page, "nobody")
    expect(page.get_by_role("alert")).to_contain_text("it gives you no access here")
    expect(page.locator("#person")).to_be_hidden()
    assert page.url == f"{signed.server.url}/"


def test_a_person_who_signs_in_too_often_waits(signed: Signed, tab: Tab) -> None:
    """And is told so; the log does not say that the provider fails."""
    page, before = tab.page, len(signed.server.log.read_text())
    page.goto(signed.server.url)
    sign_in(page, "writers")
    expect(page.locator("#person")).to_be_visible()
    for _ in range(SESSIONS):  # the provider remembers the person
        page.context.clear_cookies(name="routecast_session")
        page.goto(f"{signed.server.url}/auth/login")
    expect(page.get_by_role("alert")).to_contain_text("You have signed in too many times")
    expect(page.locator("#person")).to_be_hidden()
    log = signed.server.log.read_text()[before:]
    assert "got no session: too many sessions of this client" in log
    assert "Nobody can sign in" not in log


def test_a_person_who_declines_is_not_signed_in(signed: Signed, tab: Tab) -> None:
    """The provider sends an error back."""
    page = tab.page
    page.goto(signed.server.url)
    page.get_by_role("link", name="Sign in with your identity provider").click()
    page.get_by_role("link", name="Cancel").click()
    expect(page.get_by_role("alert")).to_contain_text("did not sign you in")
    expect(page.locator("#person")).to_be_hidden()


@pytest.mark.parametrize(
    ("query", "cookie", "failure"),
    [
        ("code=x&state=a", "", "expired"),
        ("code=x&state=b", "a.b.c", "expired"),
        ("code=x", "a.b.c", "expired"),
        ("code=x&state=", ".b.c", "expired"),
        ("state=a", "a.b.c", "refused"),
        ("error=access_denied&state=a", "a.b.c", "refused"),
        ("code=never-made&state=a", "a.b.c", "refused"),
        (f"code={'x' * 6000}&state=a", "a.b.c", "refused"),
    ],
)
def test_a_forged_return_signs_nobody_in(
    signed: Signed, query: str, cookie: str, failure: str
) -> None:
    """The browser ends at the page, and nowhere else."""
    answer = httpx2.get(
        f"{signed.server.url}/auth/callback?{query}",
        headers={"Cookie": f"routecast_attempt={cookie}"} if cookie else {},
        follow_redirects=False,
        timeout=30,
    )
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/#sign-in={failure}"
    assert "routecast_session" not in str(answer.headers)


def test_the_attempt_is_random_and_short(signed: Signed) -> None:
    """State, nonce and PKCE are in the request; the secret of PKCE is in the cookie only."""
    answers = [
        httpx2.get(f"{signed.server.url}/auth/login", follow_redirects=False, timeout=30)
        for _ in range(2)
    ]
    first, second = (httpx2.URL(answer.headers["location"]).params for answer in answers)
    assert first["code_challenge_method"] == "S256"
    assert first["redirect_uri"] == f"{signed.server.url}/auth/callback"
    for name in ("state", "nonce", "code_challenge"):
        assert len(first[name]) >= 43
        assert first[name] != second[name]
    field = answers[0].headers["set-cookie"]
    assert "HttpOnly" in field
    assert "Max-Age=600" in field
    verifier = field.partition(";")[0].rpartition(".")[2]
    assert verifier not in answers[0].headers["location"]
    assert CLIENT_SECRET not in answers[0].headers["location"]


def test_the_provider_may_be_down_at_the_start(tmp_path: Path, tab: Tab) -> None:
    """The page says so, all else works, and signing in does as soon as the provider is there."""
    made = Signed(tmp_path)
    with made.server:
        page = tab.page
        page.goto(made.server.url)
        page.get_by_role("link", name="Sign in with your identity provider").click()
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached now")
        assert page.url == f"{made.server.url}/"
        assert httpx2.get(f"{made.server.url}/ready").status_code == 200
        for _ in range(30):
            assert httpx2.get(f"{made.server.url}/auth/login").status_code == 303
        with made.provider:
            sign_in(page, "operators")
            expect(page.get_by_role("status")).to_have_text("Live")
    log = made.server.log.read_text()
    assert 0 < log.count("Nobody can sign in") < 30  # anyone can cause them
    assert CLIENT_SECRET not in log
