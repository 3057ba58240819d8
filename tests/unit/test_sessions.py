"""Sessions: what a node knows of them, and what it does while it cannot look them up."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from routecast.adapters.records.memory import RECORD_OVERHEAD, MemoryRecords
from routecast.core.access import Principal, Scope
from routecast.core.client_limits import ClientLimit
from routecast.core.record_limit import RecordLimit
from routecast.core.tickets_and_sessions import SESSION_SECONDS, pack_principal, record_name
from routecast.errors import BadCredential, OverLimit, Unavailable
from routecast.services import sessions as module
from routecast.services.sessions import Sessions
from tests.support.clock import HeldClock

# The sessions that a subject may start in these tests, and the seconds in which it may.
MOST, DAY = 8, 86_400.0
ANN = Principal("ann", frozenset({Scope.READ}), frozenset({"a"}), credential="1", issued=1.5)


class BreakableRecords(MemoryRecords):
    """Records that can be out of reach."""

    is_down = False

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        self._require_up()
        return await super().get(names)

    async def version(self) -> str:
        self._require_up()
        return await super().version()

    async def delete(self, name: str) -> None:
        self._require_up()
        await super().delete(name)

    def _require_up(self) -> None:
        if self.is_down:
            raise Unavailable("no answer in time")


class Node:
    """The sessions of one node, and those that it has told to be ended."""

    def __init__(self, records: MemoryRecords, clock: HeldClock) -> None:
        self.revoked: set[str] = set()
        limit = RecordLimit(ClientLimit.SESSIONS, MOST, DAY)
        self.sessions = Sessions(records, self._check, clock, limit)
        self.told: list[Callable[[Principal], bool]] = []
        self.sessions.followers.append(self.told.append)

    def _check(self, principal: Principal) -> None:
        if principal.credential in self.revoked:
            raise BadCredential("revoked")

    def ended(self, principal: Principal) -> bool:
        """Whether the streams of a session were closed."""
        return any(is_ended(principal) for is_ended in self.told)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def records(clock: HeldClock) -> BreakableRecords:
    return BreakableRecords(clock)


def node(records: MemoryRecords, clock: HeldClock) -> Node:
    return Node(records, clock)


async def test_a_session_stands_for_its_principal(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """On any node; where it was started, at once. Streams of one session share one object."""
    first, second = node(records, clock), node(records, clock)
    text, ours = await first.sessions.start(ANN)
    now = clock.now() / 1e6
    assert ours == replace(ANN, expires=now + SESSION_SECONDS, session=ours.session)
    assert first.sessions.recognise(text) is ours
    assert second.sessions.recognise(text) is None
    assert await second.sessions.find(text) == ours
    assert second.sessions.recognise(text) is await second.sessions.find(text)
    assert text not in ours.session


async def test_a_session_ends_with_its_token(records: BreakableRecords, clock: HeldClock) -> None:
    """And not with a key, whose end is looked up each time."""
    soon = clock.now() / 1e6 + 60
    _, of_token = await node(records, clock).sessions.start(replace(ANN, expires=soon))
    assert of_token.expires == soon
    _, of_key = await node(records, clock).sessions.start(replace(ANN, expires=soon, is_key=True))
    assert of_key.expires == clock.now() / 1e6 + SESSION_SECONDS
    with pytest.raises(BadCredential):
        await node(records, clock).sessions.start(replace(ANN, expires=soon - 61))


async def test_a_session_that_another_node_has_ended(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """Is noticed at the next look; those of other people go on."""
    first, second = node(records, clock), node(records, clock)
    text, ours = await first.sessions.start(ANN)
    kept_text, kept = await first.sessions.start(replace(ANN, subject="bob"))
    await second.sessions.find(text)
    await second.sessions.find(kept_text)
    await second.sessions.refresh()
    await first.sessions.end(ours)
    assert first.ended(ours)
    assert second.sessions.recognise(text)
    await second.sessions.refresh()
    assert second.ended(ours)
    assert not second.ended(kept)
    assert second.sessions.recognise(kept_text)
    with pytest.raises(BadCredential):
        await second.sessions.find(text)


async def test_signing_out_ends_all_sessions_of_the_person(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """Wherever they were started and are known; one that begins afterwards goes on."""
    first, second, third = (node(records, clock) for _ in range(3))
    _, ours = await first.sessions.start(ANN)
    text, other = await first.sessions.start(replace(ANN, credential="2", scopes=frozenset()))
    third_text, _ = await third.sessions.start(ANN)
    await second.sessions.find(text)
    await second.sessions.refresh()
    await first.sessions.end(ours)
    assert first.ended(ours)
    assert first.ended(other)
    later_text, later = await second.sessions.start(ANN)
    for each in (second, third):
        await each.sessions.refresh()
        assert not each.ended(later)
    assert second.ended(other)
    assert second.sessions.recognise(later_text) is later
    assert await first.sessions.find(later_text) == later
    for each in (first, second, third):
        for gone in (text, third_text):
            with pytest.raises(BadCredential):
                await each.sessions.find(gone)
    await second.sessions.end(later)
    await first.sessions.refresh()
    with pytest.raises(BadCredential):
        first.sessions.require(later)


async def test_a_person_without_a_session_ends_those_of_the_subject(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """A proxy may have signed the person in for this request."""
    first, second = node(records, clock), node(records, clock)
    text, ours = await second.sessions.start(ANN)
    await second.sessions.refresh()
    await first.sessions.end(ANN)
    await second.sessions.refresh()
    assert second.ended(ours)
    with pytest.raises(BadCredential):
        await first.sessions.find(text)


async def test_streams_of_a_person_whom_a_proxy_signs_in_end_with_the_sign_out(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """On all nodes, once; nothing else of the person ends, and the proxy's word counts again."""
    first, second = node(records, clock), node(records, clock)
    eva = replace(ANN, subject="eva", by_proxy=True)
    max_ = replace(eva, subject="max")
    for each in (first, second):
        for person in (eva, max_):
            each.sessions.notice(person)
        await each.sessions.refresh()
    await first.sessions.end(eva)
    await second.sessions.refresh()
    for each in (first, second):
        assert each.ended(eva)
        assert not each.ended(max_)
        assert not each.ended(replace(eva, by_proxy=False))  # a token of that subject
        each.told.clear()
        each.sessions.notice(eva)
        await each.sessions.refresh()
        assert not each.ended(eva)
    await second.sessions.end(replace(eva, by_proxy=False, session="session:x"))
    await first.sessions.refresh()
    assert first.ended(eva)
    assert second.ended(eva)


