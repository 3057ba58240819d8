"""Access: whose request it is, by the credential in it; for all edges.

A credential (a token or an API key) comes as `Authorization: Bearer` (RFC 6750, 2.1). A browser
lets a page add nothing to a WebSocket but subprotocols, so there it may also be one of these:
`routecast.bearer.` and the credential in base64url. It is never accepted in a URL, because servers
and proxies log URLs, and browsers remember them.

Two things may stand for it: a ticket, which is the only one that may be in a URL and opens one
stream, and a session, whose cookie a browser sends by itself. A browser does that for pages of all
sites, so a cookie counts for pages of this server only.
"""

import asyncio
import re
from base64 import urlsafe_b64decode
from binascii import Error
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import unquote_plus

from starlette.types import Scope as AsgiScope

from routecast.core.access import ANYONE, Principal
from routecast.core.sites import Sites
from routecast.edge.proxies import SECURE_SCHEMES, Proxies, is_loopback, limit_key_of, remote_of
from routecast.edge.proxy_sign_in import AssertionIn, NamedIn, ProxySignIn
from routecast.edge.slow_refusals import SlowRefusals
from routecast.errors import (
    BadCredential,
    BadHead,
    BadParameter,
    CredentialInUrl,
    Forbidden,
    RoutecastError,
    Unavailable,
)
from routecast.services.authenticator import Authenticator
from routecast.services.person_rules import PersonRules
from routecast.services.sessions import Sessions
from routecast.services.tickets import Tickets

BEARER_PROTOCOL: Final = b"routecast.bearer."
# Parameters in which other servers take a credential.
CREDENTIAL_PARAMETERS: Final = frozenset({"token", "access_token", "key", "api_key"})
TICKET_PARAMETER: Final = "ticket"
# The streams that a ticket opens.
SOCKET_PATH: Final = "/ws/metrics"
TICKET_PATHS: Final = frozenset({SOCKET_PATH, "/sse/metrics"})
# The cookie of a session, and the one behind TLS: a browser takes that one only from this very host
# (RFC 6265bis, 4.1.3.2).
SESSION_COOKIE: Final = "routecast_session"
SECURE_SESSION_COOKIE: Final = "__Host-routecast_session"
# Parameters of a query, as `view.read_parameters` has it. A head has room for 32,000 empty ones.
MAX_PARAMETERS: Final = 1_000
# Requests and handshakes that wait until their credential is verified, for example because the keys
# of an identity provider are fetched; and the seconds for which each may wait. The number is that
# of each kind of credential, so that a slow provider does not keep sessions and tickets waiting.
MAX_VERIFYING: Final = 256
# Those of one address, also of each kind: a quarter, because many people may share an address.
MAX_VERIFYING_OF_ADDRESS: Final = 64
VERIFY_SECONDS: Final = 5.0
# Subprotocols of an upgrade with a credential, and cookies of a request. Browsers send a few, and a
# head has room for 32,000.
MAX_SUBPROTOCOLS: Final = 100
MAX_COOKIES: Final = 1_000

# The characters of a token (RFC 6750, 2.1), which are also those of API keys.
_BEARER: Final = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/-]+=*")
_BASE64URL: Final = re.compile(rb"[A-Za-z0-9_-]+")
_PRINCIPAL: Final = "routecast.principal"
SEVERAL: Final = "a request must have one credential, and this one has several"
_HOW: Final = "send a token or an API key as `Authorization: Bearer`"

# Methods that change nothing. A browser sends no `Origin` with some of them.
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_PAGES: Final = frozenset({"same-origin", "none"})


@dataclass(frozen=True, slots=True)
class TicketIn:
    """A ticket in a request, and the address of its client, as limits count it."""

    text: str
    address: str


@dataclass(frozen=True, slots=True)
class CookieIn:
    """The cookie of a session in a request."""

    text: str


# What a request proves its client with; a text is a token or an API key.
Credential = str | TicketIn | CookieIn | NamedIn | AssertionIn


