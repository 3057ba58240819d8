"""The floor of HTTP: a Starlette route that only reads the body and answers."""

import sys
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# As long as a receipt of the server.
ANSWER: Final = (
    b'{"accepted":1,"duplicates":0,"rejected":[],"rejected_count":0,'
    b'"position":{"epoch":"0123456789abcdef","seq":12345}}'
)


async def take(request: Request) -> Response:
    """Read the body, and answer."""
    await request.body()
    return Response(ANSWER, media_type="application/json")


if __name__ == "__main__":
    app = Starlette(routes=[Route("/v1/decisions", take, methods=["POST"])])
    uvicorn.run(
        app,
        port=int(sys.argv[sys.argv.index("--port") + 1]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        server_header=False,
    )