async def test_a_sign_out_before_the_streams_of_a_person_ends_none(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """A node learns of it only when the person comes; on the node of the sign-out it is known."""
    first, second = node(records, clock), node(records, clock)
    eva = replace(ANN, by_proxy=True)
    first.sessions.notice(eva)
    await first.sessions.end(eva)
    assert first.ended(eva)
    second.sessions.notice(eva)
    for _ in range(3):
        await second.sessions.refresh()
    assert not second.ended(eva)


async def test_a_session_of_a_key_ends_alone(records: BreakableRecords, clock: HeldClock) -> None:
    """Its other screens go on, and so do the sessions of a person with its name."""
    first, second = node(records, clock), node(records, clock)
    key = replace(ANN, is_key=True)
    _, ours = await first.sessions.start(key)
    texts = [(await first.sessions.start(each))[0] for each in (key, ANN)]
    for text in texts:
        await second.sessions.find(text)
    await first.sessions.end(ours)
    await first.sessions.end(key)  # without a session there is nothing to end
    await second.sessions.refresh()
    assert first.ended(ours)
    for text in texts:
        assert first.sessions.recognise(text)
        assert second.sessions.recognise(text)


async def test_a_session_of_a_key_is_renewed(records: BreakableRecords, clock: HeldClock) -> None:
    """It goes on under its text on all nodes, also on one that knows its old end."""
    first, second = node(records, clock), node(records, clock)
    text, ours = await first.sessions.start(replace(ANN, is_key=True))
    await second.sessions.find(text)
    clock.moment += round((SESSION_SECONDS - 1) * 1e6)
    renewed = await first.sessions.renew(ours)
    assert renewed == replace(ours, expires=clock.now() / 1e6 + SESSION_SECONDS)
    clock.moment += 2_000_000
    first.sessions.require(ours)
    assert first.sessions.recognise(text) is renewed
    assert second.sessions.recognise(text) is None
    assert await second.sessions.find(text) == renewed
    clock.moment += round(SESSION_SECONDS * 1e6)
    for each in (first, second):
        with pytest.raises(BadCredential):
            await each.sessions.find(text)


async def test_a_session_that_has_ended_is_not_renewed(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """The browser may have signed out while its renewal was on its way."""
    one = node(records, clock)
    text, ours = await one.sessions.start(replace(ANN, is_key=True))
    await one.sessions.end(ours)
    with pytest.raises(BadCredential):
        await one.sessions.renew(ours)
    with pytest.raises(BadCredential):
        await node(records, clock).sessions.find(text)


async def test_a_session_that_another_node_has_ended_is_not_renewed(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """Also before this node has noticed the end; then its streams are closed at once."""
    first, second = node(records, clock), node(records, clock)
    text, ours = await first.sessions.start(replace(ANN, is_key=True))
    known = await second.sessions.find(text)
    await first.sessions.end(ours)
    with pytest.raises(BadCredential):
        await second.sessions.renew(known)
    assert second.ended(known)
    for each in (first, second):
        with pytest.raises(BadCredential):
            await each.sessions.find(text)


async def test_a_session_that_is_forgotten_during_its_renewal_goes_on(
    records: BreakableRecords, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node has forgotten it because it knows many others, not because it has ended."""
    monkeypatch.setattr(module, "MAX_KNOWN_SESSIONS", 1)
    one = node(records, clock)
    text, ours = await one.sessions.start(replace(ANN, is_key=True))
    await one.sessions.start(ANN)
    clock.moment += 60_000_000
    renewed = await one.sessions.renew(ours)
    assert renewed == replace(ours, expires=clock.now() / 1e6 + SESSION_SECONDS)
    assert one.sessions.recognise(text) is renewed


async def test_a_subject_starts_a_limited_number(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """So one client cannot take the room of all sessions. Renewals are not counted."""
    one = node(records, clock)
    key = replace(ANN, is_key=True)
    _, ours = await one.sessions.start(key)
    for _ in range(MOST):
        ours = await one.sessions.renew(ours)
    for number in range(1, MOST):
        await one.sessions.start(replace(ANN, credential=f"{number}"))
    with pytest.raises(OverLimit) as caught:
        await one.sessions.start(ANN)
    assert caught.value.retry_after == DAY / MOST
    await one.sessions.start(replace(ANN, subject="bob"))
    clock.moment += round(DAY / MOST * 1e6)
    await one.sessions.start(ANN)


async def test_known_sessions_hold_while_nothing_can_be_looked_up(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """Unknown ones are unavailable, and nobody is told that a session has ended."""
    first, second = node(records, clock), node(records, clock)
    text, ours = await first.sessions.start(ANN)
    records.is_down = True
    with pytest.raises(Unavailable):
        await first.sessions.refresh()
    assert first.sessions.failing
    assert first.sessions.recognise(text) is ours
    with pytest.raises(Unavailable):
        await second.sessions.find(text)
    with pytest.raises(Unavailable):
        await first.sessions.end(ours)
    assert not first.told
    assert first.sessions.recognise(text) is ours
    records.is_down = False
    await first.sessions.refresh()
    assert first.sessions.failing is None


async def test_a_revoked_credential_ends_the_session(
    records: BreakableRecords, clock: HeldClock
) -> None:
    """At its next use."""
    one = node(records, clock)
    text, _ = await one.sessions.start(ANN)
    one.revoked.add("1")
    with pytest.raises(BadCredential):
        one.sessions.recognise(text)
    with pytest.raises(BadCredential):
        await node(records, clock).sessions.find("x")


async def test_a_node_remembers_a_bounded_number(
    records: BreakableRecords, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The streams of one that it forgets are closed: nobody would notice its end."""
    monkeypatch.setattr(module, "MAX_KNOWN_SESSIONS", 2)
    one = node(records, clock)
    started = [await one.sessions.start(ANN) for _ in range(3)]
    assert [one.ended(ours) for _, ours in started] == [True, False, False]
    assert await one.sessions.find(started[0][0])  # it has not ended


async def test_a_node_remembers_a_bounded_number_of_people(
    records: BreakableRecords, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of sessions. The streams of the one that came longest ago are closed."""
    monkeypatch.setattr(module, "MAX_KNOWN_PEOPLE", 2)
    one = node(records, clock)
    eva, max_, zoe = (replace(ANN, subject=name, by_proxy=True) for name in ("eva", "max", "zoe"))
    for person in (eva, max_, eva, zoe):
        one.sessions.notice(person)
    assert [one.ended(person) for person in (eva, max_, zoe)] == [False, True, False]
    assert not one.ended(replace(max_, session="session:x"))
    assert not one.ended(replace(max_, by_proxy=False))


@pytest.mark.parametrize(
    "packed", [b"", b"x", b"[]", b'[{"subject":5},""]', pack_principal(ANN), b"\xff"]
)
async def test_a_record_that_is_no_session_is_refused(
    records: BreakableRecords, clock: HeldClock, packed: bytes
) -> None:
    """Any program may have written it; one of another kind is none, either."""
    await records.put(record_name("session", "text"), packed, 60)
    with pytest.raises(BadCredential):
        await node(records, clock).sessions.find("text")


@pytest.mark.parametrize("text", ["x" * 101, "ü", "x" * 100_000])
async def test_a_text_that_is_no_session_is_refused(
    records: BreakableRecords, clock: HeldClock, text: str
) -> None:
    """Before anything is looked up."""
    records.is_down = True
    with pytest.raises(BadCredential):
        await node(records, clock).sessions.find(text)


async def test_records_of_a_process_have_a_limit(clock: HeldClock) -> None:
    """Those that have ended make room."""
    records: Any = MemoryRecords(clock, max_bytes=2 * (RECORD_OVERHEAD + 2))
    await records.put("a", b"1", 60)
    await records.put("b", b"1", 120)
    with pytest.raises(Unavailable):
        await records.put("c", b"1", 60)
    clock.moment += 61_000_000
    await records.put("c", b"1", 60)
    assert await records.get(["a", "b", "c"]) == [None, b"1", b"1"]
