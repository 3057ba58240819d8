"""The key ring: what a node knows of keys and revocations, and when."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from routecast.adapters.cluster.memory import MemoryCluster
from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.access import Principal
from routecast.core.decision import MINUTE
from routecast.core.keys import AccessChange, AccessRecords, delete_keys, revoke_key
from routecast.errors import BadCredential, Unavailable
from routecast.services import key_ring as module
from routecast.services.key_ring import KeyRing
from tests.support.clock import HeldClock
from tests.support.decisions import NOW
from tests.support.keys import a_revocation, an_api_key, put, text_of
from tests.support.running_services import broken, running, until

KEY = an_api_key(1)
TOKEN = Principal("ana", credential="t1", issued=NOW / 1e6 - 60, expires=NOW / 1e6 + 600)


class CountingStore(SqliteStore):
    """A SQLite store that counts what is read and noted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.looks = self.reads = 0
        self.noted: list[dict[str, int]] = []

    async def access_version(self) -> str:
        self.looks += 1
        return await super().access_version()

    async def access(self) -> AccessRecords:
        self.reads += 1
        return await super().access()

    async def note_use(self, uses: Mapping[str, int]) -> None:
        await super().note_use(uses)
        self.noted.append(dict(uses))


@pytest.fixture
async def store(path: Path) -> CountingStore:
    """An open store with one key, closed by `tidy`."""
    opened = CountingStore(path)
    await opened.open()
    await opened.change_access(put(KEY))
    return opened


@pytest.fixture(autouse=True)
async def tidy(store: CountingStore) -> object:
    """Close the store at the end."""
    yield
    await store.close()


@pytest.fixture
def cluster() -> MemoryCluster:
    """The cluster that the nodes of a test share."""
    return MemoryCluster()


@pytest.fixture
def ring(store: CountingStore, cluster: MemoryCluster, clock: HeldClock) -> KeyRing:
    """The key ring of a node with the database, which knows nothing yet."""
    return KeyRing(store, cluster, clock)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look all the time."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "LOOK_SHARED_SECONDS", 0.005)


def is_accepted(ring: KeyRing, number: int = 1) -> bool:
    try:
        ring.identify(text_of(number))
    except BadCredential:
        return False
    return True


def why_not(ring: KeyRing) -> str | None:
    return ring.failing


def told(ring: KeyRing) -> list[list[Principal]]:
    """Return a list that gets, each time followers are called, who of two is revoked."""
    calls: list[list[Principal]] = []

    def follow(is_revoked: Callable[[Principal], bool]) -> None:
        calls.append([one for one in (KEY.principal, TOKEN) if is_revoked(one)])

    ring.followers.append(follow)
    return calls


async def test_nothing_is_known_before_the_first_look(ring: KeyRing) -> None:
    """So authentication counts as on, and neither keys nor tokens can be judged."""
    assert ring.required
    with pytest.raises(Unavailable, match="not known yet"):
        ring.identify(text_of(1))
    with pytest.raises(Unavailable, match="not known yet"):
        ring.check(TOKEN)
    with pytest.raises(Unavailable, match="not known yet"):
        ring.require_known()
    await ring.refresh()
    ring.require_known()
    assert ring.identify(text_of(1)) == KEY.principal
    ring.check(TOKEN)


async def test_authentication_is_on_while_there_is_a_key(
    ring: KeyRing, store: CountingStore, clock: HeldClock
) -> None:
    """A revoked one counts, so that its end lets nobody in; a deleted one does not."""
    await ring.refresh()
    assert ring.required
    await store.change_access(lambda seen: revoke_key(seen, KEY.id, NOW))
    await ring.refresh()
    assert ring.required
    await store.change_access(lambda seen: delete_keys(seen, [KEY.id], NOW))
    await ring.refresh()
    assert not ring.required


async def test_one_cheap_look_finds_that_nothing_changed(
    ring: KeyRing, store: CountingStore
) -> None:
    """Keys are read again after a change only."""
    for _ in range(5):
        await ring.refresh()
    assert (store.looks, store.reads) == (5, 1)
    await store.change_access(put(an_api_key(2)))
    await ring.refresh()
    assert (is_accepted(ring, 2), store.reads) == (True, 2)


