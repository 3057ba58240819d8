"""The contract of every store for API keys and revocations (`ports.KeyStore`)."""

import asyncio
from dataclasses import replace

import pytest

from routecast.core import keys as module
from routecast.core.access import Scope
from routecast.core.decision import MINUTE
from routecast.core.keys import (
    AccessChange,
    AccessRecords,
    ApiKey,
    Revocation,
    RevocationId,
    RevocationKind,
    add_key,
    add_revocation,
)
from routecast.errors import BadChange, Unavailable
from routecast.ports import Database, Difference
from tests.contract.conftest import Connect
from tests.support.decisions import NOW, kept
from tests.support.keys import a_revocation, an_api_key, put

FULL = an_api_key(
    2,
    name="Suche \N{LATIN SMALL LETTER U WITH DIAERESIS}ber alles",
    scopes=frozenset({Scope.READ, Scope.WRITE}),
    projects=frozenset({"search", 'a "quoted" one', "\N{SNOWMAN}"}),
    expires=NOW + 90 * MINUTE,
    revoked=NOW + 1,
    last_used=NOW - NOW % MINUTE,
)
NONE = an_api_key(3, scopes=frozenset(), projects=frozenset())
REVOCATIONS = (
    a_revocation("jti", "4f1c", until=NOW + MINUTE),
    a_revocation("subject", "ana", issued_before=NOW - 1),
    a_revocation("issued_before", "", issued_before=NOW),
)


async def stored(store: Database) -> tuple[list[ApiKey], list[Revocation]]:
    """Return what is stored, in order; each thing is found under its own id."""
    records = await store.access()
    assert records.version == await store.access_version()
    assert all(records.keys[one.id] is one for one in records.keys.values())
    assert all(records.revocations[one.about] is one for one in records.revocations.values())
    keys = sorted(records.keys.values(), key=lambda one: one.id)
    return keys, sorted(records.revocations.values(), key=lambda one: one.about)


def dropped(*what: str | RevocationId) -> AccessChange:
    return AccessChange(
        drop_keys=[one for one in what if isinstance(one, str)],
        drop_revocations=[one for one in what if isinstance(one, RevocationId)],
    )


async def test_new_database_has_no_keys(store: Database) -> None:
    """Its version stays the same, whatever else is stored."""
    assert await stored(store) == ([], [])
    version = await store.access_version()
    await store.commit([[kept(1)]], NOW)
    await store.fold_names("model", ["m"], remember=True)
    assert await store.access_version() == version


async def test_all_that_is_stored_comes_back(connect: Connect) -> None:
    """It does so in another store, and after all stores were closed."""
    here, there = connect(), connect()
    await here.open()
    await there.open()
    await here.change_access(put(an_api_key(1), FULL, NONE, *REVOCATIONS))
    expected = [an_api_key(1), FULL, NONE], sorted(REVOCATIONS, key=lambda one: one.about)
    assert await stored(here) == await stored(there) == expected
    await here.close()
    await there.close()
    again = connect()
    await again.open()
    assert await stored(again) == expected
    await again.close()


async def test_only_the_end_and_the_projects_of_a_key_change(store: Database) -> None:
    """Its name and scopes cannot change, and its last use is noted by other means."""
    await store.change_access(put(an_api_key(1), an_api_key(2)))
    await store.note_use({an_api_key(1).id: NOW})
    other = replace(FULL, id=an_api_key(1).id, last_used=None)
    await store.change_access(put(other))
    changed = replace(
        an_api_key(1),
        projects=FULL.projects,
        expires=FULL.expires,
        revoked=FULL.revoked,
        last_used=NOW,
    )
    assert await stored(store) == ([changed, an_api_key(2)], [])
    await store.change_access(put(replace(changed, projects=None, expires=None, revoked=None)))
    assert await stored(store) == ([an_api_key(1, last_used=NOW), an_api_key(2)], [])


async def test_keys_and_revocations_are_dropped(store: Database) -> None:
    """What is not there may be dropped, too."""
    await store.change_access(put(an_api_key(1), an_api_key(2), *REVOCATIONS))
    absent = RevocationId(RevocationKind.JTI, "ana")
    await store.change_access(
        lambda _: dropped(an_api_key(1).id, "absent", REVOCATIONS[0].about, absent)
    )
    assert await stored(store) == (
        [an_api_key(2)],
        sorted(REVOCATIONS[1:], key=lambda one: one.about),
    )


async def test_revocation_about_the_same_replaces_the_old_one(store: Database) -> None:
    """There is one for each kind and value."""
    await store.change_access(put(*REVOCATIONS))
    newer = a_revocation("subject", "ana", created=NOW + 5, until=NOW + 9)
    await store.change_access(put(newer, a_revocation("jti", "ana")))
    assert len((await stored(store))[1]) == 4
    assert (await store.access()).revocations[newer.about] == newer


