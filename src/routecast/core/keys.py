"""API keys and revocations: what is stored of them, how it may change, and what it refuses.

A key is a text of 256 random bits, of which only the SHA-256 is stored: it cannot be guessed, so it
needs no slow hash. A key that exists never allows more: only its end can be set, and it loses a
project that is deleted.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from typing import Final, NamedTuple

from routecast.core.access import ALL_PROJECTS, ANYONE, Principal, Scope
from routecast.core.claims import MAX_SUBJECT, MAX_TOKEN_ID, MAX_TOKEN_PROJECTS
from routecast.core.texts import check_text, spelling
from routecast.core.times import SECOND
from routecast.errors import BadChange, BadCredential, Invalid
from routecast.protocol import MAX_NAME

# The form of a key: a beginning by which secret scanners find it, its id, and its secret.
KEY_PREFIX: Final = "rc_"
KEY_ID_LENGTH: Final = 8
KEY_SECRET_LENGTH: Final = 43  # of 62 characters, which is 256 bits
KEY_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY_OR_ID: Final = re.compile(
    rf"(?:{KEY_PREFIX})?([0-9A-Za-z]{{{KEY_ID_LENGTH}}})(?:_[0-9A-Za-z]{{{KEY_SECRET_LENGTH}}})?"
)
# Stored keys, with the revoked and expired ones; every node holds all of them in memory.
MAX_KEYS: Final = 10_000
MAX_REVOCATIONS: Final = 10_000


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key. Times are in microseconds since 1970.

    Attributes:
        id: The part of its text that is no secret.
        name: The name of its holder, which is the subject of its principal. After a rotation, two
            keys have it.
        digest: The SHA-256 of its text.
        scopes: What its holder may do.
        projects: The projects that its holder may see and write to; None for all.
        created: When it was created.
        expires: From when on it is refused; None for never.
        revoked: When it was revoked; None if it was not.
        last_used: The minute in which it was last used, as far as nodes have noted it; None for
            never.
    """

    id: str
    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]
    projects: frozenset[str] | None
    created: int
    expires: int | None = None
    revoked: int | None = None
    last_used: int | None = None

    def state(self, now: int) -> "KeyState":
        """Return whether it is accepted at a moment, and if not, why."""
        if self.revoked is not None:
            return KeyState.REVOKED
        if self.expires is not None and self.expires <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE

    @property
    def principal(self) -> Principal:
        """Its holder, as a principal."""
        return Principal(
            subject=self.name,
            scopes=self.scopes,
            projects=self.projects,
            expires=None if self.expires is None else self.expires / SECOND,
            credential=self.id,
            issued=self.created / SECOND,
            is_key=True,
        )


