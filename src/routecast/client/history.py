"""`History`: the buckets that a client has; each answer replaces those from its first one on."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from routecast.client.session import Effect, Failure, TopicMessage
from routecast.protocol import GetHistory, HistoryOut, Position

Column = list[float | None]

# Columns that are 0 in a bucket without decisions; the others are None there.
_COUNTS: Final = frozenset({"count", "errors", "fallbacks", "input_tokens", "output_tokens"})
# The most buckets of one answer; a server sends at most 2,000.
_MAX_POINTS: Final = 100_000


class History(msgspec.Struct, frozen=True):
    """The sums of past decisions, in buckets of equal length; the last one may not be over yet.

    Attributes:
        start: The time at which the first bucket begins, in UTC.
        step: The length of a bucket, in seconds.
        points: The number of buckets.
        series: The columns of each group, by the group's name and the column's name. Without
            `group_by`, the only group is `all`. A column has a value for each bucket. In an empty
            bucket, counts and tokens are 0, and other values are None.
        position: The position up to which decisions count.
    """

    start: datetime
    step: int
    points: int
    series: dict[str, dict[str, Column]]
    position: Position

    @property
    def times(self) -> list[datetime]:
        """The time at which each bucket begins."""
        return [self.start + number * timedelta(seconds=self.step) for number in range(self.points)]


class HistoryRequest:
    """A requested history, which may be followed. `now` returns seconds since 1970."""

    def __init__(self, asked: GetHistory, max_points: int, now: Callable[[], float]) -> None:
        self.id = asked.id
        self.failure: Failure = None
        self.held: History | None = None
        self._asked = asked
        self._max_points = max_points
        self._now = now

    @property
    def over(self) -> bool:
        """Whether it was answered and is not followed."""
        return not self._asked.follow and (self.held is not None or self.failure is not None)

    def request(self) -> GetHistory:
        """Return the message that requests it.

        After a lost connection it requests all buckets that are kept, because decisions may arrive
        late. It requests no more, because the server makes longer buckets for a longer range.
        """
        held = self.held
        if held is None:
            return self._asked
        first = self._now() - (self._max_points - 1) * held.step
        since = max(held.start, datetime.fromtimestamp(first, UTC))
        return msgspec.structs.replace(self._asked, from_=since)

    def receive(self, message: TopicMessage) -> Effect:
        """Apply an answer."""
        if not isinstance(message, HistoryOut):
            return Effect.IGNORED
        answer = _read(message)
        self.held = answer if self.held is None else joined(self.held, answer, self._max_points)
        self.failure = None
        return Effect.APPLIED


def joined(held: History, answer: History, max_points: int) -> History:
    """Replace the held buckets from the first new one on; keep the newest `max_points`."""
    kept, rest = divmod(answer.start - held.start, timedelta(seconds=held.step))
    if answer.step != held.step or rest or not 0 <= kept <= held.points:
        return answer
    points = kept + answer.points
    cut = max(0, points - max_points)
    series = {
        key: {
            name: [
                *_column(held.series.get(key, {}), name, kept, held.points),
                *_column(answer.series.get(key, {}), name, answer.points, answer.points),
            ][cut:]
            for name in answer.series.get(key, held.series.get(key, {}))
        }
        for key in {**held.series, **answer.series}
    }
    start = held.start + cut * timedelta(seconds=held.step)
    return History(start, held.step, points - cut, series, answer.position)


def _column(series: Mapping[str, Column], name: str, count: int, points: int) -> Column:
    empty: Column = [0 if name in _COUNTS else None] * points
    return series.get(name, empty)[:count]


def _read(message: HistoryOut) -> History:
    """Return an answer as a `History`. Raises msgspec.DecodeError if it is inconsistent."""
    series: dict[str, dict[str, Column]] = {}
    for columns in message.series:
        # Members that are not columns are of a later version.
        lists = {name: column for name, column in columns.items() if isinstance(column, list)}
        series[columns.get("key", "")] = lists
    columns_fit = all(
        len(column) == message.points for rest in series.values() for column in rest.values()
    )
    try:
        start = datetime.fromisoformat(message.from_)
        _ = start.astimezone(UTC) + message.points * timedelta(seconds=message.step)
    except (ValueError, OverflowError) as error:
        raise msgspec.DecodeError(f"a history has an invalid start or length ({error})") from None
    if start.tzinfo is None or message.step < 1 or not 0 <= message.points <= _MAX_POINTS:
        raise msgspec.DecodeError("a history has an invalid start, step or number of points")
    if not columns_fit:
        raise msgspec.DecodeError("the columns of a history do not have one value for each point")
    return History(start, message.step, message.points, series, message.position)
