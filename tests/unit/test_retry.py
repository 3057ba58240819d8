"""The retry policy: the protocol page, the table for all clients, and `retry.py` agree."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.edge.http import http_protocol
from routecast.edge.http.http_protocol import Reason
from routecast.edge.problem import STATUS_OF
from routecast.protocol import CloseCode, close_reason
from routecast.retry import (
    Backoff,
    Outcome,
    Verdict,
    after_batch,
    after_close,
    after_upgrade,
    close_verdict,
    no_jitter,
    retry_after,
    without_reconnect_after,
)
from tests.support.wire import ANSWERS

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
CODES = {row["code"]: row["outcome"] for row in ANSWERS["close_codes"]}
# What the last column of a table on the page begins with.
OUTCOMES = {
    "no": "final",
    "as you like": "retry",
    "yes": "retry",
    "after `Retry-After`": "retry",
    "with another token": "token",
    "in smaller batches": "halve",
}


def table_of(first_column: str, last_column: str) -> dict[str, str]:
    """Return the outcome of each row of the page's table with these columns, by first column."""
    head = rf"^\| {first_column} \|.*\| {re.escape(last_column)} \|\n\|[-|]+\|\n"
    found = re.search(rf"{head}((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found, first_column
    lines = found[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: outcome_in(row[-1]) for row in rows}


def outcome_in(words: str) -> str:
    """Return the outcome that the text of a cell means."""
    (found,) = {outcome for start, outcome in OUTCOMES.items() if words.startswith(start)}
    return found


def numbered(table: dict[str, str]) -> dict[int, str]:
    """Return the rows that have codes, each code with its outcome."""
    return {
        int(number): outcome
        for numbers, outcome in table.items()
        if numbers[0].isdecimal()
        for number in numbers.split(", ")
    }


def test_the_page_lists_the_close_codes_of_the_table() -> None:
    """They have the same codes and outcomes, and the server's list has the same codes."""
    page = table_of("close code", "reconnect?")
    assert numbered(page) == CODES
    assert page["any other"] == "retry"
    assert set(CODES) == set(CloseCode)


@pytest.mark.parametrize(
    ("reader", "status", "answer"),
    [("producer", "status", "send again?"), ("stream", "refused upgrade", "reconnect?")],
)
def test_the_page_lists_the_statuses_of_the_table(reader: str, status: str, answer: str) -> None:
    """Statuses without a row of their own fall under `another`; 422 answers for all decisions."""
    page = table_of(status, answer)
    below, above = page["another below 500"], page["another from 500 on"]
    own = {
        row["status"]: "final" if row[reader] == "done" else row[reader]
        for row in ANSWERS["http"]
        if row["by"] == "routecast" and row["status"] >= 400 and row[reader] is not None
    }
    assert numbered(page).keys() <= own.keys()
    assert {n: numbered(page).get(n, below if n < 500 else above) for n in own} == own


def test_the_table_has_every_status_that_the_server_refuses_with() -> None:
    """These are the statuses of its errors, and of its HTTP protocol."""
    reasons = [found for found in vars(http_protocol).values() if isinstance(found, Reason)]
    sent = {*STATUS_OF.values(), *(reason.status for reason in reasons)}
    assert sent <= {row["status"] for row in ANSWERS["http"] if row["by"] == "routecast"}


def test_every_close_code_has_its_outcome() -> None:
    """A code that is not listed is temporary."""
    for code in range(1000, 5000):
        assert after_close(code) == CODES.get(code, "retry"), code


def test_every_status_has_its_outcome() -> None:
    """Only answers of Routecast itself are final."""
    for row in ANSWERS["http"]:
        own = row["by"] == "routecast"
        if row["producer"] not in (None, "done"):
            assert after_batch(row["status"], own=own) == row["producer"], row
        if row["stream"] is not None:
            assert after_upgrade(row["status"], own=own) == row["stream"], row


@pytest.mark.parametrize("row", ANSWERS["delays"], ids=str)
def test_the_delay_after_a_close_is_that_of_the_table(row: dict[str, object]) -> None:
    """A goodbye, a reason and a code decide it."""
    code, reason, goodbye_ms = row["code"], row["reason"], row["goodbye_ms"]
    found = close_verdict(code, reason, goodbye_ms)  # type: ignore[arg-type]
    assert (found.seconds, found.exact) == (row["seconds"], row["exact"])
    assert found.outcome == after_close(code)  # type: ignore[arg-type]


def test_the_delay_in_a_close_reason_is_read() -> None:
    """The text for people does not have it."""
    assert close_verdict(CloseCode.RESTART, close_reason(1830)).seconds == 1.83
    assert without_reconnect_after(close_reason(1830)) == ""
    assert without_reconnect_after("because") == "because"


@pytest.mark.parametrize("row", ANSWERS["retry_after"], ids=str)
def test_retry_after_is_read_as_the_table_says(row: dict[str, object]) -> None:
    """Seconds are read, up to the limit; any other text counts as 0."""
    assert retry_after(str(row["text"])) == row["seconds"]


# -- delays -------------------------------------------------------------------------------------


def test_the_limit_doubles_up_to_the_longest() -> None:
    """It starts again after a success."""
    backoff = Backoff(first=1, longest=5, draw=no_jitter)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next() == 1


@given(st.integers(0, 5000), st.floats(0, 100))
def test_a_delay_lies_between_the_least_and_the_limit(failures: int, least: float) -> None:
    """It is added to the delay that the server asked for, after any number of failures."""
    delay = Backoff(first=1, longest=30, failures=failures).next(least)
    assert least <= delay <= least + 30


def test_delays_are_spread() -> None:
    """Clients that lost a server together reconnect at different times in the whole range."""
    delays = [Backoff(first=1).next() for _ in range(1000)]
    assert all(sum(low <= delay < low + 0.1 for delay in delays) > 30 for low in (0, 0.4, 0.9))


def test_the_first_attempt_with_a_new_token_is_made_at_once() -> None:
    """A second one waits, until a success; a refused token is no failure of the server."""
    backoff = Backoff(first=1, draw=no_jitter)
    refused = Verdict(Outcome.NEW_TOKEN)
    assert [backoff.after(refused) for _ in range(3)] == [0, 1, 2]
    backoff.reset()
    assert backoff.after(Verdict(Outcome.NEW_TOKEN, 7)) == 7
    assert backoff.after(Verdict(Outcome.RETRY)) == 1


def test_an_exact_delay_is_used_as_it_is() -> None:
    """The server spread its clients already; it counts as no failure."""
    backoff = Backoff(first=1, draw=no_jitter)
    assert backoff.after(Verdict(Outcome.RETRY, 1.83, exact=True)) == 1.83
    assert backoff.after(Verdict(Outcome.RETRY, 60)) == 61
    assert backoff.after(Verdict(Outcome.RETRY)) == 2
