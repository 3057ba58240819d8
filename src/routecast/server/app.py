"""`create_app`: the ASGI application, with the routes of all services."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from routecast import audit
from routecast.edge.access_control import AccessControl, route_of
from routecast.edge.asyncapi import asyncapi_router
from routecast.edge.cors import Cors
from routecast.edge.gate import Gate
from routecast.edge.head_method import as_get
from routecast.edge.http.decisions import DECISIONS, Decisions
from routecast.edge.http.docs import docs_router
from routecast.edge.http.history import history_router
from routecast.edge.http.login import login_router
from routecast.edge.http.metrics import metrics_router
from routecast.edge.http.operator import operator_router
from routecast.edge.http.ops import ops_router, page_router
from routecast.edge.http.session import session_router
from routecast.edge.http.tickets import tickets_router
from routecast.edge.openapi import describe
from routecast.edge.problem import http_error_handler, on_crash, on_routecast_error
from routecast.edge.sse import MetricsEvents
from routecast.edge.ws.asgi_route import MetricsSocket
from routecast.edge.ws.upgrade_probe import METHODS, UpgradeProbe
from routecast.errors import RoutecastError
from routecast.server.config import Settings
from routecast.server.engines import Engines, open_engines
from routecast.server.services import VERSION, Services

# What the pages show with --insecure.
INSECURE = (
    "This server runs with --insecure: other machines may use it without authentication, or send "
    "credentials that others can read"
)


class App(FastAPI):
    """FastAPI, with `POST /v1/decisions` in front of its middleware, which costs more than that."""

    decisions: Decisions
    take: ASGIApp  # `decisions`, with CORS and access control
    gate: ASGIApp  # `route`, behind the checks of `edge/gate.py`

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.gate(scope, receive, send)

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that the gate let through."""
        if scope["type"] == "http":
            if scope["path"] == DECISIONS and scope["method"] == "POST":
                await self.take(scope, receive, send)
                return
            scope = as_get(scope)
        await super().__call__(scope, receive, send)


def create_app(settings: Settings, engines: Engines | None = None) -> App:
    """Return the ASGI application. `engines` replaces those that the settings name.

    Raises BadSettings. The services start with the application's lifespan, which every ASGI
    server runs; a database that cannot be used fails there, with BadDatabase.
    """
    audit.record("settings", "The server starts", settings=settings.shown(), version=VERSION)
    services = Services(settings, engines or open_engines(settings))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with services.running():
            yield

    app = App(
        title="Routecast",
        version=VERSION,
        summary="Live, exact metrics of LLM routing decisions.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts of other hosts; see `edge/http/docs.py`
        redoc_url=None,
        redirect_slashes=False,  # a redirect names the host and path that the client sent
    )
    app.state.services = services
    _add_routes(app, settings, services)
    app.add_exception_handler(RoutecastError, on_routecast_error)
    app.add_exception_handler(HTTPException, http_error_handler(route_of))
    app.add_exception_handler(Exception, on_crash)
    return app


def _add_routes(app: App, settings: Settings, services: Services) -> None:
    numbers, streams, limits = services.numbers, services.streams, services.limits
    authentication = services.authentication
    access, sites, sessions = authentication.access, authentication.sites, authentication.sessions
    decisions = Decisions(numbers.ingest, sites, services.engines.slices, access, limits.ingest)
    app.decisions, app.take = decisions, Cors(AccessControl(decisions, access), sites, access)
    app.gate = Gate(app.route, sites, authentication.proxies, route_of)
    app.add_middleware(AccessControl, access=access)
    app.add_middleware(Cors, sites=sites, access=access)  # the last one added is the first
    edge = (streams.peers, streams.admission, services.instruments)
    app.router.routes[:0] = [
        # For an application mounted in another one, and to answer 405 to other methods.
        Route(DECISIONS, decisions, methods=["POST"]),
        WebSocketRoute("/ws/metrics", MetricsSocket(*edge)),
        Route("/ws/metrics", UpgradeProbe(streams.admission), methods=METHODS),
        Route("/sse/metrics", MetricsEvents(*edge), methods=["GET"]),
    ]
    app.include_router(metrics_router(numbers.renders.encoded_document))
    app.include_router(history_router(numbers.history.answer, streams.history_limits))
    app.include_router(ops_router(services.health, services.check, services.instruments))
    app.include_router(operator_router(streams.cluster_view, services.reporter.all, sites))
    app.include_router(tickets_router(authentication.tickets))
    provider = authentication.provider
    app.include_router(session_router(access, sessions, sites, has_provider=provider is not None))
    app.include_router(login_router(provider, authentication.group_rules, sessions))
    app.include_router(asyncapi_router(VERSION))
    app.include_router(docs_router(lambda: app.openapi()))
    app.include_router(page_router(_notice(settings), settings.frame_ancestors))
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            describe(derive())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # -- how FastAPI lets one extend it


def _notice(settings: Settings) -> str:
    """Return the line that the pages show."""
    warning = INSECURE if settings.insecure else ""
    return " · ".join(text for text in (settings.notice, warning) if text)
