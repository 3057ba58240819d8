"""The cursor of a client that follows a history: which buckets the client must be sent next."""

from collections.abc import Iterable

from routecast.core.decision import SECOND
from routecast.core.history import Buckets, HistoryQuery, Plan
from routecast.core.time_series import HistoryResponse
from routecast.protocol import Position


class HistoryCursor:
    """The buckets and the position that a client holds of a history, without the values.

    When a bucket has closed, or a commit has added to a closed bucket, the client gets the first
    such bucket and all later ones, and replaces what it holds of them. So after each answer its
    points sum up to the total of their range at the answer's position, including the running
    bucket. The client holds the newest `points` buckets.
    """

    def __init__(self, query: HistoryQuery, answer: HistoryResponse, now: int) -> None:
        """Begin with a query's answer, made at `now` (microseconds)."""
        self.query = query
        self.restart(answer, now)

    def restart(self, answer: HistoryResponse, now: int) -> None:
        """Begin again with another answer to the whole query."""
        self.position = answer.position
        self.names = answer.names  # the series so far, for further answers
        self.buckets = answer.buckets
        self._running = self.buckets.start_of(now // SECOND)

    def is_ahead(self, now: int) -> bool:
        """Whether the client has a bucket that begins after `now`: the clock was set back.

        If so, answer the whole query again, and `restart`.
        """
        return self._running_at(now) < self._running

    def due(self, minutes: Iterable[int], now: int) -> Plan | None:
        """Return the plan to answer at `now`; `minutes` are those that changed since `position`.

        Send the client the answer to it, and call `record_answer`. If nothing is due (None), call
        `record_position`.
        """
        running, held = self._running_at(now), self._moved_to(now)
        changed = [
            held.start_of(minute * 60)
            for minute in minutes
            if held.first <= minute * 60 < min(running, held.end)
        ]
        if self._running < running:
            changed.append(max(self._running, held.first))
        return self._from(min(changed), held) if changed else None

    def whole(self, now: int) -> Plan:
        """Return the plan of all that the client should hold at `now`, if changes are unknown."""
        held = self._moved_to(now)
        return self._from(held.first, held)

    def record_answer(self, answer: HistoryResponse, now: int) -> None:
        """Record that the client has the answer to what was due at `now`."""
        self.buckets = self._moved_to(now)
        self._running = self._running_at(now)
        self.names = answer.names
        self.position = answer.position

    def record_position(self, position: Position) -> None:
        """Record that nothing was due up to a position."""
        self.position = position

    def _running_at(self, now: int) -> int:
        return self.buckets.start_of(now // SECOND)

    def _moved_to(self, now: int) -> Buckets:
        first, step, _ = self.buckets
        end = max(self.buckets.end, self._running_at(now) + step)
        first = max(first, end - self.query.points * step)
        return Buckets(first, step, (end - first) // step)

    def _from(self, first: int, held: Buckets) -> Plan:
        buckets = Buckets(first, held.step, (held.end - first) // held.step)
        return Plan(buckets, self.query.group_by, self.query.fields, self.query.filters)
