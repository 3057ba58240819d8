"""Send routing decisions to a Routecast server: in batches, each counted once whatever happens.

python send_decisions.py --count 1000            # made-up ones
python send_decisions.py < decisions.ndjson      # yours, one JSON object a line

It needs the standard library only. In a router of your own, keep one `Producer` and `put` each
decision into it: that takes microseconds and never waits for the network.
"""

import argparse
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
from typing import Any

Decision = dict[str, Any]

BATCH = 500
LINGER = 0.2  # seconds that a decision may wait for others to go with it
LONGEST_DELAY = 30.0
RETRY = {429, 502, 503, 504}
PATH = "/v1/decisions"
SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
READ = {200, 422}  # the server has looked at each decision


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
        named = {"id": str(uuid.uuid4()), "timestamp": time.time(), **decision}
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
            self._deliver(json.dumps(batch).encode(), len(batch))

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

    def _deliver(self, body: bytes, size: int) -> None:
        """Send one batch until the server has answered for it."""
        delay = self._first_delay
        while True:
            status, answer, least = self._post(body)
            if status in READ:
                self.accepted += answer["accepted"]
                self.duplicates += answer["duplicates"]
                self.rejected += answer["rejected_count"]
                for bad in answer["rejected"]:
                    print(f"rejected: {bad.get('id')}: {bad['error']}", file=sys.stderr)
                self.conflicts += answer.get("conflicts", 0)
                for one in answer.get("warnings", ()):  # the decision counts without this field
                    what = f"{one['field']}: {one['message']}"
                    print(f"decision {one['index']} of a batch: {what}", file=sys.stderr)
                return
            why = answer.get("detail", "no word why")
            if status and status not in RETRY:
                self.refused += size  # it would be refused again
                print(f"{size} refused with {status}: {why}", file=sys.stderr)
                return
            # Spread by ±20 %, so that many producers do not come back in the same instant.
            wait = max(delay * random.uniform(0.8, 1.2), least)
            print(f"{why}; trying again in {wait:.1f} s", file=sys.stderr)
            time.sleep(wait)
            delay = min(delay * 1.6, LONGEST_DELAY)

    def _post(self, body: bytes) -> tuple[int, dict[str, Any], float]:
        """Return the status (0 for no answer), the answer, and the seconds asked to wait."""
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer), 0.0
        except urllib.error.HTTPError as error:
            asked = error.headers.get("Retry-After", "")
            return error.code, problem(error), float(asked) if asked.isdecimal() else 0.0
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            return 0, {"detail": f"no answer ({reason or type(error).__name__})"}, 0.0


def problem(error: urllib.error.HTTPError) -> dict[str, Any]:
    """Return the body of an error; Routecast's are JSON, those of a proxy before it may not be."""
    try:
        found = json.load(error)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"detail": error.reason}


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
    decisions: Iterable[Decision] = (
        map(json.loads, sys.stdin) if options.count is None else made_up(options.count)
    )
    with Producer(options.url, first_delay=options.first_delay) as producer:
        for decision in decisions:
            producer.put(decision, wait=True)
    print(
        f"accepted {producer.accepted}, duplicates {producer.duplicates}, "
        f"rejected {producer.rejected}, refused {producer.refused}, "
        f"conflicts {producer.conflicts}"
    )
    return 1 if producer.rejected or producer.refused or producer.conflicts else 0


if __name__ == "__main__":
    sys.exit(main())
