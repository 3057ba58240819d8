"""`GET /docs`: a page that describes the HTTP routes, made from the OpenAPI document.

It has no scripts, and loads no other file.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

_STYLE: Final = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.5; }
main { margin: 0 auto; max-width: 60rem; }
section { border-top: 1px solid; margin-top: 2rem; }
dd { margin: 0 0 0.5rem 1.5rem; }
pre { overflow-x: auto; }
"""
_STYLE_HASH: Final = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_METHODS: Final = ("get", "post", "put", "patch", "delete")

Schema = dict[str, Any]


def docs_router(openapi: Callable[[], Schema]) -> APIRouter:
    """Return the router of `/docs`; `openapi` returns the document."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def get_docs() -> Response:
        return HTMLResponse(page(openapi()), headers=HEADERS)

    return router


def page(document: Schema) -> str:
    """Return the page for an OpenAPI document."""
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    schemas = document.get("components", {}).get("schemas", {})
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}: HTTP routes</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>",
            f"<p>{escape(info.get('summary', ''))}</p>",
            '<p>For tools: <a href="openapi.json">openapi.json</a> (HTTP), '
            '<a href="asyncapi.json">asyncapi.json</a> (streams).</p>',
            *(
                part
                for path, item in document["paths"].items()
                for method in _METHODS
                if method in item
                for part in _operation(method, path, item[method])
            ),
            "<h2>Schemas</h2>",
            *(
                f'<details id="{escape(name)}"><summary>{escape(name)}</summary>'
                f"<pre>{_json(schema)}</pre></details>"
                for name, schema in schemas.items()
            ),
            "</main></body></html>",
        ]
    )


def _operation(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('summary', ''))}</p>"
    if "description" in operation:
        yield f"<p>{escape(operation['description'])}</p>"
    for scope in operation.get("security", [{}])[0].get("bearer", ()):
        yield f"<p>While authentication is on, it needs the scope <code>{scope}</code>.</p>"
    if parameters := operation.get("parameters"):
        yield "<h3>Parameters</h3><dl>"
        for each in parameters:
            yield f"<dt><code>{escape(each['name'])}</code></dt>"
            text, schema = escape(each.get("description", "")), _schema(each.get("schema", {}))
            yield f"<dd>{text} {schema}</dd>"
        yield "</dl>"
    if "requestBody" in operation:
        yield "<h3>Body</h3><dl>"
        yield from _content(operation["requestBody"])
        yield "</dl>"
    yield "<h3>Answers</h3><dl>"
    for status, answer in operation.get("responses", {}).items():
        yield f"<dt><code>{escape(status)}</code></dt><dd>{escape(answer['description'])}</dd>"
        yield from _content(answer)
    yield "</dl></section>"


def _content(holder: Schema) -> Iterator[str]:
    for kind, media in holder.get("content", {}).items():
        yield f"<dd><code>{escape(kind)}</code> {_schema(media.get('schema', {}))}</dd>"


def _schema(schema: Schema) -> str:
    """Return a schema as HTML: a link if it has a name, else its JSON."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if not schema:
        return ""
    if len(shown := _json(schema)) < 120:
        return f"<code>{shown}</code>"
    return f"<details><summary>schema</summary><pre>{shown}</pre></details>"


def _json(schema: Schema) -> str:
    compact = json.dumps(schema, ensure_ascii=False)
    return escape(
        compact if len(compact) < 120 else json.dumps(schema, indent=2, ensure_ascii=False)
    )
