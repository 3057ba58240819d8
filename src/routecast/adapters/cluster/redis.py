"""The cluster of the nodes that share a Redis."""

import secrets
from contextlib import suppress
from typing import Any, Final

from routecast.adapters.redis_client import RedisLink, is_done
from routecast.errors import Unavailable
from routecast.ports import CENSUS_SECONDS

# A script, since its reply cannot be taken for that of anything else at the address.
_CLAIM: Final = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
"""
# A hash holds, by node, until when its word counts and how many streams it has. The time is
# Redis's own, so that the clocks of nodes do not matter.
_NOW: Final = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)"
_TELL: Final = f"""{_NOW}
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %d', now + ARGV[3], ARGV[2]))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
_CONNECTIONS: Final = f"""{_NOW}
local sum = 0
local census = redis.call('HGETALL', KEYS[1])
for i = 1, #census, 2 do
  local ends, count = census[i + 1]:match('^(%d+) (%d+)$')
  if tonumber(ends) > now then sum = sum + count
  else redis.call('HDEL', KEYS[1], census[i]) end
end
return {{'streams', sum}}
"""


class RedisCluster:
    """Claims and a census in Redis (`ports.Cluster`)."""

    def __init__(self, link: RedisLink, census_seconds: float = CENSUS_SECONDS) -> None:
        self._link = link
        self._node = secrets.token_hex(8)
        self._census = link.key("census")
        self._milliseconds = round(census_seconds * 1000)
        self._told = False

    async def claim(self, work: str, seconds: float) -> bool:
        key, milliseconds = self._link.key(f"claim:{work}"), round(seconds * 1000)
        args = (self._node, milliseconds)
        return await self._link.call(lambda redis: redis.eval(_CLAIM, 1, key, *args), is_done)

    async def tell(self, connections: int) -> None:
        self._told = True
        args = (self._node, connections, self._milliseconds)
        await self._link.call(lambda redis: redis.eval(_TELL, 1, self._census, *args), is_done)

    async def connections(self) -> int:
        return await self._link.call(
            lambda redis: redis.eval(_CONNECTIONS, 1, self._census), _count
        )

    async def close(self) -> None:
        told, self._told = self._told, False
        if told:
            with suppress(Unavailable):  # then the census forgets it in its time
                await self._link.call(lambda redis: redis.hdel(self._census, self._node))
        await self._link.close()


def _count(reply: Any) -> int:
    """Read the reply of the script `_CONNECTIONS`, whose first word nothing else says."""
    word, count = reply
    if word != b"streams" or type(count) is not int:
        raise ValueError("the sum of streams is not as the script gives it")
    return count