class KeyState(StrEnum):
    """Whether a key is accepted."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class RevocationKind(StrEnum):
    """Which tokens a revocation is about."""

    JTI = "jti"
    SUBJECT = "subject"
    ISSUED_BEFORE = "issued_before"


class RevocationId(NamedTuple):
    """Which tokens a revocation is about; there is at most one about the same."""

    kind: RevocationKind
    value: str  # the `jti` or `sub` of the tokens; "" for those of all subjects


@dataclass(frozen=True, slots=True)
class Revocation:
    """Tokens that are refused though they are valid. Times are in microseconds since 1970.

    Attributes:
        about: Which tokens it is about.
        issued_before: Only those that were issued before this moment, or do not say when; None for
            all.
        created: When it was made.
        until: From when on they are accepted again; None for never.
    """

    about: RevocationId
    issued_before: int | None
    created: int
    until: int | None = None

    def matches(self, issued: float | None, now: int) -> bool:
        """Whether it refuses, at a moment, a token that is in `about` and was issued at `issued`.

        `issued` is in seconds since 1970, None if the token does not say.
        """
        if self.until is not None and self.until <= now:
            return False
        return self.issued_before is None or issued is None or issued * SECOND < self.issued_before

    def and_also(self, other: "Revocation") -> "Revocation":
        """Return the revocation that refuses at least what this one and a newer one refuse."""
        return replace(
            other,
            issued_before=_later(self.issued_before, other.issued_before),
            until=_later(self.until, other.until),
        )


def _later(one: int | None, other: int | None) -> int | None:
    """Return the later of two moments, where None is later than all."""
    return None if one is None or other is None else max(one, other)


@dataclass(frozen=True, slots=True)
class AccessRecords:
    """All stored keys, by id, and revocations, as of one moment.

    `version` is another text after each change, and after no change the same.
    """

    version: str
    keys: Mapping[str, ApiKey]
    revocations: Mapping[RevocationId, Revocation]


@dataclass(frozen=True, slots=True)
class AccessChange:
    """What to change in stored keys and revocations, all of it or nothing.

    Of a key that exists, `put_keys` changes only `expires`, `revoked` and `projects`.
    """

    put_keys: Collection[ApiKey] = ()
    drop_keys: Collection[str] = ()
    put_revocations: Collection[Revocation] = ()
    drop_revocations: Collection[RevocationId] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        parts = self.put_keys, self.drop_keys, self.put_revocations, self.drop_revocations
        return not any(parts)


# Decides on a change from what is stored. Raises BadChange.
DecideChange = Callable[[AccessRecords], AccessChange]


# -- changes --------------------------------------------------------------------------------------


def add_key(records: AccessRecords, key: ApiKey) -> AccessChange:
    """Return the change that stores a new key. Raises BadChange."""
    for held in records.keys.values():
        if held.name == key.name and held.state(key.created) is KeyState.ACTIVE:
            raise BadChange(
                f"the key {held.id} is active under the name `{key.name}`: rotate or revoke it, or "
                "choose another name"
            )
    _require_room(records, key)
    return AccessChange(put_keys=[key])


def rotate_key(records: AccessRecords, key: ApiKey, replaced: str, overlap: int) -> AccessChange:
    """Return the change that stores a new key, and ends the key that it replaces after a while.

    `overlap` is that time, in microseconds. Raises BadChange.
    """
    old = records.keys.get(replaced)
    if old is None or (state := old.state(key.created)) is not KeyState.ACTIVE:
        what = "is not there any more" if old is None else f"is {state}"
        raise BadChange(f"the key {replaced} {what}, and cannot be rotated: create another one")
    _require_room(records, key)
    ends = key.created + overlap
    expires = ends if old.expires is None else min(old.expires, ends)
    return AccessChange(put_keys=[key, replace(old, expires=expires)])


def _require_room(records: AccessRecords, key: ApiKey) -> None:
    if len(records.keys) >= MAX_KEYS:
        raise BadChange(
            f"there are {MAX_KEYS:,} keys already: delete revoked and expired ones with `routecast "
            "keys delete`"
        )
    if key.id in records.keys:
        raise BadChange("another key has this random id: try again")


def revoke_key(records: AccessRecords, identity: str, now: int) -> AccessChange:
    """Return the change that revokes a key; none if it is revoked. Raises BadChange."""
    key = records.keys.get(identity)
    if key is None:
        raise BadChange(f"the key {identity} is not there any more")
    return AccessChange(put_keys=[] if key.revoked is not None else [replace(key, revoked=now)])


def delete_keys(records: AccessRecords, identities: Collection[str], now: int) -> AccessChange:
    """Return the change that deletes keys. Raises BadChange if one of them is active."""
    for identity in identities:
        key = records.keys.get(identity)
        if key is not None and key.state(now) is KeyState.ACTIVE:
            raise BadChange(f"the key {identity} is active: revoke it first")
    return AccessChange(drop_keys=[one for one in identities if one in records.keys])


def without_project(records: AccessRecords, project: str, now: int) -> AccessChange:
    """Return the change that takes a deleted project from all keys.

    Keys for no other project are revoked. Keys for all projects stay as they are.
    """
    changed = []
    for key in records.keys.values():
        if key.projects is None or project not in key.projects:
            continue
        if rest := key.projects - {project}:
            changed.append(replace(key, projects=rest))
        elif key.revoked is None:
            changed.append(replace(key, revoked=now))
    return AccessChange(put_keys=changed)


def add_revocation(records: AccessRecords, new: Revocation) -> AccessChange:
    """Return the change that revokes tokens. Raises BadChange.

    Revocations that are over are dropped. A revocation about the same tokens is only ever extended:
    what it refuses stays refused.
    """
    now = new.created
    over = [
        one.about
        for one in records.revocations.values()
        if one.until is not None and one.until <= now and one.about != new.about
    ]
    held = records.revocations.get(new.about)
    if held is None and len(records.revocations) - len(over) >= MAX_REVOCATIONS:
        raise BadChange(
            f"there are {MAX_REVOCATIONS:,} revocations already: revoke whole subjects or all "
            "tokens issued before a moment, and remove others with `routecast token allow`"
        )
    if held is not None and (held.until is None or held.until > now):
        new = held.and_also(new)
    return AccessChange(put_revocations=[new], drop_revocations=over)


def drop_revocation(records: AccessRecords, about: RevocationId) -> AccessChange:
    """Return the change that ends a revocation. Raises BadChange if there is none."""
    if about not in records.revocations:
        raise BadChange("no such tokens are revoked; see `routecast token revocations`")
    return AccessChange(drop_revocations=[about])


# -- reading what an operator enters --------------------------------------------------------------


def digest_of(text: str) -> bytes:
    """Return the SHA-256 by which a key is found."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def key_text(identity: str, secret: str) -> str:
    """Return the text of a key from its random id and its random secret."""
    return f"{KEY_PREFIX}{identity}_{secret}"


