"""Signing in by an identity provider: `/auth/login` sends the browser there, and it comes back to
`/auth/callback` with a code.

What the browser and this server must remember meanwhile is in a cookie of the browser, so that any
node can go on, and nobody can fill the memory of one by attempts. The browser ends at the page in
any case, which says what went wrong.
"""

import logging
import secrets
from collections import Counter
from hmac import compare_digest
from http import HTTPStatus
from time import monotonic, time
from typing import Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from routecast.core.group_rules import GroupRules
from routecast.edge.access import is_secure
from routecast.edge.http.session import begin_session
from routecast.edge.proxies import limit_key_of
from routecast.errors import BadCredential, BadHead, Forbidden, NotFound, OverLimit, Unavailable
from routecast.ports import IdentityProvider, SignInAttempt
from routecast.services.sessions import Sessions

log = logging.getLogger(__name__)

LOGIN: Final = "/auth/login"
CALLBACK: Final = "/auth/callback"
# A person has this time to sign in at the provider, in seconds.
ATTEMPT_SECONDS: Final = 600
# Characters of a code; the longest ones are tokens.
MAX_CODE: Final = 8_192

# Codes of one address that are redeemed or wait for that, so that others need not wait for it.
MAX_CODES_OF_ADDRESS: Final = 16
# Of warnings about the same, one is logged in this time, in seconds: anyone can cause them.
WARN_SECONDS: Final = 10.0

_ATTEMPT_COOKIE: Final = "routecast_attempt"
_ATTEMPT_PARTS: Final = 3
_RANDOM_BYTES: Final = 32


def login_router(
    provider: IdentityProvider | None, rules: GroupRules, sessions: Sessions
) -> APIRouter:
    """Return the router of signing in by a provider; without one, its answers are 404."""
    router = APIRouter(include_in_schema=False)
    warnings = _Warnings()
    redeeming: Counter[str] = Counter()  # codes by address

    @router.get(LOGIN)
    async def login(request: Request) -> Response:
        if provider is None:
            raise NotFound("no identity provider is set (ROUTECAST_OIDC_ISSUER)")
        attempt = SignInAttempt(_random(), _random(), _random(), _redirect(request))
        try:
            address = await provider.address(attempt)
        except Unavailable as error:
            warnings.add("Nobody can sign in by the identity provider now: %s", error)
            return _to_page(request, "unavailable")
        answer = _go(address)
        remembered = ".".join((attempt.state, attempt.nonce, attempt.verifier))
        _set_cookie(answer, request, remembered, ATTEMPT_SECONDS)
        return answer

    @router.get(CALLBACK)
    async def callback(request: Request) -> Response:
        if provider is None:
            raise NotFound("no identity provider is set (ROUTECAST_OIDC_ISSUER)")
        address = limit_key_of(request.scope)
        if redeeming[address] >= MAX_CODES_OF_ADDRESS:
            return _to_page(request, "unavailable")
        redeeming[address] += 1
        try:
            answer = await _finish(request, provider, rules, sessions, warnings)
        finally:
            redeeming[address] -= 1
            if not redeeming[address]:
                del redeeming[address]
        _set_cookie(answer, request, "", 0)
        return answer

    return router


class _Warnings:
    """Logs a few of many warnings."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}  # when a text may be logged again

    def add(self, text: str, error: Exception) -> None:
        """Log a warning, unless one with this text was logged shortly before."""
        now = monotonic()
        if now >= self._next.get(text, now):
            self._next[text] = now + WARN_SECONDS
            log.warning(text, error)


async def _finish(
    request: Request,
    provider: IdentityProvider,
    rules: GroupRules,
    sessions: Sessions,
    warnings: _Warnings,
) -> Response:
    """Start the session of the person who comes back from the provider."""
    try:
        given = parse_qs(request.scope["query_string"].decode("latin-1"), max_num_fields=100)
    except ValueError:  # too many parameters
        return _to_page(request, "refused")
    remembered = request.cookies.get(_cookie_name(request), "").split(".")
    (state,) = given.get("state", [""])[:1]
    is_ours = len(remembered) == _ATTEMPT_PARTS and compare_digest(
        remembered[0].encode(), state.encode()
    )
    if not state or not is_ours:
        return _to_page(request, "expired")
    (code,) = given.get("code", [""])[:1]
    if not 0 < len(code) <= MAX_CODE:
        return _to_page(request, "refused")  # the provider says `error` in place of a code
    attempt = SignInAttempt(remembered[0], remembered[1], remembered[2], _redirect(request))
    try:
        principal = rules.read(await provider.claims(attempt, code), time())
        return await begin_session(request, sessions, principal, _to_page(request))
    except OverLimit as error:
        warnings.add(
            "A person who was signed in by the identity provider got no session: %s", error
        )
        return _to_page(request, "limited")
    except Unavailable as error:
        warnings.add("Nobody can sign in by the identity provider now: %s", error)
        return _to_page(request, "unavailable")
    except BadCredential as error:
        warnings.add("A person was not signed in by the identity provider: %s", error)
        return _to_page(request, "refused")
    except Forbidden as error:
        warnings.add("A person who was signed in by the identity provider has no access: %s", error)
        return _to_page(request, "forbidden")


def _random() -> str:
    return secrets.token_urlsafe(_RANDOM_BYTES)


def _redirect(request: Request) -> str:
    """Return the address of the callback, by the name that the browser has for this server."""
    host = request.headers.get("host")
    if host is None:  # HTTP/1.0
        raise BadHead("the Host field is missing")
    scheme = "https" if is_secure(request.scope) else "http"
    return f"{scheme}://{host}{request.scope.get('root_path', '')}{CALLBACK}"


def _to_page(request: Request, failure: str = "") -> Response:
    """Return the answer that leads to the page, and nowhere else."""
    page = f"{request.scope.get('root_path', '')}/"
    return _go(f"{page}#sign-in={failure}" if failure else page)


def _go(address: str) -> Response:
    headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return RedirectResponse(address, HTTPStatus.SEE_OTHER, headers)


def _cookie_name(request: Request) -> str:
    return f"__Host-{_ATTEMPT_COOKIE}" if is_secure(request.scope) else _ATTEMPT_COOKIE


def _set_cookie(answer: Response, request: Request, text: str, seconds: int) -> None:
    answer.set_cookie(
        _cookie_name(request),
        text,
        max_age=seconds,
        path="/",
        secure=is_secure(request.scope),
        httponly=True,
        samesite="lax",  # the browser comes back from another site
    )