async def test_each_change_has_another_version(store: Database) -> None:
    """A change of nothing is none."""
    versions = [await store.access_version()]
    for change in (put(an_api_key(1)), put(an_api_key(1)), put(a_revocation()), put()):
        await store.change_access(change)
        versions.append(await store.access_version())
    assert len(set(versions)) == 4
    assert versions[-1] == versions[-2]


async def test_change_that_is_refused_changes_nothing(store: Database) -> None:
    """The function that decides may refuse, and sees the stored keys."""
    await store.change_access(put(an_api_key(1)))
    before = await store.access()

    def refuse(records: AccessRecords) -> AccessChange:
        assert records == before
        raise BadChange("no")

    with pytest.raises(BadChange, match="no"):
        await store.change_access(refuse)
    assert await store.access() == before
    await store.change_access(put(an_api_key(2)))


async def test_change_that_fails_changes_nothing(store: Database) -> None:
    """All of it is one transaction. Two keys cannot have one hash."""
    await store.change_access(put(an_api_key(1)))
    before = await store.access()
    with pytest.raises(Unavailable):
        await store.change_access(
            put(an_api_key(2), a_revocation(), replace(an_api_key(1), id="again"))
        )
    assert await store.access() == before
    await store.change_access(put(an_api_key(2)))


async def test_changes_take_turns(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees what the ones before have changed, so limits hold on many nodes."""
    monkeypatch.setattr(module, "MAX_KEYS", 5)
    stores = [connect(), connect()]
    for store in stores:
        await store.open()
    results = await asyncio.gather(
        *(
            stores[number % 2].change_access(lambda seen, n=number: add_key(seen, an_api_key(n)))  # type: ignore[misc]  # -- the default binds the number
            for number in range(12)
        ),
        return_exceptions=True,
    )
    refused = [one for one in results if one is not None]
    assert len(refused) == 7
    assert all("there are 5 keys already" in str(one) for one in refused)
    assert len((await stores[0].access()).keys) == 5
    for store in stores:
        await store.close()


async def test_revocations_have_a_limit(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there may be changed, and those that are over make room."""
    monkeypatch.setattr(module, "MAX_REVOCATIONS", 2)
    first, second = (a_revocation("jti", str(n), until=NOW + 10 + n) for n in range(2))
    for one in (first, second, replace(first, created=NOW + 1)):
        await store.change_access(lambda seen, one=one: add_revocation(seen, one))  # type: ignore[misc]  # -- as above
    third = a_revocation("jti", "3", created=NOW + 2)
    with pytest.raises(BadChange, match="there are 2 revocations already"):
        await store.change_access(lambda seen: add_revocation(seen, third))
    later = replace(third, created=NOW + 10)
    await store.change_access(lambda seen: add_revocation(seen, later))
    assert (await stored(store))[1] == [second, later]


async def test_last_use_is_noted(connect: Connect) -> None:
    """The latest one counts, of whatever node. The version stays: all nodes need not read again."""
    here, there = connect(), connect()
    await here.open()
    await there.open()
    one, two, three = (an_api_key(n) for n in (1, 2, 3))
    await here.change_access(put(one, two, three))
    version = await here.access_version()
    await here.note_use({one.id: NOW, two.id: NOW + MINUTE, "absent": NOW})
    await there.note_use({one.id: NOW + MINUTE, two.id: NOW})
    await there.note_use({})
    used = [replace(key, last_used=NOW + MINUTE) for key in (one, two)]
    assert await stored(here) == ([*used, three], [])
    assert await there.access_version() == version
    await here.close()
    await there.close()


async def test_keys_do_not_disturb_a_recount(store: Database) -> None:
    """`verify` is about decisions; commits and retention leave keys as they are."""
    await store.change_access(put(an_api_key(1), *REVOCATIONS))
    before = await store.access()
    await store.commit([[kept(1), kept(2)]], NOW)
    await store.fold_names("project", [kept(1).project], remember=False)
    await store.prune(decisions_before=NOW + 1, minutes_before=NOW, limit=10)
    assert [one async for one in store.verify() if isinstance(one, Difference)] == []
    assert await store.access() == before


async def test_many_keys_are_changed_at_once(store: Database) -> None:
    """All of them are read and noted together."""
    count = 2_000
    await store.change_access(put(*(an_api_key(n) for n in range(count))))
    records = await store.access()
    assert len(records.keys) == count
    await store.note_use(dict.fromkeys(records.keys, NOW))
    assert {key.last_used for key in (await store.access()).keys.values()} == {NOW}
