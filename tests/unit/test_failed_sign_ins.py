"""Failed sign-ins: how long their answers wait, and whose do not."""

import asyncio

import pytest

from routecast.core.client_limits import ClientLimit, LimitMode, LimitModes
from routecast.core.failed_sign_ins import FORGET_FAILURES_SECONDS, LONGEST_DELAY, FailedSignIns
from routecast.edge import slow_refusals
from routecast.edge.slow_refusals import SlowRefusals
from routecast.errors import BadCredential, Forbidden, OverLimit

BAD = BadCredential("it is not valid")


def test_delays_grow_after_the_free_ones() -> None:
    """Each doubles the one before, up to the longest."""
    failed = FailedSignIns(3)
    delays = [failed.add(["a"], 0.0) for _ in range(3 + 8)]
    assert delays == [0, 0, 0, 0.25, 0.5, 1, 2, 4, 4, 4, 4]
    assert failed.add(["a"], 1.0) == LONGEST_DELAY
    assert failed.add(["b"], 1.0) == 0


def test_the_longer_delay_counts() -> None:
    """That of the address, or that of the credential."""
    failed = FailedSignIns(1)
    for number in range(5):
        failed.add([f"address {number}", b"one credential"], 0.0)
    assert failed.add(["new address", b"one credential"], 0.0) == 4
    assert failed.add(["new address", b"another"], 0.0) == 0.25
    assert failed.add(["third address", b"another"], 0.0) == 0.25


def test_failures_are_forgotten() -> None:
    """After a time without one, or when there are too many clients."""
    failed = FailedSignIns(1, most=2)
    assert [failed.add(["a"], 0.0), failed.add(["a"], 0.0)] == [0, 0.25]
    assert failed.add(["a"], FORGET_FAILURES_SECONDS + 1) == 0
    failed.add(["b"], 0.0)
    failed.add(["c"], 0.0)
    assert len(failed) == 2
    assert failed.add(["a"], 0.0) == 0


def test_many_failures_do_not_overflow() -> None:
    """The delay stays the longest."""
    failed = FailedSignIns(1)
    assert max(failed.add(["a"], 0.0) for _ in range(2_000)) == LONGEST_DELAY


# -- refusals -----------------------------------------------------------------------------------


def test_only_wrong_credentials_are_delayed() -> None:
    """Not requests without one, nor those without a right."""
    slow = SlowRefusals(1, now=lambda: 0.0)
    for error in (BadCredential("none", invalid=False), Forbidden("no")):
        for _ in range(5):
            assert slow.judge(error, "a", None) == (error, 0.0)
    assert [slow.judge(BAD, "a", None)[1] for _ in range(3)] == [0, 0.25, 0.5]
    assert slow.judge(BAD, "b", "x")[1] == 0


def test_no_delay_by_default() -> None:
    """The setting 0 turns them off."""
    slow = SlowRefusals()
    assert all(slow.judge(BAD, "a", "x") == (BAD, 0.0) for _ in range(50))


def test_dry_run_counts_only() -> None:
    """Hits are shown, and nobody waits."""
    hits: list[tuple[ClientLimit, LimitMode]] = []
    modes = LimitModes({"failed_sign_ins"}, lambda limit, mode: hits.append((limit, mode)))
    slow = SlowRefusals(1, modes, now=lambda: 0.0)
    assert [slow.judge(BAD, "a", "x")[1] for _ in range(3)] == [0, 0, 0]
    assert hits == [(ClientLimit.FAILED_SIGN_INS, LimitMode.DRY_RUN)] * 2


async def test_refusals_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further ones of the address, and of all, are answered at once, with 429."""
    monkeypatch.setattr(slow_refusals, "MAX_WAITING_REFUSALS_OF_ADDRESS", 2)
    monkeypatch.setattr(slow_refusals, "MAX_WAITING_REFUSALS", 3)
    slow = SlowRefusals(1, now=lambda: 0.0)
    for address in "abc":
        slow.judge(BAD, address, None)
    tasks = [asyncio.create_task(slow.wait("a", 600)) for _ in range(2)]
    await asyncio.sleep(0)
    error, delay = slow.judge(BAD, "a", None)
    assert isinstance(error, OverLimit)
    assert (error.limit, error.retry_after, delay) == ("failed_sign_ins", 1, 0.0)
    assert slow.judge(BAD, "b", None)[0] is BAD
    tasks.append(asyncio.create_task(slow.wait("b", 600)))
    await asyncio.sleep(0)
    assert isinstance(slow.judge(BAD, "c", None)[0], OverLimit)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert slow.judge(BAD, "c", None)[0] is BAD
