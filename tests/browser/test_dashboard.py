"""The dashboard at `/`, in a real Chromium with a real server."""

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.support.server import Server
from tests.support.tab import Tab, wait_seconds


def decision(strategy: str = "hybrid", provider: str = "gemini", **more: Any) -> dict[str, Any]:
    return {"strategy": strategy, "provider": provider, **more}


def strategies(page: Page) -> list[list[str]]:
    """Return the cells of the strategies' table: name, decisions, share, cost, confidence."""
    rows = page.get_by_role("table", name="Strategies").get_by_role("row").all()[1:]
    return [
        row.get_by_role("rowheader").or_(row.get_by_role("cell")).all_inner_texts() for row in rows
    ]


def bars(page: Page, panel: str) -> list[list[str]]:
    """Return the items of a list of bars: name, count, share."""
    items = page.get_by_role("list", name=panel).get_by_role("listitem").all()
    return [item.locator(".name, .count, .share").all_text_contents() for item in items]


def test_the_command_of_the_empty_page_sends_the_first_decision(server: Server, tab: Tab) -> None:
    """The command works as it is shown, and the text disappears by itself."""
    page = tab.open(server)
    expect(page.get_by_role("heading", name="No decisions yet")).to_be_visible()
    line = page.locator("#first-decision").inner_text()
    assert line == (
        """curl --json '{"strategy":"hybrid","provider":"gemini","""
        f""""confidence":0.87,"cost":0.0023}}' {server.url}/v1/decisions"""
    )
    curl = subprocess.run(["sh", "-c", line], check=True, capture_output=True, timeout=30)
    assert json.loads(curl.stdout)["accepted"] == 1
    expect(page.locator("#total")).to_have_text("1")
    expect(page.locator("#cost")).to_have_text("$0.0023")
    expect(page.get_by_role("heading", name="No decisions yet")).to_be_hidden()
    expect(page).to_have_title("1 decision – Routecast")


def test_the_command_of_the_empty_page_can_be_copied(server: Server, tab: Tab) -> None:
    """The button copies exactly the command, and then has the text “Copied”."""
    page = tab.open(server)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#first-decision").inner_text()


def test_posted_decisions_show_exact_numbers(server: Server, tab: Tab) -> None:
    """Totals, averages, shares and bands are those of the decisions; an unknown value is a dash."""
    page = tab.open(server)
    server.post(
        [
            decision("hybrid", "gemini", confidence=0.9, cost=0.002),
            decision("hybrid", "gemini", confidence=0.8, cost=0.0026),
            decision("complexity", "claude", confidence=0.6, cost=0.0018),
            decision("complexity", "gemini", confidence="low", status="error"),
            decision("silent", "claude"),
        ]
    )
    expect(page.locator("#total")).to_have_text("5")
    assert page.locator("#confidence").inner_text() == "0.767"
    assert page.locator("#cost").inner_text() == "$0.0064"
    assert page.locator("#cost-note").inner_text() == "excludes 2 unpriced"
    assert page.locator("#errors").inner_text() == "1"
    assert page.locator("#errors-note").inner_text() == "20.0% of decisions"
    assert page.locator("#latency").inner_text() == "–"
    assert strategies(page) == [
        ["complexity", "2", "40.0%", "$0.0018", "0.600"],
        ["hybrid", "2", "40.0%", "$0.0023", "0.850"],
        ["silent", "1", "20.0%", "–", "–"],
    ]
    assert bars(page, "Providers") == [["gemini", "3", "60.0%"], ["claude", "2", "40.0%"]]
    assert bars(page, "Confidence") == [
        ["high", "2", "50.0%"],
        ["medium", "1", "25.0%"],
        ["low", "1", "25.0%"],
    ]
    assert page.locator("#bands-more").inner_text() == "1 without a confidence, in no band"


def test_large_totals_have_all_digits(server: Server, tab: Tab) -> None:
    """Thousands have separators and are not shortened."""
    page = tab.open(server)
    server.post([decision(cost=1.5)] * 1234)
    expect(page.locator("#total")).to_have_text("1,234")
    assert page.locator("#cost").inner_text() == "$1,851.00"
    assert strategies(page) == [["hybrid", "1,234", "100.0%", "$1.50", "–"]]


