"""The authenticator: whose a credential is, and what it remembers of it."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routecast.adapters.jwt_keys import JwtVerifier, TokenKey, secret_key
from routecast.core.access import ANYONE, Principal, Scope
from routecast.core.claims import LEEWAY, MAX_TOKEN, ClaimRules
from routecast.edge.access import Access
from routecast.errors import BadCredential, Unavailable
from routecast.instruments import Instruments
from routecast.services import authenticator as module
from routecast.services import key_refresh
from routecast.services.authenticator import Authenticator, OnRevoked
from routecast.services.key_refresh import UNKNOWN_KEY_SECONDS, KeyRefresh
from routecast.services.supervisor import Supervisor
from tests.support.clock import HeldClock, HeldTimers
from tests.support.running_services import running, until
from tests.support.tokens import SECOND, SECRET, private, token


class Verifier(JwtVerifier):
    """The verifier of tokens, which counts signatures and fetches."""

    verified = 0
    fetched = 0

    def verify(self, token: str) -> bytes | None:
        self.verified += 1
        return super().verify(token)

    async def fetch(self) -> bool:
        self.fetched += 1
        return await super().fetch()


class Keys:
    """API keys and revocations that a test sets."""

    def __init__(self, keys: dict[str, Principal] | None = None) -> None:
        self.keys = keys or {}
        self.known = True
        self.revoked: set[str] = set()
        self.followers: list[OnRevoked] = []

    @property
    def required(self) -> bool:
        return not self.known or bool(self.keys)

    def require_known(self) -> None:
        if not self.known:
            raise Unavailable("not known")

    def identify(self, key: str) -> Principal:
        self.require_known()
        if key not in self.keys:
            raise BadCredential("unknown")
        return self.keys[key]

    def check(self, principal: Principal) -> None:
        self.require_known()
        if principal.subject in self.revoked:
            raise BadCredential("revoked")

    def revoke(self, subject: str) -> None:
        self.revoked.add(subject)
        for follower in self.followers:
            follower(lambda principal: principal.subject in self.revoked)


@pytest.fixture
def verifier() -> Verifier:
    """A verifier with one secret."""
    return Verifier([secret_key(SECRET)])


@pytest.fixture
def authenticator(verifier: Verifier, clock: HeldClock) -> Authenticator:
    """An authenticator for tokens alone."""
    return Authenticator(verifier, None, ClaimRules(), clock)


def test_without_keys_everyone_is_anyone(clock: HeldClock) -> None:
    """Authentication is off: nothing is read, and everything is allowed."""
    for keys in (None, Keys()):
        authenticator = Authenticator(None, keys, ClaimRules(), clock)
        assert not authenticator.required
        assert authenticator.recognise("anything") is ANYONE


def test_nothing_is_refused_for_good_while_it_is_unknown_whether_there_are_keys(
    clock: HeldClock,
) -> None:
    """With a key for tokens, authentication is on in any case."""
    keys = Keys()
    keys.known = False
    authenticator = Authenticator(None, keys, ClaimRules(), clock)
    assert authenticator.required
    with pytest.raises(Unavailable, match="not known"):
        authenticator.require_known()
    for credential in (token(), "rc_x"):
        with pytest.raises(Unavailable, match="not known"):
            authenticator.recognise(credential)
    Authenticator(Verifier([secret_key(SECRET)]), keys, ClaimRules(), clock).require_known()


def test_a_token_is_recognised(authenticator: Authenticator) -> None:
    """A good token is its subject; a bad one says why."""
    assert authenticator.required
    found = authenticator.recognise(token(scope="read write"))
    assert found is not None
    assert (found.subject, found.scopes) == ("ada", {Scope.READ, Scope.WRITE})
    with pytest.raises(BadCredential, match="no key of this server"):
        authenticator.recognise(token(number=1))


async def test_authenticate_is_the_same_if_all_keys_are_at_hand(
    authenticator: Authenticator,
) -> None:
    """There is nothing to wait for."""
    assert await authenticator.authenticate(token()) == authenticator.recognise(token())
    with pytest.raises(BadCredential):
        await authenticator.authenticate("x")


def test_a_token_is_verified_once(
    authenticator: Authenticator, verifier: Verifier, clock: HeldClock
) -> None:
    """It is remembered until it expires, and not beyond: leeway is for tokens that are read."""
    given = token(exp=SECOND + 60)
    for _ in range(3):
        authenticator.recognise(given)
    assert verifier.verified == 1
    clock.moment = (SECOND + 59) * 10**6
    authenticator.recognise(given)
    assert verifier.verified == 1
    clock.moment = (SECOND + 61) * 10**6
    for _ in range(2):
        authenticator.recognise(given)
    assert verifier.verified == 3
    clock.moment = int((SECOND + 60 + LEEWAY) * 10**6)
    with pytest.raises(BadCredential, match="expired"):
        authenticator.recognise(given)


def test_few_tokens_are_remembered(
    authenticator: Authenticator, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was used longest ago is forgotten; bad ones are not remembered."""
    monkeypatch.setattr(module, "MAX_VERIFIED", 2)
    first, second, third = (token(sub=name) for name in ("a", "b", "c"))
    for one in (first, second, first, third):
        authenticator.recognise(one)
    assert verifier.verified == 3
    authenticator.recognise(first)
    authenticator.recognise(third)
    assert verifier.verified == 3
    authenticator.recognise(second)
    assert verifier.verified == 4
    for _ in range(2):
        with pytest.raises(BadCredential):
            authenticator.recognise(token(number=1))
    assert verifier.verified == 6


