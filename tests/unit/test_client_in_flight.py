"""Tests of `InFlightBatch`: when a batch is sent again or halved, and what is left over."""

from collections.abc import Callable, Sequence

import pytest

from routecast.client.in_flight import InFlightBatch
from routecast.errors import Refused, RoutecastError, Unauthenticated, Unavailable
from routecast.protocol import Position, Receipt
from routecast.retry import Backoff, no_jitter

Answer = Receipt | RoutecastError


class Server:
    """Answers each part of a batch with the result of `answer`, and remembers the parts."""

    def __init__(self, answer: Callable[[str], RoutecastError | None]) -> None:
        self.parts: list[str] = []
        self.waits: list[tuple[float, float]] = []
        self.patience = 100
        self._answer = answer

    def send(self, part: Sequence[str]) -> Receipt:
        """Accept a part, or raise its error."""
        self.parts.append("".join(part))
        if (error := self._answer(self.parts[-1])) is not None:
            raise error
        return Receipt(len(part), 0, [], 0, Position("e", 1))

    def wait(self, _: RoutecastError, least: float, delay: float) -> bool:
        """Record the delays that a retry asked for."""
        self.waits.append((least, delay))
        return len(self.waits) < self.patience

    def deliver(self, batch: InFlightBatch[str]) -> dict[str, Answer]:
        """Send a batch; return the answer for each part."""
        backoff = Backoff(first=1, longest=4, draw=no_jitter)
        return {"".join(part): answer for part, answer in batch.run(self.send, self.wait, backoff)}


def test_an_accepted_batch_has_one_receipt() -> None:
    """The batch is sent whole, and nothing is left."""
    server, batch = Server(lambda _: None), InFlightBatch("abc")
    found = server.deliver(batch)
    assert list(found) == server.parts == ["abc"]
    assert isinstance(found["abc"], Receipt)
    assert (batch.left, batch.next_part) == ([], ())


def test_a_part_is_left_until_its_answer_was_handled() -> None:
    """`left` has the part while the caller handles its answer."""
    batch = InFlightBatch("abc")
    server = Server(lambda part: Refused(413, "large") if part == "abc" else None)
    left = [
        (list(part), list(batch.left)) for part, _ in batch.run(server.send, server.wait, Backoff())
    ]
    assert left == [(["a"], ["a", "b", "c"]), (["b", "c"], ["b", "c"])]


@pytest.mark.parametrize("new_token", [False, True])
def test_it_is_sent_again_after_a_temporary_error(new_token: bool) -> None:
    """Delays grow, and start again from the first one after a success."""
    errors: list[RoutecastError | None] = [
        Unavailable("full", retry_after=7),
        Unauthenticated(401, "expired") if new_token else Unavailable("full", retry_after=0),
        Refused(413, "large"),
        None,
        Unavailable("full", retry_after=0),
        None,
    ]
    server = Server(lambda _: errors.pop(0))
    found = server.deliver(InFlightBatch("ab", new_token=new_token))
    assert server.parts == ["ab", "ab", "ab", "a", "b", "b"]
    assert server.waits == [(7, 1), (0, 2), (0, 1)]
    assert list(found) == ["a", "b"]


def test_an_interrupted_batch_continues_later() -> None:
    """When `wait` says that time is up, it stops, and a later run sends the rest."""
    up: list[str] = []

    def answer(part: str) -> RoutecastError | None:
        if part == "abc":
            return Refused(413, "large")
        return None if part == "a" or up else Unavailable("full")

    server, batch = Server(answer), InFlightBatch("abc")
    server.patience = 1
    assert list(server.deliver(batch)) == ["a"]
    assert batch.left == ["b", "c"]
    up.append("now")
    assert list(server.deliver(batch)) == ["bc"]
    assert batch.left == []


def test_a_batch_that_is_too_large_is_halved() -> None:
    """A single decision that is too large is refused, and the others are accepted."""
    server = Server(lambda part: Refused(413, "large") if "x" in part or len(part) > 2 else None)
    found = server.deliver(InFlightBatch("abcdefxh"))
    assert {part: type(answer) for part, answer in found.items()} == {
        "ab": Receipt,
        "cd": Receipt,
        "ef": Receipt,
        "x": Refused,
        "h": Receipt,
    }


def test_an_unreadable_batch_is_halved_a_limited_number_of_times() -> None:
    """One decision may be the cause, or the server refuses every body."""
    bad = Server(lambda part: Refused(400, "not JSON") if "x" in part else None)
    found = bad.deliver(InFlightBatch("abxd", most_split=2))
    assert [(part, type(answer)) for part, answer in found.items()] == [
        ("ab", Receipt),
        ("x", Refused),
        ("d", Receipt),
    ]
    deaf = Server(lambda _: Refused(400, "not JSON"))
    assert list(deaf.deliver(InFlightBatch("abcdefgh", most_split=2))) == ["ab", "cd", "efgh"]
    assert list(deaf.deliver(InFlightBatch("abcdefgh"))) == ["abcdefgh"]


@pytest.mark.parametrize(
    "error", [Refused(415, "gzip only"), Unauthenticated(401, "no token"), RoutecastError("odd")]
)
def test_a_refused_batch_has_one_error(error: RoutecastError) -> None:
    """It is neither sent again nor halved."""
    server = Server(lambda _: error)
    assert server.deliver(InFlightBatch("ab")) == {"ab": error}
    assert (server.parts, server.waits) == (["ab"], [])


def test_decisions_that_are_given_up_are_not_sent() -> None:
    """`keep` is asked before each attempt."""
    gone: set[str] = set()

    def answer(part: str) -> RoutecastError | None:
        gone.add(part[0])
        return None if part in ("cd", "d") else Unavailable("full")

    server = Server(answer)
    batch = InFlightBatch(list("abcd"))
    backoff = Backoff()
    keep = lambda part: [one for one in part if one not in gone]  # noqa: E731
    found = [list(part) for part, _ in batch.run(server.send, server.wait, backoff, keep)]
    assert server.parts == ["abcd", "bcd", "cd"]
    assert found == [["c", "d"]]
    gone |= set("ef")
    assert list(InFlightBatch(list("ef")).run(server.send, server.wait, backoff, keep)) == []