def test_a_known_latency_is_shown(server: Server, tab: Tab) -> None:
    """The median is within 2 % of the only latency."""
    page = tab.open(server)
    server.post([decision(latency_ms=500)])
    expect(page.locator("#latency")).to_have_text(re.compile(r"^(49\d|50\d|510) ms$"))


def test_rows_are_kept_while_their_numbers_change(server: Server, tab: Tab) -> None:
    """A strategy that overtakes another one keeps its element."""
    server.post([decision("steady"), decision("steady"), decision("rising")])
    page = tab.open(server)
    page.evaluate("for (const row of document.querySelectorAll('tbody tr')) row.marked = true")
    server.post([decision("rising")] * 3)
    expect(page.locator("#total")).to_have_text("6")
    assert [row[:2] for row in strategies(page)] == [["rising", "4"], ["steady", "2"]]
    assert page.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.marked)") == [
        True,
        True,
    ]


def test_the_rate_is_drawn(server: Server, tab: Tab) -> None:
    """Decisions between two frames make the chart's line rise and fall."""
    server.post([decision()])
    page = tab.open(server)
    line = page.locator(".movement .line")
    expect(line).to_have_attribute("d", re.compile(r"^M"))
    server.post([decision()] * 50)
    label = re.compile(r"now [\d.]+, highest (?!0)[\d.]+")
    expect(page.locator(".movement svg")).to_have_attribute("aria-label", label)


def test_many_names_are_counted_rather_than_listed(server: Server, tab: Tab) -> None:
    """Twelve rows are shown, and one line counts the others."""
    server.post([decision(f"strategy-{i}", f"provider-{i}") for i in range(15)])
    page = tab.open(server)
    assert len(strategies(page)) == 12
    assert len(bars(page, "Providers")) == 12
    expect(page.locator("#strategies-more")).to_have_text("and 3 more, with 3 decisions")
    expect(page.locator("#providers-more")).to_have_text("and 3 more, with 3 decisions")


def test_the_page_reconnects_to_a_killed_server(server: Server, tab: Tab) -> None:
    """It shows that it reconnects, waits longer each time, and is live after “Retry now”."""
    tab.wait_longest()
    server.post([decision(), decision()])
    page = tab.open(server)
    server.kill()
    wait_seconds(page, 4, 6)
    expect(page).to_have_title("Reconnecting – Routecast")
    expect(page.locator("#updated")).to_contain_text("the server cannot be reached")
    expect(page.locator("#newest")).to_have_text("last update")
    assert page.locator("#total").inner_text() == "2"
    retry = page.get_by_role("button", name="Retry now")
    for least, most in [(7, 10), (11, 16), (17, 25)]:
        retry.click()
        wait_seconds(page, least, most)
    server.start()
    server.post([decision()])
    retry.click()
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.locator("#total")).to_have_text("3")
    expect(page).to_have_title("3 decisions – Routecast")
    expect(retry).to_be_hidden()


def test_a_network_that_returns_is_used_at_once(server: Server, tab: Tab) -> None:
    """The browser's event `online` ends the wait."""
    tab.wait_longest()
    server.post([decision()])
    page = tab.open(server)
    server.kill()
    retry = page.get_by_role("button", name="Retry now")
    for least, most in [(7, 10), (11, 16), (17, 25)]:
        retry.click()
        wait_seconds(page, least, most)
    server.start()
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.locator("#updated")).to_contain_text("Updated just now")


def test_a_server_that_returns_is_found_without_help(server: Server, tab: Tab) -> None:
    """The first retry comes within six seconds, without the button."""
    tab.wait_longest()
    server.post([decision()])
    page = tab.open(server)
    server.kill()
    wait_seconds(page, 4, 6)
    server.start()
    expect(page.get_by_role("status")).to_have_text("Live", timeout=20_000)
    expect(page.locator("#total")).to_have_text("1")


