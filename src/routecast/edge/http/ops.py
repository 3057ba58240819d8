"""`/health`, `/ready`, `/metrics` for Prometheus, and the pages `/` and `/admin`."""

import base64
import hashlib
import html
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from importlib import resources
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import HTMLResponse, Response

from routecast.core.access import is_operator
from routecast.edge.access import principal_of
from routecast.edge.http.assets import PREFIX, Assets
from routecast.errors import Unavailable
from routecast.instruments import Instruments
from routecast.protocol import HealthReport

DASHBOARD: Final = resources.files("routecast") / "dashboard"
_CSP: Final = (
    # 'self' includes WebSockets to this host and port (CSP 3, 6.7.2.8; Safari since 15.4).
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
PAGE_HEADERS: Final = {
    "Content-Security-Policy": _CSP,
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

# What everyone may know: all that is open while authentication is on.
_BRIEF: Final = {
    "type": "object",
    "properties": {"status": {"enum": ["ok", "degraded"]}, "version": {"type": "string"}},
    "required": ["status", "version"],
    "additionalProperties": False,
}
_HEALTH: Final = {  # `openapi.describe` adds the first one
    "anyOf": [{"$ref": "#/components/schemas/HealthReport"}, _BRIEF]
}
_READY: Final = {
    "type": "object",
    "properties": {
        "ready": {"type": "boolean"},
        "reason": {"type": "string"},
        "degraded": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["ready"],
}


def _responses(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI responses of `/health` or `/ready`: 200 or 503, with this schema."""
    content = {"application/json": {"schema": schema}}
    return {
        "responses": {
            "200": {"description": "Healthy, or ready.", "content": content},
            "503": {
                "description": "Nothing can be served, or not ready; the body says why.",
                "content": content,
            },
        }
    }


def ops_router(
    health: Callable[[], Awaitable[HealthReport]],
    check: Callable[[], Awaitable[list[str]]],
    instruments: Instruments,
) -> APIRouter:
    """Return the router of `/health`, `/ready` and `/metrics`."""
    router = APIRouter(tags=["operations"])

    @router.get(
        "/health",
        summary="What works; 200 while anything can be served",
        response_class=Response,
        openapi_extra=_responses(_HEALTH),
    )
    async def get_health(request: Request) -> Response:
        state = await health()
        serving = state.source != "none"
        status = HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE
        if not is_operator(principal_of(request.scope)):
            return _state({"status": state.status, "version": state.version}, status)
        return _state(state, status)

    @router.get(
        "/ready",
        summary="200 when decisions can be acknowledged, else 503",
        response_class=Response,
        openapi_extra=_responses(_READY),
    )
    async def get_ready(request: Request) -> Response:
        try:
            degraded = await check()
        except Unavailable as error:
            body: dict[str, Any] = {"ready": False, "reason": str(error)}
            status = HTTPStatus.SERVICE_UNAVAILABLE
        else:
            body, status = {"ready": True}, HTTPStatus.OK
            if degraded:
                body["degraded"] = degraded
        if not is_operator(principal_of(request.scope)):
            body = {"ready": body["ready"]}
        return _state(body, status)

    @router.get(
        "/metrics",
        summary="Prometheus text",
        response_class=Response,
        openapi_extra={
            "responses": {
                "200": {
                    "description": "All metrics of this node.",
                    "content": {"text/plain": {"schema": {"type": "string"}}},
                }
            }
        },
    )
    async def get_metrics() -> Response:
        text = generate_latest(instruments.registry)
        return Response(text, headers={"Cache-Control": "no-store"}, media_type=CONTENT_TYPE_LATEST)

    return router


def _state(state: HealthReport | dict[str, Any], status: HTTPStatus) -> Response:
    body = msgspec.json.encode(state)
    return Response(body, status, {"Cache-Control": "no-store"}, media_type="application/json")


def page_router(notice: str, frame_ancestors: str = "'self'") -> APIRouter:
    """Return the router of the pages and their files; pages show `notice`, if it is not empty.

    `frame_ancestors` are the sites whose pages may show these in a frame, as CSP lists them.
    """
    assets = Assets(DASHBOARD)
    loader = assets.text("loader.js")
    filled = {
        "assets": assets.base,
        "files": " ".join(assets.addresses),
        "loader": loader,
        "notice": html.escape(notice, quote=True),
    }
    page, operators_page = _fill("index.html", filled), _fill("admin.html", filled)
    policy = f"{_CSP}; {_allow_script(loader)}; frame-ancestors {frame_ancestors}"
    headers = {**PAGE_HEADERS, "Content-Security-Policy": policy}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def get_page() -> Response:
        return HTMLResponse(page, headers=headers)

    @router.get("/admin")
    async def get_operators_page() -> Response:
        return HTMLResponse(operators_page, headers=headers)

    files = f"/{PREFIX}/{{path:path}}"
    router.add_route(files, assets.answer, methods=["GET"], include_in_schema=False)
    return router


def _fill(name: str, filled: Mapping[str, str]) -> str:
    """Return a page with texts in the places that are marked with their names."""
    page = (DASHBOARD / name).read_text("utf-8")
    for place, text in filled.items():
        page = page.replace(f"{{{{{place}}}}}", text)
    return page


def _allow_script(text: str) -> str:
    """Return the CSP directive that allows this inline script and the scripts of this server."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"script-src 'self' 'sha256-{digest}'"