class Access:
    """Tells whose request it is. Without an authenticator, authentication is off.

    Without `tickets` or `sessions` there are none. `proxy` finds the people whom a proxy signs in,
    and `people` their principals. With `insecure`, credentials may come over plain HTTP from other
    machines.
    """

    def __init__(
        self,
        authenticator: Authenticator | None = None,
        tickets: Tickets | None = None,
        sessions: Sessions | None = None,
        sites: Sites | None = None,
        slow_refusals: SlowRefusals | None = None,
        proxy: ProxySignIn | None = None,
        people: PersonRules | None = None,
        *,
        insecure: bool = False,
    ) -> None:
        self.insecure = insecure
        self._authenticator = authenticator
        self._tickets = tickets
        self._sessions = sessions
        self._sites = sites or Sites()
        self.slow_refusals = slow_refusals or SlowRefusals()
        self._proxy = proxy or ProxySignIn(Proxies(""))
        self._people = people
        # How many are being verified, by the kind of credential, and by address.
        self._verifying: defaultdict[type[Credential], Counter[str]] = defaultdict(Counter)

    @property
    def required(self) -> bool:
        """Whether authentication is on, or not known to be off."""
        return self._authenticator is not None and self._authenticator.required

    def recognise(self, credential: Credential | None) -> Principal | None:
        """Return whose credential it is, at once; None if `authenticate` must be awaited for that.

        Raises BadCredential, also if there is none, and Unavailable.
        """
        if self._authenticator is None:
            return ANYONE
        if credential is None:
            if not self.required:
                return ANYONE
            self._authenticator.require_known()  # otherwise the client would take it for final
            raise BadCredential(f"a credential is required: {_HOW}", invalid=False)
        if isinstance(credential, str):
            return self._authenticator.recognise(credential)
        if not self.required:
            return ANYONE
        if isinstance(credential, CookieIn) and self._sessions is not None:
            return self._sessions.recognise(credential.text)
        if isinstance(credential, NamedIn | AssertionIn) and self._people is not None:
            return self._recognise_person(credential, self._people, self._authenticator)
        return None

    def _recognise_person(
        self, said: NamedIn | AssertionIn, people: PersonRules, authenticator: Authenticator
    ) -> Principal | None:
        """Return the principal of a person whom a proxy has signed in; None as `recognise`."""
        if isinstance(said, NamedIn):
            principal = people.named(said.text, said.groups)
        else:
            found = people.assertions.recognise(said.text)
            if found is None:
                return None
            principal = found
        authenticator.check(principal)
        self._notice(principal)
        return principal

    def _notice(self, principal: Principal) -> None:
        """Have the streams of a person end when the person signs out, also without a session."""
        if principal.by_proxy and not principal.session and self._sessions is not None:
            self._sessions.notice(principal)

    async def authenticate(self, credential: Credential, address: str) -> Principal:
        """Return whose credential it is, within VERIFY_SECONDS. Raises BadCredential, Unavailable.

        `address` is its client's, as limits count it. Cancelling it is safe.
        """
        assert self._authenticator is not None
        verifying = self._verifying[type(credential)]
        if verifying.total() >= MAX_VERIFYING:
            raise Unavailable("too many credentials are being verified")
        if verifying[address] >= MAX_VERIFYING_OF_ADDRESS:
            raise Unavailable("too many credentials of this address are being verified")
        verifying[address] += 1
        try:
            async with asyncio.timeout(VERIFY_SECONDS):
                principal = await self._verify(credential, self._authenticator)
        except TimeoutError:
            raise Unavailable("the credential could not be verified in time") from None
        finally:
            verifying[address] -= 1
            if not verifying[address]:
                del verifying[address]
        # It may have been revoked after it was verified, before this task had its turn.
        if isinstance(credential, str):
            return self._authenticator.recognise(credential) or principal
        self._authenticator.check(principal)
        self._notice(principal)
        return principal

    async def _verify(self, credential: Credential, authenticator: Authenticator) -> Principal:
        if isinstance(credential, str):
            return await authenticator.authenticate(credential)
        if isinstance(credential, CookieIn):
            if self._sessions is None:
                raise BadCredential("this server has no sessions")
            return await self._sessions.find(credential.text)
        if isinstance(credential, AssertionIn) and self._people is not None:
            return await self._people.assertions.authenticate(credential.text)
        if self._tickets is None or not isinstance(credential, TicketIn):
            raise BadCredential("this server has no tickets")
        principal = await self._tickets.redeem(credential.text, credential.address)
        if principal.session and self._sessions is not None:
            # So that this node notices the end of the session.
            return await self._sessions.find_by_id(principal.session)
        return principal

    async def identify(self, credential: Credential | None, address: str) -> Principal:
        """Return whose credential it is. Raises as `authenticate` does, which has `address`."""
        principal = self.recognise(credential)
        if principal is None:
            assert credential is not None
            principal = await self.authenticate(credential, address)
        return principal

    def require_valid(self, principal: Principal) -> None:
        """Raise BadCredential if a principal that was let in would be refused now.

        Call it when a client begins its stream, or has sent its decisions, some time after its
        request: a revocation in between had no stream to close. Raises Unavailable while it is not
        known whether there are any.
        """
        if self._authenticator is None:
            return
        if principal is ANYONE:
            if self.required:
                self._authenticator.require_known()
                raise BadCredential(f"a credential is required now: {_HOW}", invalid=False)
            return
        self._authenticator.check(principal)
        if principal.session and self._sessions is not None:
            self._sessions.require(principal)

    async def refused(self, error: RoutecastError, scope: AsgiScope) -> RoutecastError:
        """Return the answer to a request that is refused, after the delay that it deserves."""
        credential = text_of_credential(partial(self.credential_of, scope))
        return await self.slow_refusals.refused(error, limit_key_of(scope), credential)

    # -- credentials in requests ----------------------------------------------------------------

    def require_private(self, address: str, *, secure: bool) -> None:
        """Raise Forbidden if others on the way could read the credential of a request.

        `address` is its client's, and `secure` whether the client uses TLS.
        """
        if not (secure or self.insecure or is_loopback(address)):
            raise Forbidden(
                "a credential came over plain HTTP, where others can read it, so make a new one, "
                "and use https; behind a proxy that speaks it, have the proxy set "
                "`X-Forwarded-Proto` and list it in ROUTECAST_TRUSTED_PROXIES; in a network that "
                "you trust, start the server with --insecure"
            )

    def require_private_request(self, scope: AsgiScope) -> None:
        """Raise Forbidden if others could read a credential in an ASGI request."""
        client = scope.get("client")
        self.require_private(str(client[0]) if client else "", secure=is_secure(scope))

    def credential_of(self, scope: AsgiScope) -> Credential | None:
        """Return the credential of an ASGI request; None if it has none.

        Raises BadCredential, BadHead, Forbidden, and CredentialInUrl if it is in the URL.
        """
        found = self._find_credential(scope)
        if found is not None:
            self.require_private_request(scope)
        return found

    def _find_credential(self, scope: AsgiScope) -> Credential | None:
        is_socket = scope["type"] == "websocket"
        fields: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            fields.setdefault(name, []).append(value)
        offers = fields.get(b"sec-websocket-protocol", []) if is_socket else []
        bearers = [bearer for offer in offers for bearer in split_bearers(offer)[1]]
        ticket = read_query(scope["query_string"], takes_ticket=_takes_ticket(scope))
        given = find_credential(_last(fields, b"authorization"), bearers)
        if ticket is not None:
            if given is not None:
                raise BadHead(SEVERAL)
            return TicketIn(ticket, limit_key_of(scope))
        if given is not None:
            return given
        return self.added_in(
            fields,
            remote=remote_of(scope),
            secure=is_secure(scope),
            must_prove=is_socket or scope.get("method", "GET") not in _SAFE_METHODS,
        )

    def added_in(
        self,
        fields: Mapping[bytes, Sequence[bytes]],
        *,
        remote: str,
        secure: bool,
        must_prove: bool,
    ) -> Credential | None:
        """Return what a proxy says of the client, or else the cookie of its session, if it counts.

        A browser has both sent with the requests of all pages. So with `must_prove`, for upgrades
        and writes, it raises Forbidden if the origin is not this server's own. `remote` is the
        address of the connection, and `secure` whether the client uses TLS. Raises BadHead, too.
        """
        found: Credential | None = self._proxy.find(remote, fields)
        if found is None and self._sessions is not None:
            wanted = (SECURE_SESSION_COOKIE if secure else SESSION_COOKIE).encode()
            text = _find_cookie(fields.get(b"cookie", ()), wanted)
            found = None if text is None else CookieIn(text)
        if found is None:
            return None
        origin, site = _field_text(fields, b"origin"), _field_text(fields, b"sec-fetch-site")
        scheme = "https" if secure else "http"
        is_own = self._sites.is_own_origin(origin, _field_text(fields, b"host"), scheme)
        if must_prove and not is_own:
            raise Forbidden(
                "a request with a session's cookie needs an `Origin` of this server: open its page "
                "by an address in ROUTECAST_ALLOWED_ORIGINS, or send a token or an API key"
                if isinstance(found, CookieIn)
                else "a request of a person whom a proxy has signed in needs an `Origin` of this "
                "server: open its page by an address in ROUTECAST_ALLOWED_ORIGINS"
            )
        if (origin is not None and not is_own) or (site is not None and site not in _OWN_PAGES):
            return None  # of a page of another site
        return found

    @property
    def reads_more(self) -> bool:
        """Whether `added_in` may find something in a request without a cookie."""
        return self._proxy.is_on


