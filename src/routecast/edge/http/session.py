"""`/auth/session`: signing a browser in and out, and telling its page who it is.

The cookie is a random text that stands for the credential. No script can read it, and no page of
another site can use it (`edge/access.py`).
"""

from http import HTTPStatus
from time import time
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from routecast.audit import holder, record, trace_fields
from routecast.core.access import Principal
from routecast.core.claims import MAX_TOKEN
from routecast.core.sites import Sites
from routecast.edge.access import (
    SECURE_SESSION_COOKIE,
    SESSION_COOKIE,
    Access,
    CookieIn,
    is_secure,
    text_of_credential,
)
from routecast.edge.cors import origin_of
from routecast.edge.openapi import PROBLEM
from routecast.edge.proxies import limit_key_of
from routecast.errors import BadBody, BadCredential, Forbidden, NotFound, OverLimit, TooLarge
from routecast.services.sessions import Sessions

SESSION: Final = "/auth/session"
# A token in JSON, with some white space.
MAX_SIGN_IN_BYTES: Final = MAX_TOKEN + 1_024

_CREDENTIAL: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"credential": {"type": "string", "maxLength": MAX_TOKEN}},
    "required": ["credential"],
}
_PERSON: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "subject": {"type": "string"},
        "scopes": {"type": "array", "items": {"type": "string"}},
        "projects": {
            "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
            "description": "null: all.",
        },
        "expires_in": {
            "anyOf": [{"type": "number"}, {"type": "null"}],
            "description": "Seconds until the session ends.",
        },
        "can_sign_out": {
            "type": "boolean",
            "description": "Whether there is a session; a proxy may have signed the person in.",
        },
        "renewable": {"type": "boolean", "description": "Whether `POST` without a body renews it."},
    },
    "required": ["subject", "scopes", "projects", "expires_in", "renewable", "can_sign_out"],
}
_STATE: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "authentication": {"type": "boolean", "description": "Whether it is on."},
        "provider": {
            "type": "boolean",
            "description": "Whether `/auth/login` signs in by an identity provider.",
        },
        "person": {"anyOf": [_PERSON, {"type": "null"}], "description": "null: not signed in."},
    },
    "required": ["authentication", "provider", "person"],
}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_GET_RESPONSES: Final = {
    "200": _answer("The state.", _STATE),
    "503": {"description": "The session cannot be looked up now; see Retry-After.", **PROBLEM},
}
_FOREIGN: Final = {"description": "Sent by a page of another site.", **PROBLEM}
_POST: Final = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": _CREDENTIAL}},
    },
    "responses": {
        "200": _answer("Signed in. `Set-Cookie` has the session.", _PERSON),
        "400": {"description": "The body is not such an object.", **PROBLEM},
        "401": {"description": "No credential, or one that is not valid.", **PROBLEM},
        "403": _FOREIGN,
        "404": {"description": "Authentication is off: nobody signs in.", **PROBLEM},
        "413": {"description": "The body is too long.", **PROBLEM},
        "503": {"description": "It cannot be verified now; see Retry-After.", **PROBLEM},
    },
}
_DELETE_RESPONSES: Final = {
    "204": {"description": "Signed out, or there was no session."},
    "403": _FOREIGN,
    "503": {"description": "The session cannot be ended now; see Retry-After.", **PROBLEM},
}


class _SignIn(msgspec.Struct):
    credential: str