def test_api_keys_are_identified(clock: HeldClock, verifier: Verifier) -> None:
    """What begins with `rc_` is a key, everything else a token."""
    keys = Keys({"rc_1": Principal("wall")})
    authenticator = Authenticator(None, keys, ClaimRules(), clock)
    assert authenticator.required
    assert authenticator.recognise("rc_1") == Principal("wall")
    with pytest.raises(BadCredential, match="unknown"):
        authenticator.recognise("rc_2")
    with pytest.raises(BadCredential, match="no tokens"):
        authenticator.recognise(token())
    keys.known = False
    with pytest.raises(Unavailable):
        authenticator.recognise("rc_1")
    alone = Authenticator(verifier, None, ClaimRules(), clock)
    with pytest.raises(BadCredential, match="no API keys"):
        alone.recognise("rc_1")


def test_what_stands_for_a_token_ends_with_it(
    authenticator: Authenticator, clock: HeldClock
) -> None:
    """A ticket, too: it must not make a token valid for longer. The leeway is the same."""
    principal = authenticator.recognise(token(sub="ada"))
    assert principal is not None
    assert principal.expires is not None
    authenticator.check(principal)
    clock.moment = round((principal.expires + LEEWAY) * 1_000_000)
    with pytest.raises(BadCredential, match="expired"):
        authenticator.check(principal)


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_has_waited_is_let_in_only_if_still_valid(
    verifier: Verifier, clock: HeldClock, when: str
) -> None:
    """There was no stream to close when the credential was revoked."""
    keys = Keys()
    authenticator = Authenticator(verifier, keys, ClaimRules(), clock)
    access = Access(authenticator)
    principal = authenticator.recognise(token(sub="eve"))
    assert principal is not None
    access.require_valid(principal)
    if when == "after":
        keys.revoke("eve")
        with pytest.raises(BadCredential, match="revoked"):
            access.require_valid(principal)


def test_who_has_waited_comes_back_later_while_revocations_are_unknown(clock: HeldClock) -> None:
    """The credential may be good, so the client is not told that it is bad."""
    keys = Keys({"rc_1": Principal("ada")})
    access = Access(Authenticator(None, keys, ClaimRules(), clock))
    keys.known = False
    for principal in (Principal("ada"), ANYONE):
        with pytest.raises(Unavailable):
            access.require_valid(principal)


