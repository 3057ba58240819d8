"""The contract of all temporary records (`ports.TemporaryRecords`)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from routecast.ports import TemporaryRecords
from tests.support.engines import PATIENCE, Shared


@pytest.fixture
async def records(shared: Shared) -> AsyncIterator[TemporaryRecords]:
    """Empty records."""
    made = shared.records()
    yield made
    await made.close()


async def test_a_record_is_kept_as_it_is(records: TemporaryRecords) -> None:
    """Byte by byte; a later one with its name replaces it. Others are unknown."""
    content = bytes(range(256))
    await records.put("a", b"first", 600)
    await records.put("a", content, 600)
    assert await records.get(["b", "a"]) == [None, content]
    assert await records.get([]) == []


async def test_a_record_is_taken_once(records: TemporaryRecords) -> None:
    """Of many who take it at once, one gets it."""
    await records.put("a", b"once", 600)
    taken = await asyncio.gather(*(records.take("a") for _ in range(20)))
    assert sorted(taken, key=bool)[-2:] == [None, b"once"]
    assert await records.get(["a"]) == [None]


async def test_a_record_ends_in_its_time(records: TemporaryRecords) -> None:
    """A later read finds nothing."""
    await records.put("a", b"short", 0.05)
    await records.put("b", b"long", 600)
    async with asyncio.timeout(PATIENCE):
        while (await records.get(["a"])) != [None]:  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.01)
    assert await records.take("a") is None
    assert await records.get(["b"]) == [b"long"]


async def test_only_a_record_that_is_there_is_replaced(records: TemporaryRecords) -> None:
    """Its new time counts. One that was deleted or has ended does not come back."""
    first = await records.version()
    assert not await records.replace("a", b"new", 600)
    assert await records.get(["a"]) == [None]
    await records.put("a", b"old", 600)
    await records.put("b", b"old", 600)
    assert await records.replace("a", b"new", 600)
    assert await records.get(["a", "b"]) == [b"new", b"old"]
    assert await records.version() == first
    await records.delete("a")
    assert not await records.replace("a", b"new", 600)
    assert await records.replace("b", b"short", 0.05)
    async with asyncio.timeout(PATIENCE):
        while (await records.get(["b"])) != [None]:  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.01)
    assert not await records.replace("b", b"new", 600)
    assert await records.get(["a", "b"]) == [None, None]


async def test_a_deleted_record_changes_the_version(records: TemporaryRecords) -> None:
    """Nothing else does."""
    first = await records.version()
    await records.put("a", b"x", 600)
    await records.put("b", b"x", 600)
    await records.take("b")
    assert await records.version() == first
    await records.delete("a")
    assert await records.get(["a"]) == [None]
    second = await records.version()
    await records.delete("a")
    assert len({first, second, await records.version()}) == 3