def key_id_in(text: str) -> str | None:
    """Return the id in a text: an id, also with the prefix, or a whole key; None if it is none."""
    found = _KEY_OR_ID.fullmatch(text)
    return found[1] if found else None


def check_subject(what: str, text: str) -> None:
    """Raise BadChange, naming what it is, if a text cannot be the subject of a principal."""
    _checked(what, text, MAX_SUBJECT)


def check_token_id(text: str) -> None:
    """Raise BadChange if a text cannot be the id (`jti`) of a token."""
    _checked("jti", text, MAX_TOKEN_ID)


def projects_of(names: Collection[str]) -> frozenset[str] | None:
    """Return the projects of a new key; None for all. Raises BadChange."""
    if not names or ALL_PROJECTS in names:
        return None
    if len(names) > MAX_TOKEN_PROJECTS:
        raise BadChange(f"projects: a key has at most {MAX_TOKEN_PROJECTS:,}, or all with `*`")
    return frozenset(spelling(_checked("project", name, MAX_NAME)) for name in names)


def _checked(what: str, text: str, longest: int) -> str:
    if not 0 < len(text) <= longest:
        raise BadChange(f"{what}: must have 1 to {longest} characters")
    try:
        check_text(what, text)
    except Invalid as error:
        raise BadChange(str(error)) from None
    return text


# -- deciding -------------------------------------------------------------------------------------


def _lost(key: ApiKey, principal: Principal) -> bool:
    """Whether a key has lost a project that a principal of it, made before, may still see."""
    if key.projects is None or principal.projects is None:
        return False
    return not principal.projects <= key.projects


class KeyTable:
    """Keys and revocations, arranged so that each question costs a few lookups."""

    def __init__(self, records: AccessRecords) -> None:
        self.version = records.version
        self._keys = records.keys
        self._by_digest = {key.digest: (key, key.principal) for key in records.keys.values()}
        self._revocations = records.revocations

    def __len__(self) -> int:
        return len(self._keys)

    def identify(self, text: str, now: int) -> Principal:
        """Return the principal of a key at a moment (microseconds). Raises BadCredential.

        The lookup compares hashes. Its time may show how far two of them are equal, but to make
        use of that, one would have to find keys with a certain hash.
        """
        found = self._by_digest.get(digest_of(text))
        if found is None:
            raise BadCredential("the API key is unknown")
        key, principal = found
        if (state := key.state(now)) is not KeyState.ACTIVE:
            what = "was revoked" if state is KeyState.REVOKED else "has expired"
            raise BadCredential(f"the API key {what}")
        return principal

    def is_revoked(self, principal: Principal, now: int) -> bool:
        """Whether a credential that was accepted is refused at a moment (microseconds).

        `ANYONE`, who came in without one, is refused as soon as there is a key.
        """
        if principal == ANYONE:
            return bool(self._keys)
        if principal.is_key:
            key = self._keys.get(principal.credential)
            return key is None or key.state(now) is not KeyState.ACTIVE or _lost(key, principal)
        if not self._revocations:
            return False
        abouts = (
            (RevocationKind.JTI, principal.credential),
            (RevocationKind.SUBJECT, principal.subject),
            (RevocationKind.ISSUED_BEFORE, ""),
        )
        found = (self._revocations.get(RevocationId(*about)) for about in abouts)
        return any(one is not None and one.matches(principal.issued, now) for one in found)

    def next_expiry(self, after: int) -> int | None:
        """Return the first moment after another at which a key expires; None if none does."""
        return min(
            (
                key.expires
                for key in self._keys.values()
                if key.revoked is None and key.expires is not None and key.expires > after
            ),
            default=None,
        )
