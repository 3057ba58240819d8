"""Versions: which of them are bases for patches, and when a snapshot is sent instead."""

import gc
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.core.message import JSON, MSGPACK, Encoding, Message
from routecast.core.versions import (
    FRESH_MESSAGE,
    OVERHEAD,
    DocumentState,
    Version,
    Versions,
    full_document,
    message,
)
from routecast.core.view import View
from routecast.protocol import Position, Source
from tests.support.decisions import NOW
from tests.support.oracle import stamped
from tests.support.v1 import merged

VIEW = View()
LARGE = {f"strategy-{number}": number for number in range(20)}


def state(
    seq: int, *, epoch: str = "e", source: Source = Source.LIVE, time_key: int = 0
) -> DocumentState:
    return DocumentState(Position(epoch, seq), time_key, source, NOW)


def add(
    versions: Versions, at: DocumentState | None, view: View = VIEW, **document: Any
) -> Version:
    return sent(versions.add(view, NOW, at, {**LARGE, **document} if at else None))


def sent(version: Version) -> Version:
    """Return a version that a client may have, so that it is kept as a base."""
    version.may_be_held = True
    return version


def said(message: Message | None) -> Any:
    assert message is not None
    return json.loads(message.for_id("main").body)


def test_a_delta_leads_from_the_base_to_the_version() -> None:
    """A delta has only what changed; without a base there is a snapshot."""
    versions = Versions()
    one, two = add(versions, state(1), total=1), add(versions, state(2), total=2, gone=None)
    delta = said(message(two, one, JSON, NOW + 1_500_000))
    assert (delta["type"], delta["base"], delta["position"]["seq"]) == ("delta", 1, 2)
    assert (delta["data"], delta["source"], delta["age_ms"]) == ({"total": 2}, "live", 1_500)
    snapshot = said(message(two, None, JSON, NOW))
    assert (snapshot["type"], snapshot["data"]) == ("snapshot", {**LARGE, "total": 2})


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
def test_a_delta_knows_what_it_saves(encoding: Encoding) -> None:
    """The bytes by which the patch is smaller than the document, as this client reads them."""
    versions = Versions()
    one, two = add(versions, state(1), total=1), add(versions, state(2), total=2)
    delta, snapshot = message(two, one, encoding, NOW), message(two, None, encoding, NOW)
    assert delta is not None
    assert snapshot is not None
    assert snapshot.for_id("main").saved == 0
    document = encoding.encode({**LARGE, "total": 2})
    assert delta.for_id("main").saved == len(document) - len(encoding.encode({"total": 2}))


def test_a_snapshot_replaces_a_larger_delta() -> None:
    """Nearly everything changed."""
    versions = Versions()
    one = sent(versions.add(VIEW, NOW, state(1), dict.fromkeys("abcdef", 1)))
    two = versions.add(VIEW, NOW, state(2), {"g": 1})
    assert said(message(two, one, JSON, NOW))["type"] == "snapshot"


@pytest.mark.parametrize(
    ("base", "to"), [(state(5, epoch="d"), state(6)), (state(7), state(6)), (None, state(6))]
)
def test_a_base_that_is_not_earlier_gets_a_snapshot(
    base: DocumentState | None, to: DocumentState
) -> None:
    """The base is of another epoch, is later, or has no position."""
    versions = Versions()
    before, after = add(versions, base, total=1), add(versions, to, total=2)
    assert said(message(after, before, JSON, NOW))["type"] == "snapshot"


def test_without_a_source_there_is_an_error() -> None:
    """It says that the error is temporary."""
    failed = add(Versions(), None)
    error = said(message(failed, None, JSON, NOW))
    assert (error["type"], error["id"], error["retryable"]) == ("error", "main", True)


def test_versions_differ_by_document_or_source() -> None:
    """A version without an answer differs, too; a later position alone does not."""
    versions = Versions()
    first = add(versions, state(1))
    later = add(versions, state(2))
    assert not later.differs(first)
    assert add(versions, state(3), total=1).differs(later)
    stale = add(versions, state(3, source=Source.STALE), total=1)
    assert stale.differs(later)
    failed = add(versions, None)
    assert failed.differs(stale)
    assert stale.differs(failed)
    assert not failed.differs(add(versions, None))


def test_time_alone_makes_no_version() -> None:
    """A document that the time could change, but did not, stays the same version."""
    versions = Versions()
    view = View(window="5m")
    first = add(versions, state(1, time_key=7), view)
    assert add(versions, state(1, time_key=8), view) is first
    assert first.still_valid_for(state(1, time_key=8))
    assert not first.still_valid_for(state(1, time_key=9))