def test_a_silent_server_is_stale(server: Server, tab: Tab) -> None:
    """An open connection without frames is not live until frames come again."""
    server.post([decision()])
    page = tab.open(server)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        expect(page.get_by_role("status")).to_have_text("Stale", timeout=15_000)
        expect(page.locator("#updated")).to_contain_text("the connection is open but silent")
    finally:
        server.process.send_signal(signal.SIGCONT)
    expect(page.get_by_role("status")).to_have_text("Live")


def test_the_source_of_numbers_is_shown(server: Server, tab: Tab) -> None:
    """The page has the source of the numbers and the state of each component."""
    server.post([decision()])
    page = tab.open(server)
    source = re.compile(r"^Updated just now, from (live totals|the cache|the database)$")
    expect(page.locator("#updated")).to_have_text(source)
    expect(page.locator("#health")).to_contain_text("1 open stream")
    expect(page.locator("#health")).to_contain_text("database ok")


def test_hostile_names_are_text(server: Server, tab: Tab) -> None:
    """Markup in a name is shown as text, and `__proto__` is an ordinary name."""
    strategy = """<img src=x onerror="document.body.id='owned'">"""
    provider = """"><script>document.body.id='owned'</script>"""
    server.post([decision(strategy, provider)] * 2 + [decision("__proto__", "42")])
    page = tab.open(server)
    assert [row[:2] for row in strategies(page)] == [[strategy, "2"], ["__proto__", "1"]]
    assert [row[:2] for row in bars(page, "Providers")] == [[provider, "2"], ["42", "1"]]
    assert page.locator("main img, main script").count() == 0
    assert page.locator("body").get_attribute("id") is None
    assert page.get_by_text(strategy).get_attribute("title") == strategy


def test_the_page_uses_only_its_server(server: Server, tab: Tab) -> None:
    """It asks no other host, its policy forbids others, and the browser reports no errors."""
    server.post([decision(confidence=0.5)])
    response = tab.page.goto(server.url)
    assert response is not None
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "{{" not in response.text()
    expect(tab.page.locator("#health")).to_contain_text("Routecast")
    expect(tab.page.locator("#notice")).to_be_hidden()
    assert tab.hosts == {urlsplit(server.url).netloc}
    assert tab.errors == []


