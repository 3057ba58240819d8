"""The past in buckets, as a client holds it: each answer replaces all from its first bucket on."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from routecast.client.session import Effect, News, Trouble
from routecast.protocol import GetHistory, HistoryOut, Position

Column = list[float | None]

# What is 0 where nothing was decided; all else is not known there.
_COUNTS: Final = frozenset({"count", "errors", "fallbacks", "input_tokens", "output_tokens"})
# Buckets of one answer, with room to spare: a server sends 2,000 at most.
_MAX_POINTS: Final = 100_000


class History(msgspec.Struct, frozen=True):
    """Buckets of `step` seconds from `start` on, as of `position`; the last one may still run.

    `series` has a column of `points` values for each field, by the key of each group (`all` where
    nothing is grouped). None is a value over nothing.
    """

    start: datetime
    step: int
    points: int
    series: dict[str, dict[str, Column]]
    position: Position

    @property
    def times(self) -> list[datetime]:
        """When each bucket begins."""
        return [self.start + number * timedelta(seconds=self.step) for number in range(self.points)]


class HistoryRequest:
    """A history that was asked for, and that may follow. `now` is seconds since 1970."""

    def __init__(self, asked: GetHistory, most: int, now: Callable[[], float]) -> None:
        self.id = asked.id
        self.trouble: Trouble = None
        self.held: History | None = None
        self._asked = asked
        self._most = most
        self._now = now

    @property
    def over(self) -> bool:
        """Whether it was answered, and does not follow."""
        return not self._asked.follow and (self.held is not None or self.trouble is not None)

    def request(self) -> GetHistory:
        """Ask for all that is not held for certain.

        After a loss that is every bucket, since decisions may come late; but no more of them than
        are kept, or the server would choose longer ones.
        """
        held = self.held
        if held is None:
            return self._asked
        first = self._now() - (self._most - 1) * held.step
        since = max(held.start, datetime.fromtimestamp(first, UTC))
        return msgspec.structs.replace(self._asked, from_=since)

    def receive(self, message: News) -> Effect:
        """Take the first answer, or a further one."""
        if not isinstance(message, HistoryOut):
            return Effect.IGNORED
        news = _read(message)
        self.held = news if self.held is None else joined(self.held, news, self._most)
        self.trouble = None
        return Effect.TAKEN


def joined(held: History, news: History, most: int) -> History:
    """Return what was held up to the first bucket of the news, and then these; `most` buckets."""
    kept, rest = divmod(news.start - held.start, timedelta(seconds=held.step))
    if news.step != held.step or rest or not 0 <= kept <= held.points:
        return news
    points = kept + news.points
    cut = max(0, points - most)
    series = {
        key: {
            name: [
                *_column(held.series.get(key, {}), name, kept, held.points),
                *_column(news.series.get(key, {}), name, news.points, news.points),
            ][cut:]
            for name in news.series.get(key, held.series.get(key, {}))
        }
        for key in {**held.series, **news.series}
    }
    start = held.start + cut * timedelta(seconds=held.step)
    return History(start, held.step, points - cut, series, news.position)


def _column(series: Mapping[str, Column], name: str, count: int, points: int) -> Column:
    empty: Column = [0 if name in _COUNTS else None] * points
    return series.get(name, empty)[:count]


def _read(message: HistoryOut) -> History:
    """Return an answer with times. Raises msgspec.DecodeError where it contradicts itself."""
    series: dict[str, dict[str, Column]] = {}
    for columns in message.series:
        # What is no column is of a later version.
        lists = {name: column for name, column in columns.items() if isinstance(column, list)}
        series[columns.get("key", "")] = lists
    columns_fit = all(
        len(column) == message.points for rest in series.values() for column in rest.values()
    )
    try:
        start = datetime.fromisoformat(message.from_)
        _ = start.astimezone(UTC) + message.points * timedelta(seconds=message.step)
    except (ValueError, OverflowError) as error:
        raise msgspec.DecodeError(f"a history of no time ({error})") from None
    if start.tzinfo is None or message.step < 1 or not 0 <= message.points <= _MAX_POINTS:
        raise msgspec.DecodeError("a history of no time")
    if not columns_fit:
        raise msgspec.DecodeError(
            "a history whose columns have not as many values as it has points"
        )
    return History(start, message.step, message.points, series, message.position)
