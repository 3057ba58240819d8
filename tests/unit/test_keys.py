"""API keys and revocations: states, changes and their limits, and what is refused."""

from dataclasses import replace

import pytest

from routecast.core import keys as module
from routecast.core.access import ANYONE, Principal, Scope
from routecast.core.decision import MINUTE
from routecast.core.key_rows import key_row, pack_records, records_of, unpack_records
from routecast.core.keys import (
    KEY_ALPHABET,
    KEY_ID_LENGTH,
    KEY_SECRET_LENGTH,
    AccessRecords,
    ApiKey,
    KeyState,
    KeyTable,
    Revocation,
    RevocationId,
    RevocationKind,
    add_key,
    add_revocation,
    check_subject,
    check_token_id,
    delete_keys,
    drop_revocation,
    key_id_in,
    projects_of,
    revoke_key,
    rotate_key,
)
from routecast.core.times import SECOND
from routecast.errors import BadChange, BadCredential
from tests.support.decisions import HOUR, NOW
from tests.support.keys import a_revocation, an_api_key, text_of

KEY = an_api_key(1)
SECONDS = NOW / SECOND


def records(*items: ApiKey | Revocation) -> AccessRecords:
    keys = {one.id: one for one in items if isinstance(one, ApiKey)}
    revocations = {one.about: one for one in items if isinstance(one, Revocation)}
    return AccessRecords("v", keys, revocations)


def a_token(**fields: object) -> Principal:
    """Return the principal of a token of ana that was issued a minute ago."""
    given = {"subject": "ana", "credential": "t1", "issued": SECONDS - 60, "expires": SECONDS + 600}
    return Principal(**(given | fields))  # type: ignore[arg-type]


# -- keys -----------------------------------------------------------------------------------------


def test_key_is_accepted_until_it_ends() -> None:
    """It ends at the very moment, and a revoked key does not come back."""
    assert KEY.state(NOW) is KeyState.ACTIVE
    ending = replace(KEY, expires=NOW + 1)
    assert ending.state(NOW) is KeyState.ACTIVE
    assert ending.state(NOW + 1) is KeyState.EXPIRED
    assert replace(ending, revoked=NOW).state(NOW - 1) is KeyState.REVOKED


def test_text_of_a_key_can_be_recognised() -> None:
    """Its form is fixed; the secret has 256 bits, and neither hash nor text is in a log."""
    assert len(KEY_ALPHABET) ** KEY_SECRET_LENGTH > 2**256
    assert text_of(7) == f"rc_00000007_{'0' * 42}7"
    assert key_id_in(text_of(7)) == key_id_in("00000007") == key_id_in("rc_00000007") == "00000007"
    for other in (
        "",
        "rc_",
        "0000000",
        "000000077",
        "rc_00000007_",
        f"{text_of(7)}0",
        "search-app",
    ):
        assert key_id_in(other) is None
    assert len(KEY.id) == KEY_ID_LENGTH
    assert repr(KEY.digest) not in repr(KEY)


def test_holder_of_a_key_is_a_principal() -> None:
    """It has the name, scopes, projects and end of the key."""
    key = an_api_key(
        1,
        name="search",
        scopes=frozenset({Scope.WRITE}),
        projects=frozenset({"a"}),
        expires=NOW + HOUR,
    )
    principal = KeyTable(records(key, an_api_key(2))).identify(text_of(1), NOW)
    assert principal == Principal(
        "search",
        frozenset({Scope.WRITE}),
        frozenset({"a"}),
        SECONDS + 3600,
        key.id,
        SECONDS,
        is_key=True,
    )
    assert an_api_key(2).principal.expires is None


@pytest.mark.parametrize(
    "text",
    ["", "rc_", text_of(2), text_of(1)[:-1], text_of(1) + " ", text_of(1).upper(), "\udc80", "é"],
)
def test_unknown_key_is_refused(text: str) -> None:
    """The whole text must be the same, and any text may come."""
    with pytest.raises(BadCredential, match="the API key is unknown"):
        KeyTable(records(KEY)).identify(text, NOW)


def test_ended_key_is_refused() -> None:
    """Whoever has it learns why."""
    table = KeyTable(records(replace(KEY, expires=NOW), an_api_key(2, revoked=NOW)))
    with pytest.raises(BadCredential, match="has expired"):
        table.identify(text_of(1), NOW)
    assert table.identify(text_of(1), NOW - 1).credential == KEY.id
    with pytest.raises(BadCredential, match="was revoked"):
        table.identify(text_of(2), NOW)