async def test_last_known_keys_hold_while_the_database_is_away(
    ring: KeyRing, store: CountingStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and what changed meanwhile is learned afterwards."""
    await store.change_access(put(a_revocation()))
    await ring.refresh()
    with broken(path, "access_version"):
        for _ in range(3):
            with pytest.raises(Unavailable):
                await ring.refresh()
        assert is_accepted(ring)
        with pytest.raises(BadCredential, match="the token was revoked"):
            ring.check(TOKEN)
        assert why_not(ring)
    await store.change_access(lambda seen: revoke_key(seen, KEY.id, NOW))
    await ring.refresh()
    assert not is_accepted(ring)
    assert why_not(ring) is None
    said = [one.message for one in caplog.records if one.name == module.__name__]
    assert len(said) == 2
    assert "the last known ones are used" in said[0]
    assert "can be read again" in said[1]


async def test_last_use_is_noted_once_a_minute(
    ring: KeyRing, store: CountingStore, clock: HeldClock
) -> None:
    """However often a key is used; the first use is noted at once."""
    minute, last = NOW - NOW % MINUTE, NOW + 3 * MINUTE - MINUTE // 6
    await store.change_access(put(an_api_key(2)))
    await ring.refresh()
    for passed in range(0, 3 * MINUTE, MINUTE // 6):
        clock.moment = NOW + passed
        for _ in range(10):
            is_accepted(ring)
        await ring._note_uses()
    assert store.noted == [{KEY.id: minute + n * MINUTE} for n in range(3)]
    clock.moment += MINUTE
    await ring._note_uses()
    assert len(store.noted) == 4  # the uses in the minute after the last note
    clock.moment += MINUTE
    await ring._note_uses()
    assert len(store.noted) == 4
    held = (await store.access()).keys
    assert held[KEY.id].last_used == last - last % MINUTE
    assert held[an_api_key(2).id].last_used is None


async def test_use_during_an_outage_is_noted_later(
    ring: KeyRing, store: CountingStore, path: Path, clock: HeldClock
) -> None:
    """The latest use counts."""
    await ring.refresh()
    is_accepted(ring)
    with broken(path, "api_keys"), pytest.raises(Unavailable):
        await ring._note_uses()
    clock.moment += MINUTE
    is_accepted(ring)
    await ring._note_uses()
    assert store.noted == [{KEY.id: clock.moment - clock.moment % MINUTE}]


async def test_no_revocation_waits_for_a_note(
    ring: KeyRing, store: CountingStore, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note waits for the other writes of the database, which may take seconds."""
    begun = asyncio.Event()

    async def never(_: Mapping[str, int]) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(store, "note_use", never)
    await ring.refresh()
    assert is_accepted(ring)
    async with running(ring.run()):
        await begun.wait()
        await store.change_access(lambda seen: revoke_key(seen, KEY.id, NOW))
        await until(lambda: not is_accepted(ring))


async def test_streams_end_after_a_change(ring: KeyRing, store: CountingStore, fast: None) -> None:
    """Followers learn who is revoked, each time that something changes."""
    calls = told(ring)
    async with running(ring.run()):
        await until(lambda: calls == [[]])
        await store.change_access(put(a_revocation("jti", "t1")))
        await until(lambda: calls == [[], [TOKEN]])
        await store.change_access(lambda seen: revoke_key(seen, KEY.id, NOW))
        await until(lambda: calls == [[], [TOKEN], [KEY.principal, TOKEN]])


async def test_stream_of_a_rotated_key_ends_with_the_overlap(
    ring: KeyRing, store: CountingStore, clock: HeldClock, fast: None
) -> None:
    """Its principal does not know that end: it was accepted before the rotation."""
    calls = told(ring)
    async with running(ring.run()):
        await until(lambda: calls == [[]])
        await store.change_access(put(an_api_key(1, expires=NOW + MINUTE)))
        await until(lambda: calls == [[], []])
        clock.moment = NOW + MINUTE
        await until(lambda: calls == [[], [], [KEY.principal]])


async def test_node_without_a_database_learns_what_others_share(
    ring: KeyRing, store: CountingStore, cluster: MemoryCluster, clock: HeldClock, fast: None
) -> None:
    """Before that it knows nothing; a use there is not noted."""
    streaming = KeyRing(None, cluster, clock)
    with pytest.raises(Unavailable, match="no node with a database"):
        await streaming.refresh()
    assert streaming.required
    with pytest.raises(Unavailable, match="no node with a database"):
        streaming.identify(text_of(1))
    calls = told(streaming)
    async with running(ring.run()), running(streaming.run()):
        await until(lambda: not streaming.failing)
        assert streaming.identify(text_of(1)) == KEY.principal
        await store.change_access(lambda seen: revoke_key(seen, KEY.id, NOW))
        await until(lambda: calls == [[], [KEY.principal]])
    assert not is_accepted(streaming)


async def test_what_was_shared_is_used_until_the_database_can_be_read(
    ring: KeyRing, store: CountingStore, cluster: MemoryCluster, clock: HeldClock, path: Path
) -> None:
    """A node that starts during an outage knows the keys from other nodes."""
    await ring.refresh()
    started = KeyRing(store, cluster, clock)
    with broken(path, "access_version"), pytest.raises(Unavailable):
        await started.refresh()
    assert is_accepted(started)
    await store.change_access(put(an_api_key(2)))
    await started.refresh()
    assert is_accepted(started, 2)


async def test_what_a_lost_redis_had_is_shared_again(
    ring: KeyRing, cluster: MemoryCluster, store: CountingStore
) -> None:
    """Nothing has changed in the database since."""
    await ring.refresh()
    await cluster.share_access(AccessRecords("older", {}, {}))
    await ring.refresh()
    assert await cluster.shared_access() == await store.access()


async def test_change_is_not_lost_between_two_looks(
    ring: KeyRing, store: CountingStore, fast: None
) -> None:
    """Many quick changes lead to the last one."""
    async with running(ring.run()):
        for number in range(2, 30):
            await store.change_access(put(an_api_key(number)))
        await asyncio.gather(*(store.change_access(lambda _: AccessChange()) for _ in range(3)))
        await until(lambda: is_accepted(ring, 29))
    assert all(is_accepted(ring, number) for number in range(1, 30))