def test_versions_of_a_timeless_view_are_found_by_position() -> None:
    """Those of windows, rates and prices are not."""
    versions = Versions()
    found = add(versions, state(4))
    assert versions.at_position(VIEW, Position("e", 4)) is found
    assert versions.at_position(VIEW, Position("d", 4)) is None
    assert versions.at_position(View(window="1h"), Position("e", 4)) is None
    for view in (View(window="1h"), View(fields=("rate",)), View(fields=("savings",))):
        add(versions, state(4), view)
        assert versions.at_position(view, Position("e", 4)) is None


def test_the_least_recently_used_version_is_forgotten() -> None:
    """A forgotten version is no base and cannot be found; memory stays within its limit."""
    views = [View(project=frozenset({f"{seq}"})) for seq in range(10)]
    size = len(json.dumps(LARGE, separators=(",", ":"))) + views[0].size + OVERHEAD
    versions = Versions(max_bytes=10 * size)
    held = [add(versions, state(seq), view) for seq, view in enumerate(views)]
    assert versions.at_position(held[0].view, Position("e", 0)) is held[0]
    more = add(versions, state(11))
    assert held[0].body is not None
    assert held[1].body is None
    assert versions.newest(held[1].view) is None
    assert versions.at_position(held[1].view, Position("e", 1)) is None
    assert message(held[1], None, JSON, NOW) is None
    assert said(message(more, held[1], JSON, NOW))["type"] == "snapshot"


def test_filters_count_towards_the_limit() -> None:
    """The limit in bytes holds with any number and length of names."""
    most = 2 * 1024 * 1024
    versions = Versions(max_bytes=most)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(100):
            # With a letter beyond Latin-1, each character of a name takes more bytes.
            names = frozenset(f"{number}-{name}-".ljust(127, "x") + "☂" for name in range(100))
            add(versions, state(number), View(strategy=names, provider=names))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most / 4 < held < most


def test_a_version_that_no_client_has_is_forgotten() -> None:
    """It is forgotten at the next version, or when no client follows the view."""
    versions = Versions()
    one = versions.add(VIEW, NOW, state(1), {"total": 1})
    two = versions.add(VIEW, NOW, state(2), {"total": 2})
    assert (one.body, versions.at_position(VIEW, Position("e", 1))) == (None, None)
    assert two.differs(one)
    versions.drop_messages(VIEW)
    assert (versions.newest(VIEW), versions._bytes) == (None, 0)


def test_the_default_stream_has_the_same_document() -> None:
    """It has a timestamp and nulls, is encoded once for all, and again at a new position."""
    versions = Versions()
    document = {"total": 1, "cost": None}
    one = versions.add(VIEW, NOW, state(1), document)
    full = full_document(one, NOW)
    assert full is not None
    assert json.loads(full.body) == stamped(document, NOW)
    assert (full.position, full.source) == (Position("e", 1), Source.LIVE)
    assert full_document(one, NOW + FRESH_MESSAGE - 1) is full
    assert full_document(one, NOW + FRESH_MESSAGE) is not full
    carried = full_document(versions.carry(one, NOW, state(2)), NOW)
    assert carried is not None
    assert carried.position == Position("e", 2)
    assert said(message(sent(one), None, JSON, NOW))["data"] == {"total": 1}
    failed = full_document(versions.add(VIEW, NOW, None, None), NOW)
    assert failed is not None
    assert "error" in json.loads(failed.body)


def test_an_abandoned_view_keeps_versions_and_no_messages() -> None:
    """Its versions are bases for clients that reconnect."""
    versions = Versions()
    one = add(versions, state(1), total=1)
    first = message(one, None, JSON, NOW)
    versions.drop_messages(VIEW)
    versions.drop_messages(View(window="1h"))  # it never had followers
    assert not one.messages
    assert versions.at_position(VIEW, Position("e", 1)) is versions.newest(VIEW) is one
    again = message(one, None, JSON, NOW)
    assert again is not first
    assert said(again) == said(first)


def test_messages_are_made_once_while_they_are_fresh() -> None:
    """Clients at the same time share one with its timestamp; later ones get another."""
    versions = Versions()
    one, two = add(versions, state(1), total=1), add(versions, state(2), total=2)
    first = message(two, one, JSON, NOW)
    assert message(two, one, JSON, NOW + FRESH_MESSAGE - 1) is first
    assert message(two, None, JSON, NOW) is not first
    assert (
        said(message(two, one, JSON, NOW + FRESH_MESSAGE))["timestamp"] != said(first)["timestamp"]
    )


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2)), min_size=2))
def test_any_base_leads_to_the_newest(documents: list[dict[str, int]]) -> None:
    """There may be any versions between them."""
    versions = Versions()
    made = [sent(versions.add(VIEW, NOW, state(seq), doc)) for seq, doc in enumerate(documents)]
    for base, document in zip(made, documents, strict=True):
        leading = said(message(made[-1], base, JSON, NOW))
        before = document if leading["type"] == "delta" else {}
        assert merged(before, leading["data"]) == documents[-1]
