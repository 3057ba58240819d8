"""Routecast's Python client, which needs msgspec and websockets only.

- `stream` and `stream_sync` yield the metrics of one view, with and without asyncio.
- `connect` has several subscriptions and histories on one connection.
- `fetch_ticket` asks for a ticket, which opens one stream without a token.
- `Recorder` sends decisions from a background thread.

The logger `routecast.client` reports lost connections and lost decisions.
"""

from routecast.client.client import Client, connect
from routecast.client.counters import Counters
from routecast.client.decision import Decision
from routecast.client.document import (
    Cost,
    Errors,
    Latency,
    Metrics,
    Performance,
    Savings,
    Tokens,
)
from routecast.client.feed import Feed, Health, HistoryFeed, Subscription
from routecast.client.history import History
from routecast.client.reconnect import State
from routecast.client.recorder import Recorder
from routecast.client.streams import stream, stream_sync
from routecast.client.tickets import fetch_ticket
from routecast.client.url import DEFAULT_SERVER
from routecast.errors import (
    BadParameter,
    BadRequest,
    Refused,
    RoutecastError,
    Unauthenticated,
    Unavailable,
)
from routecast.protocol import Position, Source

__all__ = [
    "DEFAULT_SERVER",
    "BadParameter",
    "BadRequest",
    "Client",
    "Cost",
    "Counters",
    "Decision",
    "Errors",
    "Feed",
    "Health",
    "History",
    "HistoryFeed",
    "Latency",
    "Metrics",
    "Performance",
    "Position",
    "Recorder",
    "Refused",
    "RoutecastError",
    "Savings",
    "Source",
    "State",
    "Subscription",
    "Tokens",
    "Unauthenticated",
    "Unavailable",
    "connect",
    "fetch_ticket",
    "stream",
    "stream_sync",
]
