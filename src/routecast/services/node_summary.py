"""`NodeReporter`: a summary of what this node does, for the operator's view and for other nodes."""

import math
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from routecast.core.client_limits import LimitMode
from routecast.errors import Unavailable
from routecast.instruments import Instruments, total_of
from routecast.ports import Clock, Cluster
from routecast.protocol import NodeSummaries, NodeSummary, Position, rfc3339

_STATM: Final = Path("/proc/self/statm")


class _Name(msgspec.Struct):
    """The name of a node, in its summary."""

    node: str


_decode_name: Final = msgspec.json.Decoder(_Name).decode
_decode: Final = msgspec.json.Decoder(NodeSummary).decode


class NodeReporter:
    """Summarises this node under a name that it chooses, and reads the summaries of others."""

    def __init__(
        self,
        cluster: Cluster,
        instruments: Instruments,
        clock: Clock,
        position: Callable[[], Position | None],
        *,
        version: str,
        role: str,
    ) -> None:
        self.name = secrets.token_hex(4)
        self._cluster = cluster
        self._instruments = instruments
        self._clock = clock
        self._position = position
        self._version = version
        self._role = role
        self._started = rfc3339(clock.now())

    def summary(self) -> NodeSummary:
        """Return the summary of this node now."""
        numbers = self._instruments
        lag = total_of(numbers.bus_lag_seconds)
        return NodeSummary(
            node=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=self._version,
            role=self._role,
            started=self._started,
            at=rfc3339(self._clock.now()),
            connections=round(total_of(numbers.connections)),
            closed=round(total_of(numbers.closed)),
            messages=round(total_of(numbers.frames_sent)),
            bytes=round(total_of(numbers.bytes_sent)),
            conflated=round(total_of(numbers.conflated)),
            position=self._position(),
            queue=round(total_of(numbers.queue_depth)),
            commits=round(total_of(numbers.commit_seconds, "_count")),
            commit_seconds=total_of(numbers.commit_seconds, "_sum"),
            bus_lag_seconds=None if math.isnan(lag) else lag,
            cpu_seconds=time.process_time(),
            memory_bytes=_memory(),
            limit_hits=_hits(numbers, LimitMode.ENFORCED),
            limit_hits_dry_run=_hits(numbers, LimitMode.DRY_RUN),
        )

    def encoded(self) -> bytes:
        """Return the summary as other nodes read it."""
        return msgspec.json.encode(self.summary())

    async def others(self) -> frozenset[str]:
        """Return the names of the other nodes. Raises Unavailable."""
        names = set()
        for text in await self._cluster.summaries():
            with suppress(msgspec.DecodeError):
                names.add(_decode_name(text).node)
        return frozenset(names - {self.name})

    async def all(self) -> NodeSummaries:
        """Return the summaries of all nodes by host, this one's as it is now."""
        others, missing = [], None
        try:
            for text in await self._cluster.summaries():
                try:
                    others.append(_decode(text))
                except msgspec.DecodeError:  # of a node with another version
                    missing = "a node of another version reports in another form"
        except Unavailable as error:
            missing = str(error)
        nodes = [self.summary(), *(each for each in others if each.node != self.name)]
        nodes.sort(key=lambda each: (each.host, each.started, each.node))
        return NodeSummaries(self.name, nodes, missing)


def _hits(numbers: Instruments, mode: LimitMode) -> dict[str, int]:
    """Return the hits of each limit per client; limits without a hit are left out."""
    return {
        sample.labels["limit"]: round(sample.value)
        for family in numbers.limit_hits.collect()
        for sample in family.samples
        if sample.value and sample.labels["mode"] == mode
    }


def _memory() -> int | None:
    """Return the bytes of memory that this process has in use; None if it is not known."""
    if sys.platform != "linux":
        return None
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
