"""Sending decisions to a server over HTTP until they are acknowledged, each counted once."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import httpx2
import msgspec

from routecast.cli.terminal import command_name
from routecast.client.address import Server
from routecast.errors import RoutecastError
from routecast.protocol import Problem, Receipt, Rejection

# Longer than a restart with a full queue to commit; a server away for longer needs a person.
GIVE_UP_AFTER: Final = 120.0
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0
# An answer comes after a commit to disk; a minute without one is a server that hangs.
_TIMEOUT: Final = httpx2.Timeout(60.0, connect=5.0)

_encode = msgspec.json.Encoder(decimal_format="number").encode
_receipt = msgspec.json.Decoder(Receipt)
_problem = msgspec.json.Decoder(Problem)


class Refused(RoutecastError):
    """The server will not take what it was sent, or cannot be reached. Trying again is no help."""


@dataclass
class Tally:
    """What became of the decisions sent so far: accepted + duplicates + rejected = acknowledged."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    rejections: list[Rejection] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        """How many decisions the server has answered for."""
        return self.accepted + self.duplicates + self.rejected


class Sender:
    """One producer's connection to a server, as a context manager.

    `waiting(words, seconds)` is told before each pause between two tries.
    """

    def __init__(self, server: Server, waiting: Callable[[str, float], None]) -> None:
        self._url = server.http("/v1/decisions")
        self._server = server.url
        self._http = httpx2.Client(timeout=_TIMEOUT, trust_env=not server.loopback)
        self._waiting = waiting
        self._answered = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, decisions: Sequence[dict[str, Any]]) -> Tally:
        """Send one batch, trying again as long as that can help; return what became of it.

        Decisions carry ids, so a batch whose answer was lost is counted once. `rejections` index
        into the batch. Raises Refused when the server was never there, stays away for
        GIVE_UP_AFTER seconds or does not want the batch at all.
        """
        body = _encode(decisions)
        until = time.monotonic() + GIVE_UP_AFTER
        pause = _FIRST_PAUSE
        while True:
            answer, trouble = self._post(body)
            if answer is not None and not _worth_retrying(answer):
                break
            asked = _retry_after(answer)
            wait = max(asked, random.uniform(pause / 2, pause))
            if time.monotonic() + wait > until:
                waited = f"for {GIVE_UP_AFTER:.0f} s"
                raise Refused(f"{self._server} did not take a batch {waited}: {trouble}")
            self._waiting(trouble, wait)
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)
        if answer.status_code == 413 and len(decisions) > 1:
            return self._halves(decisions)
        return self._read(answer)

    def _post(self, body: bytes) -> tuple[httpx2.Response | None, str]:
        try:
            answer = self._http.post(
                self._url, content=body, headers={"Content-Type": "application/json"}
            )
        except httpx2.TransportError as error:
            if not self._answered:
                raise Refused(
                    f"cannot reach {self._server}: {_reason(error)}. "
                    f"Is the server running ({command_name()} serve), and is --server right?"
                ) from None
            return None, _reason(error)
        self._answered = True
        return answer, f"{answer.status_code}: {_detail(answer)}"

    def _halves(self, decisions: Sequence[dict[str, Any]]) -> Tally:
        middle = len(decisions) // 2
        first, second = self.send(decisions[:middle]), self.send(decisions[middle:])
        moved = [msgspec.structs.replace(r, index=r.index + middle) for r in second.rejections]
        return Tally(
            first.accepted + second.accepted,
            first.duplicates + second.duplicates,
            first.rejected + second.rejected,
            first.rejections + moved,
        )

    def _read(self, answer: httpx2.Response) -> Tally:
        try:
            if answer.status_code == 200:
                receipt = _receipt.decode(answer.content)
                return Tally(
                    receipt.accepted, receipt.duplicates, receipt.rejected_count, receipt.rejected
                )
            problem = _problem.decode(answer.content)
            if isinstance(problem.rejected_count, int) and isinstance(problem.rejected, list):
                return Tally(rejected=problem.rejected_count, rejections=problem.rejected)
            detail = problem.detail
        except msgspec.DecodeError:
            detail = "the answer is not one of Routecast's; is --server right?"
        if answer.status_code == 413:
            rejection = Rejection(0, f"the row alone is too large for a request: {detail}")
            return Tally(rejected=1, rejections=[rejection])
        raise Refused(f"{self._server} answered {answer.status_code}: {detail}")


def _worth_retrying(answer: httpx2.Response) -> bool:
    return answer.status_code in (429, 502, 503, 504)


def _retry_after(answer: httpx2.Response | None) -> float:
    """Return the seconds the server asked for; a date, as some proxies send, counts as nothing."""
    asked = answer.headers.get("Retry-After", "") if answer is not None else ""
    return min(float(asked), 60.0) if asked.isdecimal() else 0.0


def _detail(answer: httpx2.Response) -> str:
    try:
        return _problem.decode(answer.content).detail
    except msgspec.DecodeError:
        return answer.reason_phrase or "no word why"


def _reason(error: httpx2.TransportError) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx2.ConnectError):
        return "connection refused" if "refused" in str(error) else str(error) or "no connection"
    return "the connection broke"
