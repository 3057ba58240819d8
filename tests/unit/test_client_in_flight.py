"""One batch on its way: when it is sent again or halved, and what is left over."""

from collections.abc import Callable, Sequence

import pytest

from routecast.client.in_flight import InFlightBatch
from routecast.errors import Refused, RoutecastError, Unauthenticated, Unavailable
from routecast.protocol import Position, Receipt
from routecast.retry import Backoff, no_jitter

Answer = Receipt | RoutecastError


class Server:
    """Answers each part of a batch with what `answer` says, and remembers the parts."""

    def __init__(self, answer: Callable[[str], RoutecastError | None]) -> None:
        self.parts: list[str] = []
        self.waits: list[tuple[float, float]] = []
        self.patience = 100
        self._answer = answer

    def send(self, part: Sequence[str]) -> Receipt:
        """Take a part, or raise."""
        self.parts.append("".join(part))
        if (error := self._answer(self.parts[-1])) is not None:
            raise error
        return Receipt(len(part), 0, [], 0, Position("e", 1))

    def wait(self, _: RoutecastError, least: float, delay: float) -> bool:
        """Remember how long it was to be waited."""
        self.waits.append((least, delay))
        return len(self.waits) < self.patience

    def deliver(self, batch: InFlightBatch[str]) -> dict[str, Answer]:
        """Send a batch; return the answer for each part."""
        backoff = Backoff(first=1, longest=4, draw=no_jitter)
        return {"".join(part): answer for part, answer in batch.run(self.send, self.wait, backoff)}


def test_a_batch_that_is_taken_is_answered_for() -> None:
    """As a whole."""
    server, batch = Server(lambda _: None), InFlightBatch("abc")
    found = server.deliver(batch)
    assert list(found) == server.parts == ["abc"]
    assert isinstance(found["abc"], Receipt)
    assert (batch.left, batch.next_part) == ([], ())


def test_a_part_is_left_until_its_answer_was_dealt_with() -> None:
    """Whoever looks meanwhile finds it."""
    batch = InFlightBatch("abc")
    server = Server(lambda part: Refused(413, "large") if part == "abc" else None)
    left = [
        (list(part), list(batch.left)) for part, _ in batch.run(server.send, server.wait, Backoff())
    ]
    assert left == [(["a"], ["a", "b", "c"]), (["b", "c"], ["b", "c"])]


@pytest.mark.parametrize("new_token", [False, True])
def test_it_is_sent_again_after_what_may_pass(new_token: bool) -> None:
    """With longer and longer delays, from the first one again after a success."""
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


def test_what_is_left_is_sent_later() -> None:
    """When there is no time any more, it stops; and goes on where it was."""
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


def test_what_is_too_large_is_halved_down_to_one() -> None:
    """The one that is too large by itself is refused."""
    server = Server(lambda part: Refused(413, "large") if "x" in part or len(part) > 2 else None)
    found = server.deliver(InFlightBatch("abcdefxh"))
    assert {part: type(answer) for part, answer in found.items()} == {
        "ab": Receipt,
        "cd": Receipt,
        "ef": Receipt,
        "x": Refused,
        "h": Receipt,
    }


def test_what_is_unreadable_is_halved_so_often_and_no_more() -> None:
    """One decision may be why; or the server reads nothing at all."""
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
def test_what_is_refused_is_reported_once(error: RoutecastError) -> None:
    """Neither sent again nor halved."""
    server = Server(lambda _: error)
    assert server.deliver(InFlightBatch("ab")) == {"ab": error}
    assert (server.parts, server.waits) == (["ab"], [])


def test_what_is_given_up_meanwhile_is_not_sent() -> None:
    """It is looked at before each try."""
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
