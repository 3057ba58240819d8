"""Send routing decisions to a Routecast server in batches; a retry never counts twice.

python send_decisions.py --count 1000            # made-up ones
python send_decisions.py < decisions.ndjson      # yours, one JSON object a line

It needs the standard library only. In a router of your own, keep one `Producer` and `put` each
decision into it: that takes microseconds and never waits for the network.
"""

import argparse
import contextlib
import http.client
import json
import queue
import random
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Decision = dict[str, Any]

BATCH = 500
LINGER = 0.2  # seconds that a decision may wait for others to go with it
LONGEST_DELAY = 30.0
PATH = "/v1/decisions"
SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
TIMEOUT = 60.0  # seconds without a byte
MOST = 1024 * 1024  # bytes of an answer; Routecast's have some KiB
TOO_LARGE = 413
PASSING = {408, 425, 426, 429}  # of Routecast's own refusals, those that pass by themselves


def decisions_url(address: str) -> str:
    """Return where to send to for a server's address, with or without the path of decisions.

    Raises ValueError when it is none.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        scheme = SCHEMES[parts.scheme]
        if not parts.hostname or parts.port == 0:
            raise ValueError
    except (KeyError, ValueError):
        problem = f"{address!r} is no address such as http://127.0.0.1:8000 or wss://host"
        raise ValueError(problem) from None
    path = parts.path.rstrip("/").removesuffix(PATH) + PATH
    return urllib.parse.urlunsplit((scheme, parts.netloc, path, "", ""))


class Producer:
    """Takes decisions in without waiting, and sends them from a thread of its own.

    Use as a context manager, or call `close`. When `room` decisions wait, `put` drops (and counts)
    what comes: a router must not stop because its statistics cannot be kept.
    """

    def __init__(self, url: str, room: int = 10_000, first_delay: float = 0.5) -> None:
        self.accepted = self.duplicates = self.rejected = self.refused = self.dropped = 0
        self.conflicts = 0  # their ids are those of other decisions: they are not counted
        self._url = decisions_url(url)
        self._first_delay = first_delay
        self._waiting: queue.Queue[Decision | None] = queue.Queue(room)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, decision: Decision, wait: bool = False) -> None:
        """Take a decision in. With `wait`, wait for room instead of dropping it."""
        # The id is made once, here: a batch whose answer was lost is sent again, and counts once.
        named = {"timestamp": time.time(), **decision}
        if named.get("id") in (None, ""):  # 0 is an id
            named["id"] = str(uuid.uuid4())
        try:
            self._waiting.put(named, block=wait)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Send what still waits; returns when all of it is answered for."""
        self._waiting.put(None)
        self._thread.join()

    def __enter__(self) -> "Producer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        for batch in self._batches():
            self._deliver(batch)

    def _batches(self) -> Iterator[list[Decision]]:
        """Yield what has come, as soon as a batch is full or its first decision has lingered."""
        while (first := self._waiting.get()) is not None:
            batch, until = [first], time.monotonic() + LINGER
            while len(batch) < BATCH:
                try:
                    more = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if more is None:
                    yield batch
                    return
                batch.append(more)
            yield batch

    def _deliver(self, batch: list[Decision]) -> None:
        """Send one batch until the server has answered for it."""
        body = json.dumps(batch).encode()
        delay = self._first_delay
        while True:
            answer = self._post(body)
            if answer.counts_for(len(batch)):
                self._count(answer.document)
                return
            if answer.status == TOO_LARGE and len(batch) > 1:
                middle = len(batch) // 2
                self._deliver(batch[:middle])
                self._deliver(batch[middle:])
                return
            if answer.final:
                self.refused += len(batch)  # it would be refused again
                print(f"{len(batch)} refused: {answer.words}", file=sys.stderr)
                return
            # Spread by ±20 %, so that many producers do not come back in the same instant.
            wait = max(delay * random.uniform(0.8, 1.2), answer.least)
            print(f"{answer.words}; trying again in {wait:.1f} s", file=sys.stderr)
            time.sleep(wait)
            delay = min(delay * 1.6, LONGEST_DELAY)

    def _count(self, receipt: dict[str, Any]) -> None:
        self.accepted += receipt.get("accepted", 0)
        self.duplicates += receipt.get("duplicates", 0)
        self.rejected += receipt["rejected_count"]
        self.conflicts += receipt.get("conflicts", 0)
        for bad in receipt["rejected"]:
            print(f"rejected: {bad.get('id')}: {bad['error']}", file=sys.stderr)
        for one in receipt.get("warnings", ()):  # the decision counts without this field
            what = f"{one.get('field')}: {one.get('message')}"
            print(f"decision {one.get('index')} of a batch: {what}", file=sys.stderr)

    def _post(self, body: bytes) -> "Answer":
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        try:
            with OPENER.open(request, timeout=TIMEOUT) as response:
                return Answer.read(response)
        except urllib.error.HTTPError as error:
            with contextlib.suppress(OSError, http.client.HTTPException), error:
                return Answer.read(error)
            return Answer(0, "the answer was cut off")
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            return Answer(0, f"no answer ({reason or type(error).__name__})")


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves redirects alone: urllib would make a GET of the POST, and lose the decisions."""

    def redirect_request(self, *_: object) -> None:
        return None


OPENER = urllib.request.build_opener(NoRedirects)


@dataclass
class Answer:
    """What came of one request; `status` is 0 where there was no whole answer."""

    status: int
    words: str
    least: float = 0.0  # seconds that it asks to wait
    document: dict[str, Any] = field(default_factory=dict)
    problem: bool = False  # Routecast's own refusal

    @classmethod
    def read(cls, response: Any) -> "Answer":
        """Read a response, of which no more than MOST bytes count."""
        try:
            document = json.loads(response.read(MOST))
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            document = {}
        status, kind = response.status, response.headers.get_content_type()
        problem = kind == "application/problem+json" and document.get("status") == status
        asked = response.headers.get("Retry-After", "")
        location = response.headers.get("Location", "")
        if problem:
            words = f"answered {status}: {document.get('detail')}"
        elif location:
            place = urllib.parse.urljoin(response.url, location).partition("?")[0]
            words = f"answered {status} to {place}: is that the address to use?"
        else:
            words = f"answered {status} with {kind}, not as Routecast does"
        return cls(
            status, words, min(float(asked), 300.0) if asked.isdecimal() else 0.0, document, problem
        )

    def counts_for(self, size: int) -> bool:
        """Whether it is Routecast's receipt for a batch: 422 is one, in which all were rejected."""
        receipt = {"accepted": 0, "duplicates": 0, "conflicts": 0, **self.document}
        names = ("accepted", "duplicates", "conflicts", "rejected_count")
        counts = [receipt.get(name) for name in names]
        rejected = receipt.get("rejected")
        if self.status not in (200, 422) or not isinstance(rejected, list):
            return False
        named = all(isinstance(bad, dict) and "error" in bad for bad in rejected)
        return named and all(isinstance(count, int) for count in counts) and sum(counts) == size

    @property
    def final(self) -> bool:
        """Whether trying again is no help.

        Only Routecast itself can say so: a proxy in between may answer otherwise soon.
        """
        if self.status == TOO_LARGE:
            return True
        return self.problem and self.status < 500 and self.status not in PASSING


