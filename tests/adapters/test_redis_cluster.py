"""The cluster adapter on Redis: claims and the number of streams of several nodes."""

import asyncio
from operator import methodcaller

import pytest

from routecast.adapters.cluster.redis import RedisCluster
from routecast.core.token_bucket import Quota
from tests.support.engines import PATIENCE, SharedRedis


@pytest.fixture
def shared(redis_url: str) -> SharedRedis:
    return SharedRedis(redis_url)


async def test_one_node_gets_a_claim(shared: SharedRedis) -> None:
    """Several nodes ask at once, and all but one learn that it is claimed."""
    nodes = [shared.cluster() for _ in range(8)]
    claimed = await asyncio.gather(*(node.claim("look", 600) for node in nodes))
    assert sum(claimed) == 1
    for node in nodes:
        await node.close()


async def test_streams_of_all_nodes_count(shared: SharedRedis) -> None:
    """The newest report of each node counts; a node that stops removes its own."""
    first, second = shared.cluster(), shared.cluster()
    await first.report_connections(5)
    await second.report_connections(7)
    await first.report_connections(6)
    assert await first.total_connections() == await second.total_connections() == 13
    await first.close()
    assert await second.total_connections() == 7
    await second.close()


async def test_silent_node_does_not_count(shared: SharedRedis) -> None:
    """Its last report expires by the clock of Redis."""
    silent, watcher = shared.cluster(0.2), shared.cluster()
    await watcher.report_connections(1)
    await silent.report_connections(5)
    async with asyncio.timeout(PATIENCE):
        while await watcher.total_connections() != 1:  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.02)
    await silent.report_connections(5)
    assert await watcher.total_connections() == 6
    for node in (silent, watcher):
        await node.close()


async def test_counts_expire_when_all_nodes_are_silent(shared: SharedRedis) -> None:
    """They expire also if no node reads them."""
    node, watcher = shared.cluster(0.1), shared.cluster()
    await node.report_connections(5)
    async with asyncio.timeout(PATIENCE):
        while await watcher.total_connections():  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.02)
    for one in (node, watcher):
        await one.close()


async def test_summaries_are_those_of_nodes_that_report(shared: SharedRedis) -> None:
    """Each node reads those of all; that of a silent node expires."""
    silent, other = shared.cluster(0.2), shared.cluster()
    await silent.report_connections(1, b"silent")
    await other.report_connections(2, b"other")
    async with asyncio.timeout(PATIENCE):
        while await other.summaries() != [b"other"]:  # noqa: ASYNC110  -- asking is the test
            await asyncio.sleep(0.02)
    await silent.report_connections(1, b"back")
    assert sorted(await silent.summaries()) == [b"back", b"other"]
    await other.close()
    assert await silent.summaries() == [b"back"]
    await silent.close()


async def test_nodes_spend_from_the_same_allowances(shared: SharedRedis) -> None:
    """It does not matter which node asks; another prefix has its own."""
    quota = Quota(100, 3_600.0)
    first, second = shared.cluster(), shared.cluster()
    await asyncio.gather(*(node.spend("ingest", quota, {"ana": 20}) for node in (first, second)))
    assert await first.spend("ingest", quota, {"ana": 0}) == {"ana": pytest.approx(60, abs=1)}
    other = SharedRedis(shared._url).cluster()
    assert await other.spend("ingest", quota, {"ana": 0}) == {"ana": 100}
    for node in (first, second, other):
        await node.close()


async def test_allowances_do_not_stay_in_redis(shared: SharedRedis) -> None:
    """Each goes when all of it is there again. Names of clients are not in its key."""
    node, link = shared.cluster(), shared.link()
    await node.spend("ingest", Quota(100, 60.0), {"subject ana": 50})
    keys = await link.call(lambda redis: redis.keys(f"{link.key('limit')}*"))
    assert len(keys) == 1
    assert b"ana" not in keys[0]
    milliseconds = await link.call(lambda redis: redis.pttl(keys[0]))
    assert 25_000 < milliseconds <= 31_000
    for one in (node, link):
        await one.close()


async def listened(*nodes: RedisCluster) -> None:
    """Have nodes read questions that are asked from now on."""
    for node in nodes:
        assert await node.questions() == []


async def answer_once(node: RedisCluster, text: bytes) -> list[bytes]:
    """Answer the questions that come next; return them."""
    while not (found := await node.questions()):
        pass
    for identity, _ in found:
        await node.answer(identity, text)
    return [question for _, question in found]


async def test_all_nodes_are_asked(shared: SharedRedis) -> None:
    """Also the one that asks; answers come as they were sent, however large."""
    asker, *others = nodes = [shared.cluster() for _ in range(4)]
    await listened(*nodes)
    texts = [bytes([number]) * 300_000 for number in range(3)]
    answers, *seen = await asyncio.gather(
        asker.ask(b"who?", 3, PATIENCE), *map(answer_once, others, texts)
    )
    assert sorted(answers) == texts
    assert seen == [[b"who?"]] * 3
    assert [question for _, question in await asker.questions()] == [b"who?"]
    for node in nodes:
        await node.close()


async def test_those_that_answer_late_are_not_awaited(shared: SharedRedis) -> None:
    """The answers that came in time are returned."""
    asker, other, silent = nodes = [shared.cluster() for _ in range(3)]
    await listened(other, silent)
    answers, _ = await asyncio.gather(asker.ask(b"who?", 2, 1.0), answer_once(other, b"me"))
    assert answers == [b"me"]
    assert await asker.ask(b"who?", 1, 0.0) == []
    for node in nodes:
        await node.close()


async def test_questions_before_a_node_came_are_not_its_own(shared: SharedRedis) -> None:
    """No node waits for its answer any more."""
    asker, late = shared.cluster(), shared.cluster()
    assert await asker.ask(b"old", 1, 0.01) == []
    await listened(late)
    assert await late.questions() == []
    for node in (asker, late):
        await node.close()


async def test_questions_and_answers_expire(shared: SharedRedis) -> None:
    """Redis keeps nothing of them for ever."""
    asker, other, redis = shared.cluster(), shared.cluster(), shared.link()
    await listened(other)
    await asyncio.gather(asker.ask(b"who?", 1, PATIENCE), answer_once(other, b"me"))
    keys: list[bytes] = await redis.call(lambda client: client.keys("*answers:*"))
    mine = [key.decode() for key in keys if key.decode().startswith(redis.key("answers"))]
    assert len(mine) == 1
    for key in (redis.key("questions"), *mine):
        assert await redis.call(methodcaller("pttl", key)) > 0
    for each in (asker, other, redis):
        await each.close()


async def test_what_other_programs_write_is_no_question(shared: SharedRedis) -> None:
    """It is read as an empty one, which no node understands."""
    node, redis = shared.cluster(), shared.link()
    await listened(node)
    for fields in ({"x": "y"}, {"id": b"\xff", "question": b"not compressed"}):
        await redis.call(methodcaller("xadd", redis.key("questions"), fields))
        assert [question for _, question in await node.questions()] == [b""]
    for each in (node, redis):
        await each.close()