def test_who_came_without_a_credential_is_not_let_in_once_there_is_a_key(clock: HeldClock) -> None:
    """The first key closes open streams, and so those that are about to open."""
    keys = Keys()
    access = Access(Authenticator(None, keys, ClaimRules(), clock))
    access.require_valid(ANYONE)
    keys.keys["rc_1"] = Principal("first")
    with pytest.raises(BadCredential) as caught:
        access.require_valid(ANYONE)
    assert not caught.value.invalid


def test_authentication_counts_as_on_while_keys_are_unknown(clock: HeldClock) -> None:
    """A key may exist, so nobody is let in."""
    keys = Keys()
    keys.known = False
    assert Authenticator(None, keys, ClaimRules(), clock).required


def test_a_revoked_token_is_refused_although_it_is_remembered(
    verifier: Verifier, clock: HeldClock
) -> None:
    """Streams hear of it by a predicate over principals."""
    keys = Keys()
    authenticator = Authenticator(verifier, keys, ClaimRules(), clock)
    told: list[Callable[[Principal], bool]] = []
    authenticator.followers.append(told.append)
    ada, eve = token(sub="ada"), token(sub="eve")
    principals = [authenticator.recognise(one) for one in (ada, eve)]
    keys.revoke("eve")
    assert authenticator.recognise(ada) == principals[0]
    with pytest.raises(BadCredential, match="revoked"):
        authenticator.recognise(eve)
    assert [told[0](one) for one in principals if one is not None] == [False, True]


@pytest.mark.parametrize(
    "credential",
    [
        "",
        " ",
        ".",
        "..",
        "...",
        "a.b.c",
        "x" * 100_000,
        "." * 100_000,
        "rc_" + "x" * 100_000,
        "\u00e9.\u00e9.\u00e9",
        "\ud800",
        "\0",
        "a" * (MAX_TOKEN - 4) + ".b.c",
        "e30.e30.",
        "bnVsbA.bnVsbA.bnVsbA",
    ],
)
def test_what_is_no_credential(authenticator: Authenticator, credential: str) -> None:
    """Whatever is sent is a bad credential, at once."""
    with pytest.raises(BadCredential):
        authenticator.recognise(credential)


@given(st.text(max_size=300) | st.text("abcdefAB0123-_.=e30", max_size=300))
def test_any_text_is_no_credential(credential: str) -> None:
    """It is a bad credential, and never another error."""
    authenticator = Authenticator(Verifier([secret_key(SECRET)]), None, ClaimRules(), HeldClock())
    with pytest.raises(BadCredential) as refused:
        authenticator.recognise(credential)
    assert len(credential) < 10 or credential not in str(refused.value)


# -- keys of an identity provider -----------------------------------------------------------------


class Provider:
    """An identity provider whose keys a test changes; `away` makes it fail."""

    def __init__(self) -> None:
        self.keys: list[TokenKey] = [provided("one", 0)]
        self.away = False

    async def fetch(self) -> Sequence[TokenKey]:
        if self.away:
            raise Unavailable("it is away")
        return self.keys


def provided(kid: str, number: int) -> TokenKey:
    return TokenKey("EdDSA", private("EdDSA", number).public_key(), kid)


def signed(kid: str, number: int, **claims: object) -> str:
    return token("EdDSA", number=number, header={"kid": kid}, **claims)


class Fetching:
    """An authenticator with the keys of a provider, and all that it is made of."""

    def __init__(self, clock: HeldClock, instruments: Instruments) -> None:
        self.provider = Provider()
        self.verifier = Verifier([], self.provider.fetch)
        self.timers = HeldTimers()
        self.supervisor = Supervisor(instruments)
        self.refresh = KeyRefresh(self.verifier, self.timers, self.supervisor)
        self.authenticator = Authenticator(self.verifier, None, ClaimRules(), clock, self.refresh)