def test_a_notice_is_shown(tmp_path: Path, tab: Tab) -> None:
    """It is at the top, and is text with any content."""
    with Server(tmp_path, env={"ROUTECAST_NOTICE": 'Trial of <b>"May"</b>'}) as server:
        page = tab.open(server)
        expect(page.locator("#notice")).to_have_text('Trial of <b>"May"</b>')
        expect(page.locator("#notice")).to_be_visible()


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "full"])
def test_a_narrow_screen_never_scrolls_sideways(server: Server, tab: Tab, empty: bool) -> None:
    """At 360 px everything fits, including the longest names and large numbers."""
    if not empty:
        many = [decision("s" * 63 + str(i), "p" * 63 + str(i), cost=99.99) for i in range(9)]
        server.post(many * 200)
    tab.page.set_viewport_size({"width": 360, "height": 780})
    page = tab.open(server)
    expect(page.locator("#welcome" if empty else "#total")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_dark_scheme_is_dark(server: Server, tab: Tab) -> None:
    """Background and text exchange their brightness with the preferred scheme."""
    page = tab.open(server)
    colours = """() => {
        const { backgroundColor, color } = getComputedStyle(document.documentElement);
        const sum = (rgb) => rgb.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);
        return [sum(backgroundColor), sum(color)];
    }"""
    page.emulate_media(color_scheme="light")
    paper, ink = page.evaluate(colours)
    assert paper > 600
    assert ink < 150
    page.emulate_media(color_scheme="dark")
    paper, ink = page.evaluate(colours)
    assert paper < 150
    assert ink > 600


def test_numbers_have_readable_forms(server: Server, tab: Tab) -> None:
    """Dashes, separators and digits are those of the other pages and programs."""
    expected = {
        "formatCount(null)": "–",
        "formatCount(18931300000)": "18,931,300,000",
        "formatConfidence(null)": "–",
        "formatShare(0.0001)": "<0.1%",
        "formatShare(0.99999)": ">99.9%",
        "formatShare(1)": "100.0%",
        "formatShare(NaN)": "–",
        "formatRate(0.001)": "<0.01",
        "formatRate(0)": "0.00",
        "formatRate(1234.5)": "1,235",
        "formatMoney(null)": "–",
        "formatMoney(0)": "$0.00",
        "formatMoney(0.0023)": "$0.0023",
        "formatMoney(0.000000001)": "$0.000000001",
        "formatMoney(0.9999)": "$1.00",
        "formatMoney(1234567.891)": "$1,234,567.89",
        "formatMoney(0.01, moneyDigits([0.01, 0.0023]))": "$0.0100",
        "formatLatency(999.7)": "1 s",
        "formatLatency(0.25)": "0.25 ms",
        "formatAge(119999)": "119 s",
        "formatAge(120000)": "2 min",
        "formatName('\\u202elive')": "\ufffdlive",
    }
    calls = ", ".join(expected)
    names = (
        "{ " + ", ".join(sorted({call.split("(")[0] for call in expected} | {"moneyDigits"})) + " }"
    )
    page = tab.open(server)
    written = page.evaluate(f"import('/dashboard/format.js').then(({names}) => [{calls}])")
    assert dict(zip(expected, written, strict=True)) == expected


def test_an_error_document_makes_numbers_stale(server: Server, tab: Tab) -> None:
    """The reason has the text of the error."""
    page = tab.open(server)
    status = page.evaluate(
        """async () => {
            const { describe } = await import("/dashboard/status.js");
            const stream = { name: "connected", protocol: "routecast.v1" };
            return describe({ stream, failure: "Failed to fetch metrics" }, 0);
        }"""
    )
    assert status["word"] == "Stale"
    assert status["reason"] == "the server answers “Failed to fetch metrics”"


RATES = """async () => {
    const { RateHistory } = await import("/dashboard/rates.js");
    const history = new RateHistory();
    const told = [];
    const tell = () => told.push(history.points.map(({ at, rate }) => [at, rate]));
    history.add(10, 1_000);
    history.add(20, 2_000);
    history.assume(20, 3_000);
    history.assume(20, 4_000);
    tell();
    history.add(26, 3_800);  // was on its way at 4,000
    tell();
    history.assume(26, 5_300);
    history.interrupt();
    history.add(50, 9_000);
    history.add(51, 10_000);
    tell();
    return told;
}"""


def test_the_line_is_0_on_a_quiet_stream_and_a_gap_on_a_lost_one(server: Server, tab: Tab) -> None:
    """Assumed zeros are replaced by later numbers of the same time."""
    told = tab.open(server).evaluate(RATES)
    start = [[1000, None], [2000, 10], [3000, 0]]
    assert told[0] == [*start, [4000, 0]]
    assert told[1] == [*start, [3800, 7.5]]
    assert told[2] == [*start, [3800, 7.5], [9000, None], [10000, 1]]


def test_a_limit_of_names_that_is_reached_is_shown(tmp_path: Path, tab: Tab) -> None:
    """It explains the name `other`."""
    with Server(tmp_path, env={"ROUTECAST_MAX_NAMES": "2"}) as server:
        server.post([decision("a"), decision("b", model="m")])
        page = tab.open(server)
        expect(page.locator("#limits")).to_have_text(
            "Limit of names reached: 2 strategies. New ones count as “other”."
        )
        expect(page.locator("#limits")).to_be_visible()
    assert not tab.errors


def test_no_limit_of_names_is_shown_while_there_is_room(server: Server, tab: Tab) -> None:
    """The line about limits is hidden."""
    server.post([decision("a")])
    page = tab.open(server)
    expect(page.locator("#total")).to_have_text("1")
    expect(page.locator("#health")).to_contain_text("database ok")
    expect(page.locator("#limits")).to_be_hidden()
