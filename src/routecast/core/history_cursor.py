"""Following: which buckets of an answer must be told again as time and decisions come in."""

from collections.abc import Iterable

from routecast.core.decision import SECOND
from routecast.core.history import Buckets, HistoryQuery, Plan
from routecast.core.time_series import HistoryResponse
from routecast.protocol import Position


class HistoryCursor:
    """What a client holds of a history that goes on, without the values.

    When some bucket closed, or a commit added to one that had closed before, the client is told
    all buckets from the first of these on, and puts them in place of what it holds from there on.
    So after each answer its points sum up to the total of their range at the answer's position,
    the bucket that runs included. It goes on for ever, with the `points` newest buckets.
    """

    def __init__(self, query: HistoryQuery, answer: HistoryResponse, now: int) -> None:
        """Begin with a query's answer, made at `now` (microseconds)."""
        self.query = query
        self.restart(answer, now)

    def restart(self, answer: HistoryResponse, now: int) -> None:
        """Begin again with another answer to the whole query."""
        self.position = answer.position
        self.names = answer.names  # the series there are; to render further answers with
        self.buckets = answer.buckets
        self._running = self.buckets.start_of(now // SECOND)

    def is_ahead(self, now: int) -> bool:
        """Whether the client was told of a bucket that begins after `now`: the clock was set back.

        Then answer the whole query again, and `restart`.
        """
        return self._running_at(now) < self._running

    def due(self, minutes: Iterable[int], now: int) -> Plan | None:
        """Return what to tell at `now`, given the minutes added to since `position`.

        Tell the client the answer to it, and call `told`; or, when it is None, `kept_up`.
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
        """Return all that the client should hold at `now`, when the changes are not known."""
        held = self._moved_to(now)
        return self._from(held.first, held)

    def told(self, answer: HistoryResponse, now: int) -> None:
        """Take note that the client has the answer to what was due at `now`."""
        self.buckets = self._moved_to(now)
        self._running = self._running_at(now)
        self.names = answer.names
        self.position = answer.position

    def kept_up(self, position: Position) -> None:
        """Take note that nothing was due up to a position."""
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