def test_stream_of_a_key_ends_with_the_key() -> None:
    """Also if it was accepted with a later end, and if the key was deleted."""
    accepted = KEY.principal
    for held, is_revoked in (
        (KEY, False),
        (replace(KEY, expires=NOW + 1), False),
        (replace(KEY, expires=NOW), True),
        (replace(KEY, revoked=NOW), True),
        (an_api_key(2), True),
    ):
        assert KeyTable(records(held)).is_revoked(accepted, NOW) is is_revoked


def test_nobody_stays_without_a_credential() -> None:
    """The first key turns authentication on, also for streams that are open."""
    assert not KeyTable(records(a_revocation())).is_revoked(ANYONE, NOW)
    assert KeyTable(records(replace(KEY, revoked=NOW))).is_revoked(ANYONE, NOW)


def test_next_expiry_is_that_of_an_active_key() -> None:
    """Revoked keys have ended already, and others do not end."""
    keys = [an_api_key(n, expires=NOW + n) for n in range(4)]
    keys[2] = replace(keys[2], revoked=NOW)
    table = KeyTable(records(*keys, an_api_key(9)))
    assert [table.next_expiry(NOW + n) for n in range(4)] == [NOW + 1, NOW + 3, NOW + 3, None]


# -- changes of keys ------------------------------------------------------------------------------


def test_two_active_keys_have_two_names() -> None:
    """A name becomes free when its key ends."""
    new = an_api_key(2, name=KEY.name)
    assert add_key(records(), new).put_keys == [new]
    with pytest.raises(BadChange, match="00000001 is active under the name `key-1`"):
        add_key(records(KEY), new)
    for ended in (replace(KEY, revoked=NOW), replace(KEY, expires=NOW)):
        assert add_key(records(ended), new).put_keys == [new]


