"""Sending decisions to a server over HTTP until they are acknowledged, each counted once."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from routecast.cli.terminal import command_name
from routecast.client.http_sender import HttpSender, NotOurs, Unreachable
from routecast.client.url import Server
from routecast.errors import BadParameter, RoutecastError, Unavailable
from routecast.errors import Refused as RefusedBatch
from routecast.protocol import FieldWarning, Rejection

# Longer than a restart with a full queue to commit; a server away for longer needs a person.
GIVE_UP_AFTER: Final = 120.0
# Where Routecast itself has not answered yet, the address may be wrong: a person wants to know.
GIVE_UP_AT_FIRST: Final = 30.0
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0
# An answer comes after a commit to disk; a minute without one is a server that hangs.
_TIMEOUT: Final = 60.0

_encode = msgspec.json.Encoder(decimal_format="number").encode


class GivenUp(RoutecastError):
    """The server will not take what it was sent, or cannot be reached. Trying again is no help."""


@dataclass
class SendResult:
    """What became of the decisions sent so far.

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
        """How many decisions the server has answered for."""
        return self.accepted + self.duplicates + self.conflicts + self.rejected


class BatchSender:
    """One producer's connection to a server, as a context manager.

    `waiting(words, seconds)` is told before each pause between two tries. Raises BadParameter where
    the environment names a proxy that cannot be used.
    """

    def __init__(self, server: Server, waiting: Callable[[str, float], None]) -> None:
        self._server = server
        self._delivery = HttpSender(server, timeout=_TIMEOUT, proxy=_proxy(server))
        self._waiting = waiting
        self._answered = False  # by Routecast

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._delivery.close()

    def send(self, decisions: Sequence[dict[str, Any]]) -> SendResult:
        """Send one batch, trying again as long as that can help; return what became of it.

        Decisions carry ids, so a batch whose answer was lost is counted once. `rejections` index
        into the batch. Raises Refused when the server was never there, stays away for
        GIVE_UP_AFTER seconds (GIVE_UP_AT_FIRST, if Routecast never answered) or does not want the
        batch at all.
        """
        body = _encode(decisions)
        began = time.monotonic()
        pause = _FIRST_PAUSE
        while True:
            try:
                receipt = self._delivery.send(body, len(decisions))
                self._answered = True
            except Unavailable as error:
                patience = self._patience(error)
                wait = max(error.retry_after, random.uniform(pause / 2, pause))
                if time.monotonic() + wait > began + patience:
                    raise GivenUp(f"{error}; no batch was taken for {patience:.0f} s") from None
                self._waiting(str(error), wait)
                time.sleep(wait)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except RefusedBatch as error:
                if error.code != 413:
                    raise GivenUp(str(error)) from None
                if len(decisions) > 1:
                    return self._halves(decisions)
                words = f"the row alone is too large for a request: {error}"
                return SendResult(rejected=1, rejections=[Rejection(0, words)])
            else:
                return SendResult(
                    receipt.accepted,
                    receipt.duplicates,
                    receipt.rejected_count,
                    receipt.rejected,
                    receipt.conflicts,
                    receipt.warnings,
                    receipt.warnings_count,
                )

    def _patience(self, error: Unavailable) -> float:
        """Return for how many seconds to go on trying. Raises Refused where nobody is there."""
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

    def _halves(self, decisions: Sequence[dict[str, Any]]) -> SendResult:
        middle = len(decisions) // 2
        first, second = self.send(decisions[:middle]), self.send(decisions[middle:])
        rejections = [
            msgspec.structs.replace(one, index=one.index + middle) for one in second.rejections
        ]
        warnings = [
            msgspec.structs.replace(one, index=one.index + middle) for one in second.warnings
        ]
        return SendResult(
            first.accepted + second.accepted,
            first.duplicates + second.duplicates,
            first.rejected + second.rejected,
            first.rejections + rejections,
            first.conflicts + second.conflicts,
            first.warnings + warnings,
            first.warnings_count + second.warnings_count,
        )


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
    except ValueError:  # its port is no number
        usable = False
    if not usable:
        name = f"{parts.scheme.upper()}_PROXY"
        raise BadParameter(name, "only an HTTP proxy can be used, as in http://proxy:3128")
    return proxy.geturl()
