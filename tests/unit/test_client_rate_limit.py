"""The client's rate limit: never more messages in a minute than the server takes."""

from bisect import bisect_left

import pytest

from routecast.client.rate_limit import TokenBucket


def sent(bucket: TokenBucket, until: float) -> list[float]:
    """Return when messages went of a client that always has one."""
    now, times = 1_000.0, []
    while now < 1_000 + until:
        if pause := bucket.next(now):
            now += pause
        else:
            times.append(now)
    return times


@pytest.mark.parametrize("limit", [12, 120, 1_200])
def test_no_minute_has_more_than_the_server_takes(limit: int) -> None:
    """Some go at once, the others evenly; even if the network hurries, there is room."""
    times = sent(TokenBucket(limit), 300)
    assert times.count(times[0]) == int(0.4 * limit)
    for hurry in (60, 65):
        within = [bisect_left(times, at + hurry) - bisect_left(times, at) for at in times]
        assert max(within) <= limit
    assert len(times) > 2.5 * limit


def test_what_time_made_good_may_go_at_once_again() -> None:
    """After a quiet minute as after none."""
    bucket = TokenBucket()
    assert len(sent(bucket, 0.1)) == 48
    assert bucket.next(1_000.1) > 0
    assert [bucket.next(1_050.0) for _ in range(48)] == [0.0] * 48
    assert bucket.next(1_050.0) > 0


def test_a_server_that_takes_none_is_not_waited_for_without_end() -> None:
    """Nonsense is read as one a minute."""
    assert sent(TokenBucket(0), 1) == [1_000.0]