def route_path(scope: AsgiScope) -> str:
    """Return the path that the router compares: without the one at which the app is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    rest = path[len(root) :]
    return rest if path.startswith(root) and rest[:1] in ("", "/") else path


def _takes_ticket(scope: AsgiScope) -> bool:
    """Whether a request is for a stream, and not a question about one."""
    path = route_path(scope)
    return path in TICKET_PATHS and (path != SOCKET_PATH or scope["type"] == "websocket")


def is_secure(scope: AsgiScope) -> bool:
    """Whether the client of a request uses TLS, also if a trusted proxy ends it."""
    return scope.get("scheme") in SECURE_SCHEMES


def text_of_credential(find: Callable[[], Credential | None]) -> str | None:
    """Return the text of the credential that `find` returns.

    None if it finds none, or raises an error because the credential is malformed.
    """
    try:
        found = find()
    except RoutecastError:
        return None
    return found if found is None or isinstance(found, str) else found.text


def principal_of(scope: AsgiScope) -> Principal:
    """Return whose request an ASGI scope is, as `AccessControl` found it."""
    principal: Principal = scope.get(_PRINCIPAL, ANYONE)
    return principal


def with_principal(scope: AsgiScope, principal: Principal) -> AsgiScope:
    """Return an ASGI scope for `principal_of`."""
    return {**scope, _PRINCIPAL: principal}


# -- credentials in requests --------------------------------------------------------------------


def find_credential(authorization: bytes | None, bearers: Sequence[bytes] = ()) -> str | None:
    """Return the credential of a request; None if it has none.

    `authorization` is the value of that field, and `bearers` are the subprotocols of an upgrade
    that `split_bearers` found. Raises BadCredential if it is malformed, and BadHead if there are
    several: it would be unclear which one counts.
    """
    if len(bearers) + (authorization is not None) > 1:
        raise BadHead(SEVERAL)
    if bearers:
        return _read_bearer(bearers[0])
    if authorization is None:
        return None
    found = _BEARER.fullmatch(authorization)
    if found is None:
        raise BadCredential(f"the field `Authorization` cannot be read: {_HOW}")
    return found[1].decode("ascii")


def split_bearers(protocols: bytes) -> tuple[bytes, list[bytes]]:
    """Return the field `Sec-WebSocket-Protocol` without credentials, and the credentials.

    The first is what may be remembered, answered and shown in errors.
    """
    if BEARER_PROTOCOL not in protocols:
        return protocols, []
    if protocols.count(b",") >= MAX_SUBPROTOCOLS:  # before each is read: anyone can send them
        return b"", [protocols]  # which is no credential, and is refused as such
    names = [name.strip() for name in protocols.split(b",")]
    kept = [name for name in names if BEARER_PROTOCOL not in name]
    return b", ".join(kept), [name for name in names if BEARER_PROTOCOL in name]


def _read_bearer(protocol: bytes) -> str:
    text = protocol.removeprefix(BEARER_PROTOCOL)
    if _BASE64URL.fullmatch(text):
        try:
            credential = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
        except (Error, ValueError):
            pass
        else:
            if _TOKEN.fullmatch(credential):
                return credential.decode("ascii")
    shown = BEARER_PROTOCOL.decode()
    raise BadCredential(f"the subprotocol `{shown}` must end in a token or API key in base64url")


def read_query(query: bytes, *, takes_ticket: bool = False) -> str | None:
    """Return the ticket in a query; None if it has none.

    Raises CredentialInUrl if it has a parameter for another credential, or for a ticket that opens
    no stream here, BadHead if it has several tickets, and BadParameter if it has too many
    parameters.
    """
    tickets: list[str] = []
    if not query:
        return None
    if query.count(b"&") >= MAX_PARAMETERS:  # before each is read: anyone can send them
        raise BadParameter("query", f"must have at most {MAX_PARAMETERS:,} parameters")
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if len(name) > 100:  # no name of a credential is so long, however it is written
            continue
        plain = unquote_plus(name.decode("latin-1")).strip().lower()
        if plain == TICKET_PARAMETER and takes_ticket:
            tickets.append(unquote_plus(value.decode("latin-1")))
        elif plain == TICKET_PARAMETER:
            raise CredentialInUrl(plain, "a ticket opens a stream, and nothing else")
        elif plain in CREDENTIAL_PARAMETERS:
            raise CredentialInUrl(
                plain,
                "a credential must not be in a URL, which is logged and remembered, so make a new "
                f"one; {_HOW}",
            )
    if len(tickets) > 1:
        raise BadHead(SEVERAL)
    return tickets[0] if tickets else None


def without_ticket(query: bytes) -> bytes:
    """Return a query without its ticket, so that no error and no log can have it."""
    # With a `%`, the name may be written in another way.
    if b"%" not in query and TICKET_PARAMETER.encode() not in query.lower():
        return query
    return b"&".join(
        pair
        for pair in query.split(b"&")
        if unquote_plus(pair.partition(b"=")[0].decode("latin-1")).strip().lower()
        != TICKET_PARAMETER
    )


def _last(fields: Mapping[bytes, Sequence[bytes]], name: bytes) -> bytes | None:
    return fields[name][-1] if name in fields else None


def _field_text(fields: Mapping[bytes, Sequence[bytes]], name: bytes) -> str | None:
    value = _last(fields, name)
    return None if value is None else value.decode("latin-1")


def _find_cookie(cookies: Collection[bytes], wanted: bytes) -> str | None:
    """Return the value of a cookie; of several with the name, the first, as browsers rank them.

    Raises BadHead if there are too many cookies.
    """
    if sum(line.count(b";") for line in cookies) >= MAX_COOKIES:
        raise BadHead(f"a request may have at most {MAX_COOKIES:,} cookies")
    for line in cookies:
        for pair in line.split(b";"):
            name, _, value = pair.strip().partition(b"=")
            if name == wanted and value:
                return value.decode("latin-1")
    return None
