"""`BatchSender`: sends batches to a server until they are acknowledged; decisions count once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec
from msgspec.structs import replace

from routecast.cli.terminal import command_name
from routecast.client.http_sender import HttpSender, NotOurs, Unreachable
from routecast.client.in_flight import InFlightBatch
from routecast.client.url import Server
from routecast.errors import BadParameter, Refused, RoutecastError
from routecast.protocol import FieldWarning, Receipt, Rejection
from routecast.retry import TOO_LARGE, Backoff

# Longer than a restart with a full queue; if a server is away for longer, a person must act.
GIVE_UP_AFTER: Final = 120.0
# Shorter if Routecast itself has not answered yet: the address may be wrong.
GIVE_UP_AT_FIRST: Final = 30.0
_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 5.0
# An answer comes after a commit to disk. A server that takes a minute does not work.
_TIMEOUT: Final = 60.0

_encode = msgspec.json.Encoder(decimal_format="number").encode


class GivenUp(RoutecastError):
    """The server refuses a batch, or cannot be reached. A retry does not help."""


@dataclass
class SendResult:
    """The outcome of the decisions sent so far.

    `conflicts` have the ids of other decisions. `warnings` are of fields that were left out or
    changed.
    """

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    rejections: list[Rejection] = field(default_factory=list)
    conflicts: int = 0
    warnings: list[FieldWarning] = field(default_factory=list)
    warnings_count: int = 0

    @property
    def acknowledged(self) -> int:
        """The number of decisions that the server has answered."""
        return self.accepted + self.duplicates + self.conflicts + self.rejected

    def add(self, receipt: Receipt) -> None:
        """Count the outcome of the next decisions; indexes become those of the whole batch."""
        first = self.acknowledged
        self.rejections += [replace(one, index=one.index + first) for one in receipt.rejected]
        self.warnings += [replace(one, index=one.index + first) for one in receipt.warnings]
        self.accepted += receipt.accepted
        self.duplicates += receipt.duplicates
        self.rejected += receipt.rejected_count
        self.conflicts += receipt.conflicts
        self.warnings_count += receipt.warnings_count

    def reject(self, why: str) -> None:
        """Count the next decision as rejected."""
        self.rejections.append(Rejection(self.acknowledged, why))
        self.rejected += 1


class BatchSender:
    """One producer's connection to a server, as a context manager.

    `waiting(words, seconds)` is called before each pause between two attempts. `token` is a token
    or an API key. Raises BadParameter if the environment names a proxy that cannot be used.
    """

    def __init__(
        self,
        server: Server,
        waiting: Callable[[str, float], None],
        token: str | None = None,
    ) -> None:
        self._http = HttpSender(server, token, timeout=_TIMEOUT, proxy=_proxy(server))
        self._waiting = waiting
        self._answered = False  # by Routecast
        self._refused_since = 0.0  # on the monotonic clock: when the last batch was accepted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, decisions: Sequence[dict[str, Any]]) -> SendResult:
        """Send one batch, with retries as long as they can help; return the outcome.

        Decisions carry ids, so a batch whose answer was lost is counted once. The indexes of
        `rejections` are those of the batch. Raises GivenUp if no server was ever reached, if it
        does not accept the batch within GIVE_UP_AFTER seconds (GIVE_UP_AT_FIRST, if Routecast never
        answered), or if it refuses the batch.
        """
        result = SendResult()
        backoff = Backoff(_FIRST_DELAY, _LONGEST_DELAY)
        self._refused_since = time.monotonic()
        for _, answer in InFlightBatch(decisions).run(self._post, self._wait, backoff):
            if isinstance(answer, Receipt):
                result.add(answer)
            elif isinstance(answer, Refused) and answer.code == TOO_LARGE:
                result.reject(f"the row alone is too large for a request: {answer}")
            else:
                raise GivenUp(str(answer))
        return result

    def _post(self, decisions: Sequence[dict[str, Any]]) -> Receipt:
        receipt = self._http.send(_encode(decisions), len(decisions))
        self._answered = True
        self._refused_since = time.monotonic()
        return receipt

    def _wait(self, error: RoutecastError, least: float, delay: float) -> bool:
        """Wait before the next attempt. Raises GivenUp if it has taken too long already."""
        patience = self._patience(error)
        if time.monotonic() + least + delay > self._refused_since + patience:
            raise GivenUp(f"{error}; no batch was accepted for {patience:.0f} s") from None
        self._waiting(str(error), least + delay)
        time.sleep(least + delay)
        return True

    def _patience(self, error: RoutecastError) -> float:
        """Return the seconds for which to retry. Raises GivenUp if no server was ever reached."""
        if not isinstance(error, Unreachable | NotOurs):
            self._answered = True
        if self._answered:
            return GIVE_UP_AFTER
        if isinstance(error, Unreachable):
            raise GivenUp(
                f"cannot reach {error}. "
                f"Is the server running ({command_name()} serve), and is --server right?"
            ) from None
        return GIVE_UP_AT_FIRST


def _proxy(server: Server) -> str | None:
    """Return the HTTP proxy that the environment names for a server; None for this machine.

    Raises BadParameter.
    """
    parts = urlsplit(server.url)
    if server.loopback or proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found:
        return None
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    try:
        usable = proxy.scheme == "http" and proxy.hostname and proxy.port != 0
    except ValueError:  # its port is not a number
        usable = False
    if not usable:
        name = f"{parts.scheme.upper()}_PROXY"
        raise BadParameter(name, "only an HTTP proxy can be used, as in http://proxy:3128")
    return proxy.geturl()
