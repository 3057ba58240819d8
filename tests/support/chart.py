"""A client's chart: a history put together from the messages of the server.

It is written from docs/protocol.md alone.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

# The values of a bucket without decisions.
EMPTY = {"count": 0, "errors": 0, "fallbacks": 0, "input_tokens": 0, "output_tokens": 0}


class Chart:
    """Takes the answer to a history that follows, and all messages after it."""

    def __init__(self, points: int, fields: tuple[str, ...]) -> None:
        self._most = points
        self._fields = fields
        self.position: Any = None
        self.first: datetime | None = None
        self.step = timedelta()
        self.points = 0
        self.series: dict[str, dict[str, list[Any]]] = {}

    def take(self, message: Mapping[str, Any]) -> None:
        """Replace the buckets from the message's first one on."""
        start = datetime.fromisoformat(message["from"])
        step = timedelta(seconds=message["step"])
        if self.first is None or step != self.step:
            self.first, self.step, self.points, self.series = start, step, 0, {}
        if start < self.first:
            self.first, self.points, self.series = start, 0, {}
        kept = (start - self.first) // step
        if kept > self.points:  # the message begins after all held buckets
            self.first, kept, self.points, self.series = start, 0, 0, {}
        told = {one["key"]: one for one in message["series"]}
        for key in {**self.series, **told}:
            columns = self.series.setdefault(key, {f: self._empty(f, kept) for f in self._fields})
            for name in self._fields:
                new = told[key][name] if key in told else self._empty(name, message["points"])
                columns[name][kept:] = new
        self.points = kept + message["points"]
        self.position = message["position"]
        surplus = max(0, self.points - self._most)
        for columns in self.series.values():
            for values in columns.values():
                del values[:surplus]
        self.first += surplus * step
        self.points -= surplus

    def _empty(self, name: str, count: int) -> list[Any]:
        return [EMPTY.get(name)] * count

    def document(self, points: int | None = None) -> dict[str, Any]:
        """Return the chart in the form of an answer, or only its first points."""
        assert self.first is not None
        count = self.points if points is None else points
        return {
            "position": self.position,
            "step": self.step // timedelta(seconds=1),
            "from": self.first.isoformat(timespec="microseconds"),
            "points": count,
            "series": [
                {"key": key, **{name: values[:count] for name, values in columns.items()}}
                for key, columns in self.series.items()
            ],
        }
