"""`Authentication`: the parts that find the principal of a request, built and connected."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from routecast.adapters.clock import SystemTimers
from routecast.adapters.records.memory import MemoryRecords
from routecast.core.claims import ClaimRules
from routecast.core.group_rules import GroupRules, parse_group_rules
from routecast.core.record_limit import RecordLimit
from routecast.core.sites import Sites
from routecast.edge.access import Access
from routecast.edge.proxies import Proxies
from routecast.edge.proxy_sign_in import ProxySignIn
from routecast.edge.slow_refusals import SlowRefusals
from routecast.errors import Unavailable
from routecast.ports import Clock, IdentityProvider, TokenVerifier
from routecast.server.config import Settings
from routecast.server.engines import Engines
from routecast.services.authenticator import Authenticator
from routecast.services.key_refresh import KEY_SERVICE, KeyRefresh
from routecast.services.key_ring import KeyRing
from routecast.services.person_rules import AssertionRules, PersonRules
from routecast.services.sessions import Sessions
from routecast.services.supervisor import Supervisor
from routecast.services.tickets import Tickets

# Where Cloudflare Access publishes the keys of a team.
CLOUDFLARE_KEYS = "/cdn-cgi/access/certs"


class Authentication:
    """Credentials, sessions and sign-in of one application; `running` starts and ends them.

    `access` is what the edges ask. The other parts are for the routes of signing in, and for the
    streams that a revocation closes.
    """

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        supervisor: Supervisor,
        slow_refusals: SlowRefusals,
        session_limit: RecordLimit,
        ticket_limit: RecordLimit,
    ) -> None:
        self._supervisor = supervisor
        # Services that fetch keys: of the issuer of tokens, and of a proxy that signs people in.
        self._refreshes: list[KeyRefresh] = []
        self.key_ring: KeyRing | None = None  # without one there are no API keys
        if engines.keys is not None or settings.role == "stream":
            self.key_ring = KeyRing(engines.keys, engines.cluster, engines.clock)
        self.authenticator = self._build_authenticator(settings, engines)
        self.sites = Sites(
            settings.allowed_origins, settings.allowed_hosts, lambda: self.authenticator.required
        )
        self._records = engines.records or MemoryRecords(engines.clock)
        self.tickets = Tickets(self._records, engines.clock, ticket_limit)
        self.sessions = Sessions(
            self._records, self.authenticator.check, engines.clock, session_limit
        )
        self.provider = open_provider(settings)
        self.group_rules = group_rules(settings)
        self.proxies = Proxies(settings.trusted_proxies)
        proxy = ProxySignIn(
            self.proxies,
            name_field=settings.auth_header,
            groups_field=settings.auth_groups_header,
            cloudflare=settings.cloudflare_team is not None,
        )
        people = PersonRules(
            self.group_rules, self._build_assertions(settings, engines.clock), engines.clock
        )
        self.access = Access(
            self.authenticator,
            self.tickets,
            self.sessions,
            self.sites,
            slow_refusals,
            proxy,
            people,
            insecure=settings.insecure,
        )

    def _build_authenticator(self, settings: Settings, engines: Engines) -> Authenticator:
        """Return the authenticator of tokens and API keys."""
        refresh = None
        if engines.tokens is not None and engines.tokens.fetches:
            refresh = self._add_refresh(engines.tokens, KEY_SERVICE)
        return Authenticator(
            engines.tokens,
            self.key_ring,
            ClaimRules(settings.jwt_audience, settings.jwt_issuer),
            engines.clock,
            refresh,
            signs_in=settings.signs_in,
        )

    def _build_assertions(self, settings: Settings, clock: Clock) -> Authenticator:
        """Return the authenticator of the tokens in which Cloudflare Access names people."""
        verifier = refresh = None
        team = (settings.cloudflare_team or "").rstrip("/")
        if team:
            from routecast.adapters.jwks import JwkSet
            from routecast.adapters.jwt_keys import JwtVerifier

            verifier = JwtVerifier([], JwkSet(f"{team}{CLOUDFLARE_KEYS}").fetch)
            refresh = self._add_refresh(verifier, "cloudflare")
        claims = ClaimRules(settings.cloudflare_audience, team)
        rules = AssertionRules(claims, group_rules(settings, subject_claim="email"))
        return Authenticator(verifier, None, rules, clock, refresh, signs_in=True)

    def _add_refresh(self, verifier: TokenVerifier, service: str) -> KeyRefresh:
        refresh = KeyRefresh(verifier, SystemTimers(), self._supervisor, service)
        self._refreshes.append(refresh)
        return refresh

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the services of authentication."""
        start = self._supervisor.running
        async with AsyncExitStack() as stack:
            for refresh in self._refreshes:
                await stack.enter_async_context(start(refresh.service, refresh.run))
            if self.key_ring is not None:
                with suppress(Unavailable):  # known before the first request, if possible
                    await self.key_ring.refresh()
                await stack.enter_async_context(start("keys", self.key_ring.run))
            await stack.enter_async_context(start("sessions", self.sessions.run))
            yield

    async def close(self) -> None:
        """Close the temporary records."""
        await self._records.close()

    @property
    def failing(self) -> dict[str, str | None]:
        """Why each part fails; None for a part that works."""
        return {
            "keys": self.key_ring.failing if self.key_ring is not None else None,
            "sessions": self.sessions.failing,
        }


def open_provider(settings: Settings) -> IdentityProvider | None:
    """Return the identity provider that the settings name; None for none. Raises BadSettings."""
    if settings.oidc_issuer is None:
        return None
    from routecast.adapters.oidc import OidcProvider

    secret = settings.oidc_client_secret
    return OidcProvider(
        settings.oidc_issuer,
        settings.oidc_client_id,
        None if secret is None else secret.get_secret_value(),
        scopes=settings.oidc_scopes,
        needed=settings.oidc_groups_claim,
    )


def group_rules(settings: Settings, subject_claim: str | None = None) -> GroupRules:
    """Return what people who are signed in by a provider or a proxy may do."""
    return GroupRules(
        parse_group_rules(settings.group_rules or ""),
        subject_claim=subject_claim or settings.oidc_subject_claim,
        groups_claim=settings.oidc_groups_claim,
    )
