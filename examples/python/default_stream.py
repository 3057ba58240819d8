"""Read the default stream with the package `websockets` alone: an example of a client.

pip install websockets
python default_stream.py "http://127.0.0.1:8000?interval=1"

`watch_metrics.py` does the same, and more, with the client that Routecast brings.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

# Close codes after which a new try would end the same way.
FINAL = {1002, 1003, 1007, 1008, 1009, 4400, 4401, 4403}
PASSING = {408, 425, 426, 429}  # of Routecast's own refusals, those that pass by themselves
TOO_MANY_MESSAGES = 4429
LONGEST_DELAY = 60.0
PATH = "/ws/metrics"
SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class connect(websockets.asyncio.client.connect):  # noqa: N801  # -- its own name
    """Tells of redirects instead of following them to other hosts."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


def is_final(refused: InvalidStatus) -> bool:
    """Whether coming back is no help. Only Routecast's own problem document can say so.

    Any other answer comes from a proxy in between, and may be another one soon.
    """
    response = refused.response
    status = response.status_code
    try:
        problem = json.loads(response.body or b"")
    except (ValueError, RecursionError):
        return False
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    ours = isinstance(problem, dict) and problem.get("status") == status
    own = ours and kind == "application/problem+json"
    return own and status < 500 and status not in PASSING


async def documents(url: str, first_delay: float = 5.0) -> AsyncIterator[dict[str, Any]]:
    """Yield documents for ever: over any loss of the connection, waiting longer each time.

    Raises ConnectionClosed or InvalidStatus when the server does not want this client.
    """
    delay = first_delay
    while True:
        try:
            async with connect(url) as socket:
                async for text in socket:
                    delay = first_delay
                    yield json.loads(text)
            why, least = "the server is done for now", 0.0
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else 1006
            if code in FINAL:
                raise
            why, least = f"closed with {code}", 60.0 if code == TOO_MANY_MESSAGES else 0.0
        except InvalidStatus as error:
            if is_final(error):
                raise
            place = error.response.headers.get("Location", "").partition("?")[0]
            why = f"answered {error.response.status_code}" + (f" to {place}" if place else "")
            asked = error.response.headers.get("Retry-After", "")
            least = min(float(asked), 300.0) if asked.isdecimal() else 0.0
        except (OSError, WebSocketException, ValueError, RecursionError) as error:
            why, least = f"no connection ({type(error).__name__})", 0.0
        # Spread by ±20 %, so that a thousand clients do not come back in the same instant.
        wait = max(delay, least) * random.uniform(0.8, 1.2)
        print(f"{why}; trying again in {wait:.1f} s", file=sys.stderr)
        await asyncio.sleep(wait)
        delay = min(delay * 1.6, LONGEST_DELAY)


def line(document: dict[str, Any]) -> str:
    """Put a document into one line."""
    if "error" in document:
        return f"{document['timestamp']}  {document['error']}"
    confidence = document["avg_confidence"]
    shown = "unknown" if confidence is None else f"{confidence:.3f}"
    strategies = document["strategy_performance"].items()
    counts = ", ".join(f"{name!r} {strategy['count']}" for name, strategy in strategies)
    total = document["total_decisions"]
    return f"{document['timestamp']}  {total} decisions, confidence {shown}: {counts or 'none yet'}"


def stream_url(address: str) -> str:
    """Return the URL of the stream for a server's address, with or without the stream's path."""
    try:
        parts = urlsplit(address)
        scheme = SCHEMES[parts.scheme]
        if not parts.hostname or parts.port == 0:
            raise ValueError
    except (KeyError, ValueError):
        problem = f"{address!r} is no address such as http://127.0.0.1:8000 or wss://host"
        raise argparse.ArgumentTypeError(problem) from None
    path = parts.path.rstrip("/").removesuffix(PATH) + PATH
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


async def watch(url: str, count: int | None, first_delay: float) -> None:
    """Print `count` documents, or go on for ever."""
    seen = 0
    async for document in documents(url, first_delay):
        print(line(document), flush=True)
        seen += 1
        if seen == count:
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", type=stream_url, nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--once", action="store_const", const=1, dest="count")
    parser.add_argument("--count", type=int, help="end after so many documents")
    parser.add_argument("--first-delay", type=float, default=5.0, help="seconds before coming back")
    options = parser.parse_args()
    try:
        asyncio.run(watch(options.url, options.count, options.first_delay))
    except KeyboardInterrupt:
        return 0
    except (ConnectionClosed, InvalidStatus) as error:
        print(f"The server does not want this client: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