def test_keys_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do. Ended keys count: they are stored, too."""
    monkeypatch.setattr(module, "MAX_KEYS", 2)
    held = records(KEY, an_api_key(2, revoked=NOW))
    with pytest.raises(BadChange, match="there are 2 keys already: delete revoked"):
        add_key(held, an_api_key(3))
    with pytest.raises(BadChange, match="there are 2 keys already"):
        rotate_key(held, an_api_key(3), KEY.id, HOUR)


def test_id_is_not_used_twice() -> None:
    """It is random, and an old key must not change into a new one."""
    with pytest.raises(BadChange, match="try again"):
        add_key(records(KEY), an_api_key(1, name="other"))


def test_rotated_key_ends_after_the_overlap() -> None:
    """If it ended sooner, it still does."""
    new = an_api_key(2, name=KEY.name)
    change = rotate_key(records(KEY), new, KEY.id, HOUR)
    assert change.put_keys == [new, replace(KEY, expires=NOW + HOUR)]
    sooner = replace(KEY, expires=NOW + MINUTE)
    assert rotate_key(records(sooner), new, KEY.id, HOUR).put_keys == [new, sooner]
    for held, why in (
        (records(), "is not there any more"),
        (records(replace(KEY, expires=NOW)), "is expired"),
        (records(replace(KEY, revoked=NOW)), "is revoked"),
    ):
        with pytest.raises(BadChange, match=why):
            rotate_key(held, new, KEY.id, HOUR)


def test_revoked_key_stays_revoked() -> None:
    """The first revocation is the one that is kept."""
    assert revoke_key(records(KEY), KEY.id, NOW).put_keys == [replace(KEY, revoked=NOW)]
    assert revoke_key(records(replace(KEY, revoked=5)), KEY.id, NOW).is_empty
    with pytest.raises(BadChange, match="is not there any more"):
        revoke_key(records(), KEY.id, NOW)


def test_active_key_is_not_deleted() -> None:
    """Deleting is for tidying up. A key that is gone already is no error."""
    held = records(KEY, an_api_key(2, revoked=NOW), an_api_key(3, expires=NOW))
    ended = [an_api_key(2).id, an_api_key(3).id]
    assert delete_keys(held, [*ended, "absent"], NOW).drop_keys == ended
    with pytest.raises(BadChange, match="00000001 is active: revoke it first"):
        delete_keys(held, [*ended, KEY.id], NOW)


# -- revocations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revocation", "refused"),
    [
        (a_revocation("jti", "t1"), True),
        (a_revocation("jti", "t2"), False),
        (a_revocation("jti", "ana"), False),
        (a_revocation("subject", "ana"), True),
        (a_revocation("subject", "t1"), False),
        (a_revocation("subject", "ana", issued_before=NOW), True),
        (a_revocation("subject", "ana", issued_before=NOW - 60 * SECOND), False),
        (a_revocation("subject", "ana", until=NOW + 1), True),
        (a_revocation("subject", "ana", until=NOW), False),
        (a_revocation("issued_before", "", issued_before=NOW), True),
        (a_revocation("issued_before", "", issued_before=NOW - 60 * SECOND), False),
    ],
)
def test_revocation_refuses_tokens(revocation: Revocation, refused: bool) -> None:
    """It refuses those that it is about, if they were issued before its moment, until it is over.

    A key is no token, even if it has the name of a subject or the id of a token.
    """
    table = KeyTable(records(revocation, KEY))
    assert table.is_revoked(a_token(), NOW) is refused
    assert not table.is_revoked(replace(KEY.principal, subject="ana", issued=0), NOW)


def test_token_that_does_not_say_when_it_was_issued_is_refused() -> None:
    """It may have been issued before the moment. One without an id cannot be named by it."""
    table = KeyTable(records(a_revocation("issued_before", "", issued_before=1), KEY))
    assert table.is_revoked(a_token(issued=None), NOW)
    assert not table.is_revoked(a_token(credential="", issued=0.1), NOW)


def test_token_with_the_id_of_a_key_is_not_that_key() -> None:
    """Its issuer chose that id."""
    table = KeyTable(records(replace(KEY, revoked=NOW)))
    assert not table.is_revoked(a_token(credential=KEY.id), NOW)


def test_revocation_is_only_extended() -> None:
    """What is refused stays refused; one that is over is replaced."""
    old = a_revocation(issued_before=NOW, until=NOW + HOUR)
    new = a_revocation(created=NOW + 1, issued_before=NOW - 5, until=NOW + MINUTE)
    both = a_revocation(created=NOW + 1, issued_before=NOW, until=NOW + HOUR)
    assert add_revocation(records(old), new).put_revocations == [both]
    assert add_revocation(records(a_revocation()), new).put_revocations == [
        a_revocation(created=NOW + 1)
    ]
    over = replace(old, until=NOW + 1)
    assert add_revocation(records(over), new).put_revocations == [new]


def test_revocations_that_are_over_are_dropped() -> None:
    """They make room for others."""
    over = [a_revocation("jti", str(n), until=NOW - n) for n in range(3)]
    change = add_revocation(records(*over, a_revocation("jti", "open")), a_revocation())
    assert change.drop_revocations == [one.about for one in over]


def test_revocation_can_be_removed() -> None:
    """One that is not there is an error: the operator means another one."""
    about = RevocationId(RevocationKind.SUBJECT, "ana")
    assert drop_revocation(records(a_revocation()), about).drop_revocations == [about]
    with pytest.raises(BadChange, match="no such tokens are revoked"):
        drop_revocation(records(a_revocation("jti", "ana")), about)


# -- what operators enter, and what is stored -----------------------------------------------------


def test_names_are_checked() -> None:
    """No name disturbs a terminal or is cut."""
    check_subject("name", "Ana Sánchez")
    check_token_id("x" * 255)
    for bad in ("", "x" * 256, "a\u202eb", "a\nb", "\udc80"):
        with pytest.raises(BadChange, match="name: "):
            check_subject("name", bad)
        with pytest.raises(BadChange):
            check_token_id(bad)
    assert projects_of([]) is projects_of(["a", "*"]) is None
    assert projects_of(["a", "e\u0301"]) == frozenset({"a", "\u00e9"})
    for names in (["x" * 65], [""], [str(n) for n in range(1_001)]):
        with pytest.raises(BadChange, match="project"):
            projects_of(names)


def test_stored_form_is_read_back() -> None:
    """As rows and as bytes. Scopes of a newer version are left out."""
    held = records(
        KEY,
        an_api_key(2, scopes=frozenset(), projects=frozenset(), expires=1, revoked=2, last_used=3),
        an_api_key(3, projects=frozenset({"b", "a"})),
        a_revocation("jti", "t1", issued_before=1, until=2),
    )
    assert unpack_records(pack_records(held)) == held
    row = list(key_row(KEY))
    row[3] = "read everything"
    assert records_of("v", [row], []).keys[KEY.id].scopes == {Scope.READ}


@pytest.mark.parametrize(
    "packed",
    [b"", b"\xc0", b"\x93\xa1v\x90", pack_records(records(KEY))[:-4], b"\x93\xa1v\x91\x90\x90"],
)
def test_other_bytes_are_no_keys(packed: bytes) -> None:
    """Any program may have written them."""
    with pytest.raises(ValueError, match="no keys and revocations"):
        unpack_records(packed)