@pytest.fixture
def fetching(clock: HeldClock, instruments: Instruments) -> Fetching:
    """An authenticator that has not fetched its keys yet."""
    return Fetching(clock, instruments)


async def test_keys_are_fetched_at_the_start(fetching: Fetching) -> None:
    """A request that comes before waits for them."""
    given = signed("one", 0)
    assert fetching.authenticator.recognise(given) is None
    async with running(fetching.refresh.run()):
        assert (await fetching.authenticator.authenticate(given)).subject == "ada"
        assert fetching.authenticator.recognise(given) is not None
    assert fetching.verifier.fetched == 1


async def test_unknown_keys_cause_one_fetch_a_minute(fetching: Fetching) -> None:
    """A flood of them is refused at once, and a key that is new is found in the next minute."""
    async with running(fetching.refresh.run()):
        await until(lambda: fetching.refresh.has_keys)
        for number in range(100):
            with pytest.raises(BadCredential, match="not known"):
                await fetching.authenticator.authenticate(signed(f"flood {number}", 1))
        assert fetching.verifier.fetched == 1
        fetching.provider.keys.append(provided("two", 1))
        fetching.timers.moment += UNKNOWN_KEY_SECONDS
        assert (await fetching.authenticator.authenticate(signed("two", 1))).subject == "ada"
        assert fetching.verifier.fetched == 2
        with pytest.raises(BadCredential):
            await fetching.authenticator.authenticate(signed("three", 1))
        assert fetching.verifier.fetched == 2


async def test_a_withdrawn_key_is_not_used_any_more(fetching: Fetching) -> None:
    """Tokens that were verified with it are verified again."""
    given = signed("one", 0)
    async with running(fetching.refresh.run()):
        await fetching.authenticator.authenticate(given)
        fetching.provider.keys = [provided("two", 1)]
        fetching.timers.moment += UNKNOWN_KEY_SECONDS
        await fetching.authenticator.authenticate(signed("two", 1))
        with pytest.raises(BadCredential, match="not known"):
            await fetching.authenticator.authenticate(given)


async def test_known_keys_survive_an_outage(
    fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is `failing`, and works again by itself."""
    monkeypatch.setattr(key_refresh, "FIRST_REFRESH_PAUSE", 0.01)
    monkeypatch.setattr(key_refresh, "KEY_REFRESH_SECONDS", 0.01)
    async with running(fetching.refresh.run()):
        await until(lambda: fetching.refresh.has_keys)
        fetching.provider.away = True
        await until(lambda: "jwks" in fetching.supervisor.failing)
        assert fetching.supervisor.failing["jwks"].last_error == "it is away"
        assert (await fetching.authenticator.authenticate(signed("one", 0))).subject == "ada"
        fetching.provider.away = False
        await until(lambda: not fetching.supervisor.failing)


async def test_before_the_first_fetch_succeeds_tokens_are_not_refused_for_good(
    fetching: Fetching,
) -> None:
    """The answer is to try again later, and the keys are fetched as soon as that is possible."""
    fetching.provider.away = True
    async with running(fetching.refresh.run()):
        await until(lambda: fetching.supervisor.failing)
        with pytest.raises(Unavailable):
            await fetching.authenticator.authenticate(signed("one", 0))
        with pytest.raises(BadCredential):  # for which no key would help
            await fetching.authenticator.authenticate("x")
        fetching.provider.away = False
        fetching.timers.moment += UNKNOWN_KEY_SECONDS
        assert (await fetching.authenticator.authenticate(signed("one", 0))).subject == "ada"


async def test_a_fetch_that_does_not_come_ends_the_wait(
    fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request waits for ever, even if the service does not run."""
    monkeypatch.setattr(key_refresh, "REFRESH_WAIT_SECONDS", 0.01)
    with pytest.raises(Unavailable):
        await fetching.authenticator.authenticate(signed("one", 0))
