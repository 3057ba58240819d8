"""Limits of streams: how many a client may have and open, and the frames that they ask for."""

from collections import Counter
from typing import cast

import pytest

from routecast.core.access import ANYONE, Principal
from routecast.core.client_limits import LimitModes
from routecast.core.sites import Sites
from routecast.edge.admission import AdmissionControl
from routecast.errors import OverLimit
from routecast.instruments import Instruments
from routecast.services.renders import Renders
from routecast.streaming.connections import ConnectionManager
from routecast.streaming.frame_limit import FrameLimit

ANA, BOB = Principal("ana"), Principal("bob")


class Door:
    """Admission with some limits, and the number of its hits by limit and mode."""

    def __init__(self, *dry_run: str, frames: int = 0, **limits: int) -> None:
        self.hits: Counter[tuple[str, str]] = Counter()
        modes = LimitModes(dry_run, lambda limit, mode: self.hits.update([(limit, mode)]))
        self.now = 0.0
        self.frames = FrameLimit(frames, modes)
        self.control = AdmissionControl(
            ConnectionManager(Instruments(), limit=1_000),
            cast(Renders, type("", (), {"admit": lambda *_: None})()),
            interval=5,
            sites=Sites(),
            frames=self.frames,
            modes=modes,
            now=lambda: self.now,
            **{"max_per_address": 0, **limits},
        )

    def asks(
        self,
        address: str,
        principal: Principal = ANYONE,
        *,
        probe: bool = False,
        query: bytes = b"",
    ) -> str:
        """Ask for a stream; return the limit that is reached, or ""."""
        try:
            self.control.admit(
                query, origin=None, host=None, address=address, principal=principal, probe=probe
            )
        except OverLimit as error:
            return error.limit
        return ""


def test_streams_of_an_address_and_of_a_subject() -> None:
    """Each is counted by itself, and one that ends makes room."""
    door = Door(max_per_address=2, max_per_subject=3)
    assert [door.asks("a", ANA) for _ in range(3)] == ["", "", "streams_per_address"]
    assert [door.asks("b", ANA) for _ in range(2)] == ["", "streams_per_subject"]
    assert door.asks("b", BOB) == ""
    door.control.release("a", ANA)
    assert door.asks("a", ANA) == ""
    assert door.hits == {
        ("streams_per_address", "enforced"): 1,
        ("streams_per_subject", "enforced"): 1,
    }


def test_without_authentication_there_are_no_subjects() -> None:
    """Everyone would be one."""
    door = Door(max_per_subject=1, frames=1)
    assert [door.asks("a", query=b"interval=0.1") for _ in range(3)] == ["", "", ""]


def test_new_streams_of_an_address_in_a_minute() -> None:
    """They may come at once; those that are refused do not count."""
    door = Door(max_a_minute=6)
    assert [door.asks("a") for _ in range(8)] == [""] * 6 + ["connection_rate"] * 2
    assert door.asks("b") == ""
    door.now += 10
    assert [door.asks("a") for _ in range(2)] == ["", "connection_rate"]


def test_a_probe_takes_and_counts_nothing() -> None:
    """A page asks so why it was refused."""
    door = Door(max_per_address=2, max_a_minute=1)
    for _ in range(3):
        assert door.asks("a", probe=True) == ""
        door.control.release("a")
    assert door.asks("a") == ""
    assert door.asks("a", probe=True) == "connection_rate"
    assert not door.hits


def test_dry_run_admits_and_counts() -> None:
    """Also if several limits are reached at once."""
    door = Door("all", max_per_address=1, max_per_subject=1, max_a_minute=1, frames=1)
    door.frames.add(ANA, 1.0)
    assert [door.asks("a", ANA) for _ in range(2)] == ["", ""]
    assert door.hits == {
        ("streams_per_address", "dry_run"): 1,
        ("streams_per_subject", "dry_run"): 1,
        ("connection_rate", "dry_run"): 1,
        ("frame_rate", "dry_run"): 2,
    }


def test_frames_that_a_subject_asks_for() -> None:
    """The sum counts; nothing is left of streams that have ended."""
    frames = FrameLimit(10)
    for _ in range(3):
        frames.require(ANA, 0.3)
        frames.add(ANA, 0.3)
    with pytest.raises(OverLimit, match="10 frames a second") as refused:
        frames.require(ANA, 0.3)
    assert (refused.value.amount, refused.value.seconds) == (10, 1)
    frames.require(BOB, 0.3)
    for _ in range(3):
        frames.remove(ANA, 0.3)
    frames.require(ANA, 0.1)
    assert not frames._asked


def test_a_default_stream_that_asks_for_too_many_frames_is_refused() -> None:
    """Streams of routecast.v1 ask later, for each subscription."""
    door = Door(frames=5)
    assert door.asks("a", ANA, query=b"interval=0.1") == "frame_rate"
    assert door.asks("a", ANA, query=b"interval=0.2") == ""