def session_router(
    access: Access, sessions: Sessions, sites: Sites, *, has_provider: bool
) -> APIRouter:
    """Return the router of sessions."""
    router = APIRouter(tags=["sign-in"])

    @router.get(
        SESSION,
        summary="Who is signed in",
        response_class=Response,
        openapi_extra={"responses": _GET_RESPONSES},
    )
    async def get_session(request: Request) -> Response:
        principal = await _principal(access, request) if access.required else None
        person = None if principal is None else _person(principal)
        return _json(
            {"authentication": access.required, "provider": has_provider, "person": person}
        )

    @router.post(
        SESSION,
        summary="Sign a browser in",
        description="The credential is in the body or in `Authorization`. The session lasts until "
        "the credential expires, and for 12 hours at most. Without a credential, a session of an "
        "API key is renewed.",
        response_class=Response,
        openapi_extra=_POST,
    )
    async def sign_in(request: Request) -> Response:
        _require_own_page(request, sites)
        if not access.required:
            raise NotFound("authentication is off: nobody needs to sign in")
        access.require_private_request(request.scope)
        credential = await _given(request) or access.credential_of(request.scope)
        try:
            principal = await access.identify(credential, limit_key_of(request.scope))
        except BadCredential as error:
            address, text = limit_key_of(request.scope), text_of_credential(lambda: credential)
            raise await access.slow_refusals.refused(error, address, text) from None
        if not isinstance(credential, CookieIn):
            return await begin_session(request, sessions, principal)
        if not principal.is_key:
            raise BadCredential("only a session of an API key can be renewed: sign in again")
        renewed = await sessions.renew(principal)
        return _with_cookie(request, credential.text, renewed)

    @router.delete(
        SESSION,
        status_code=HTTPStatus.NO_CONTENT,
        summary="Sign out",
        description="Ends all sessions of the person, and all streams that were opened with them, "
        "on all nodes. A session of an API key ends alone: others have the same key.",
        response_class=Response,
        openapi_extra={"responses": _DELETE_RESPONSES},
    )
    async def sign_out(request: Request) -> Response:
        _require_own_page(request, sites)
        principal = await _principal(access, request) if access.required else None
        if principal is not None:
            await sessions.end(principal)
            record("sign_out", "A person signed out", **holder(principal), **trace_fields())
        answer = Response(status_code=HTTPStatus.NO_CONTENT, headers={"Cache-Control": "no-store"})
        _set_cookie(answer, request, "", 0)
        return answer

    return router


async def begin_session(
    request: Request, sessions: Sessions, principal: Principal, answer: Response | None = None
) -> Response:
    """Start a session; return an answer that brings its cookie, by default with the person."""
    text, ours = await sessions.start(principal)
    record("sign_in", "A person signed in", **holder(ours), **trace_fields())
    return _with_cookie(request, text, ours, answer)


def _with_cookie(
    request: Request, text: str, ours: Principal, answer: Response | None = None
) -> Response:
    """Return an answer that brings the cookie of a session."""
    assert ours.expires is not None
    answer = answer or _json(_person(ours))
    _set_cookie(answer, request, text, max(round(ours.expires - time()), 1))
    return answer


async def _principal(access: Access, request: Request) -> Principal | None:
    """Return whose request it is; None if it has no credential that is valid.

    The answer to a wrong one comes as late as a refusal would. Raises OverLimit after too many.
    """
    try:
        credential = access.credential_of(request.scope)
        if credential is None:
            return None
        return await access.identify(credential, limit_key_of(request.scope))
    except BadCredential as error:
        refusal = await access.refused(error, request.scope)
        if isinstance(refusal, OverLimit):
            raise refusal from None
        return None


async def _given(request: Request) -> str | None:
    """Return the credential in a body; None for an empty body."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_SIGN_IN_BYTES:
                raise TooLarge(f"the body has more than {MAX_SIGN_IN_BYTES:,} bytes")
    except ClientDisconnect:
        raise BadBody("the body is not complete") from None
    if not body:
        return None
    try:
        return msgspec.json.decode(body, type=_SignIn).credential.strip()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Without its text, which has parts of the body.
        raise BadBody('the body must be JSON, as in {"credential": "…"}') from None


def _require_own_page(request: Request, sites: Sites) -> None:
    """Raise Forbidden for a page of another site, which could sign its visitor in as another."""
    asked = origin_of(request.scope)
    if asked.origin is not None and not sites.is_own_origin(*asked):
        raise Forbidden(
            f"Origin {asked.origin[:200]!r} may not sign in; to let its pages do so, start the "
            "server with it in ROUTECAST_ALLOWED_ORIGINS"
        )


def _person(principal: Principal) -> dict[str, Any]:
    left = None if principal.expires is None else max(round(principal.expires - time()), 0)
    return {
        "subject": principal.subject,
        "scopes": sorted(principal.scopes),
        "projects": None if principal.projects is None else sorted(principal.projects),
        "expires_in": left,
        "renewable": bool(principal.session) and principal.is_key,
        "can_sign_out": bool(principal.session),
    }


def _json(content: dict[str, Any]) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(content), headers=headers, media_type="application/json")


def _set_cookie(answer: Response, request: Request, text: str, seconds: int) -> None:
    secure = is_secure(request.scope)
    answer.set_cookie(
        SECURE_SESSION_COOKIE if secure else SESSION_COOKIE,
        text,
        max_age=seconds,
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )
