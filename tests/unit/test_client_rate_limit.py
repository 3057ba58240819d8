"""Tests of the client's rate limit: it sends at most as many messages as the server allows."""

from bisect import bisect_left

import pytest

from routecast.client.rate_limit import TokenBucket


def sent(bucket: TokenBucket, until: float) -> list[float]:
    """Return the times at which a client that always has a message sends them."""
    now, times = 1_000.0, []
    while now < 1_000 + until:
        if pause := bucket.next(now):
            now += pause
        else:
            times.append(now)
    return times


@pytest.mark.parametrize("limit", [12, 120, 1_200])
def test_no_minute_has_more_than_the_server_allows(limit: int) -> None:
    """A part goes at once, the others evenly; with 5 s of network jitter the limit still holds."""
    times = sent(TokenBucket(limit), 300)
    assert times.count(times[0]) == int(0.4 * limit)
    for hurry in (60, 65):
        within = [bisect_left(times, at + hurry) - bisect_left(times, at) for at in times]
        assert max(within) <= limit
    assert len(times) > 2.5 * limit


def test_a_quiet_time_allows_a_burst_again() -> None:
    """After a quiet minute the burst is as large as the first one."""
    bucket = TokenBucket()
    assert len(sent(bucket, 0.1)) == 48
    assert bucket.next(1_000.1) > 0
    assert [bucket.next(1_050.0) for _ in range(48)] == [0.0] * 48
    assert bucket.next(1_050.0) > 0


def test_a_limit_of_zero_counts_as_one_message_a_minute() -> None:
    """The client never waits without end."""
    assert sent(TokenBucket(0), 1) == [1_000.0]
