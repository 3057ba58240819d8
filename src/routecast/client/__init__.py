"""Routecast's Python client: metrics out, decisions in. Needs msgspec and websockets only.

    async for metrics in stream("http://127.0.0.1:8000", window="5m"):
        print(metrics.total_decisions)

    recorder = Recorder("http://127.0.0.1:8000")
    recorder.record(strategy="hybrid", provider="gemini", confidence=0.87, cost=0.0023)

`stream_sync` is `stream` without asyncio; `connect` has several subscriptions on one connection.
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
    "stream",
    "stream_sync",
]