def read(lines: Iterable[str]) -> Iterator[Decision]:
    """Yield the decisions of a file. Raises ValueError where a line is none."""
    for number, line in enumerate(lines, 1):
        try:
            decision = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        if not isinstance(decision, dict):
            raise ValueError(f"line {number} is no object")
        yield decision


def made_up(count: int) -> Iterator[Decision]:
    """Yield decisions as a router might make them."""
    for _ in range(count):
        confidence = round(random.betavariate(6, 2), 3)
        yield {
            "strategy": random.choice(["hybrid", "complexity"]),
            "provider": random.choice(["gemini", "claude", "cerebras"]),
            "confidence": confidence,
            "cost": round(0.004 * confidence, 6),
            "latency_ms": round(random.lognormvariate(6, 0.5)),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--count", type=int, help="send so many made-up decisions")
    parser.add_argument("--first-delay", type=float, default=0.5, help="seconds before a new try")
    options = parser.parse_args()
    try:
        decisions_url(options.url)
    except ValueError as error:
        parser.error(str(error))
    decisions = read(sys.stdin) if options.count is None else made_up(options.count)
    unread = False
    with Producer(options.url, first_delay=options.first_delay) as producer:
        try:
            for decision in decisions:
                producer.put(decision, wait=True)
        except ValueError as error:
            print(f"{error}; what came before it is sent", file=sys.stderr)
            unread = True
    print(
        f"accepted {producer.accepted}, duplicates {producer.duplicates}, "
        f"rejected {producer.rejected}, refused {producer.refused}, "
        f"conflicts {producer.conflicts}"
    )
    failed = producer.rejected or producer.refused or producer.conflicts
    return 1 if unread or failed else 0


if __name__ == "__main__":
    sys.exit(main())
