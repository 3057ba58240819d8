"""The check of Redis: whether it can be used as it must be, and if not, why.

Each command that the adapters send is tried alone, on the check's own keys. So a command that is
not allowed is reported by name; otherwise a part of the node would silently not work. If Redis
cannot be reached, the check finds out whether one side speaks TLS and the other does not.
"""

import asyncio
import logging
import secrets
import ssl
from collections.abc import Callable
from math import inf
from typing import Any, Final

from redis import exceptions

from routecast.adapters.redis_client import RedisAddress, RedisLink
from routecast.errors import Declined, Unavailable

log = logging.getLogger(__name__)

# Seconds between two checks. A right that is granted takes effect even before the next one.
RIGHTS_CHECK_SECONDS: Final = 60.0
# Seconds between two attempts to find out why Redis cannot be reached.
EXPLAIN_SECONDS: Final = 30.0
# Time to connect to one address and get a reply, in seconds.
PROBE_SECONDS: Final = 1.0
# Keys of the check that were not deleted expire after this time.
LEFT_MILLISECONDS: Final = 10_000

# The parts and the commands that each needs; commands inside scripts are checked as well.
NEEDS: Final[dict[str, frozenset[str]]] = {
    "bus": frozenset({"XADD", "XREAD", "XREVRANGE", "PEXPIRE"}),
    "cache": frozenset({"EVAL", "HMGET", "HSET", "PEXPIRE", "DEL"}),
    "census": frozenset({"EVAL", "TIME", "HSET", "HGETALL", "HDEL", "PTTL", "PEXPIRE"}),
    "claims": frozenset({"EVAL", "SET"}),
    "keys": frozenset({"HSET", "HMGET"}),
}
COMMANDS: Final = frozenset().union(*NEEDS.values())

# Beginnings of Redis's replies to a client that does not speak TLS.
_PLAIN_ANSWERS: Final = (b"+PONG", b"-NOAUTH", b"-ERR", b"-NOPERM", b"-DENIED", b"-LOADING")
# The remedies of errors that do not name one.
_REMEDIES: Final = {
    "certificate verify failed": "check ssl_ca_certs, and the host's name in the URL",
    "invalid username-password": "check the user and the password in the URL",
    "authentication required": "the URL needs a password",
    "tlsv13 alert certificate required": "the URL needs ssl_certfile and ssl_keyfile",
}


class RedisCheck:
    """Finds out what is wrong with Redis. Run `run` as a task.

    `up` is called with 1 if nothing is wrong, otherwise with 0.
    """

    def __init__(self, link: RedisLink, up: Callable[[float], object] = lambda _: None) -> None:
        self._up = up
        self._link = link
        self._key = link.key(f"check:{secrets.token_hex(8)}")
        self._logged: str | None = None  # the last problem that was logged
        self._explained = -inf  # when, monotonic
        self.missing: frozenset[str] = frozenset()  # commands that this node may not send
        self.problem: str | None = None  # with Redis as a whole, or with some commands
        self.done = False  # whether the first check has ended, with any result

    @property
    def parts(self) -> list[str]:
        """The parts of NEEDS that do not work, because a command is not allowed."""
        return [part for part, needed in NEEDS.items() if needed & self.missing]

    async def run(self) -> None:
        """Check once a minute. Never ends."""
        while True:
            try:
                missing, declined = await self._refused()
            except Unavailable as error:
                await self._explain(str(error))
                self.done = True
                await self._link.pause()
            else:
                self.missing = frozenset(missing)
                self._report(self._text(missing) if missing else declined)
                self.done = True
                await asyncio.sleep(RIGHTS_CHECK_SECONDS)

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()

    # -- commands -------------------------------------------------------------------------------

    async def _refused(self) -> tuple[dict[str, str], str | None]:
        """Try each command; return Redis's error for each one that is not allowed.

        The second value is the error of another declined command, if any, such as a full memory.
        Raises Unavailable if Redis cannot be reached.
        """
        key, missing = self._key, {}
        other: str | None = None
        tries: list[tuple[Any, ...]] = [
            ("SET", key, "", "XX", "PX", 1),  # on a key that does not exist, it changes nothing
            ("HSET", key, "field", ""),
            ("PEXPIRE", key, LEFT_MILLISECONDS),
            ("HMGET", key, "field"),
            ("HGETALL", key),
            ("PTTL", key),
            ("HDEL", key, "other"),
            ("DEL", key),
            ("XADD", key, "NOMKSTREAM", "*", "field", ""),
            ("XREVRANGE", key, "+", "-", "COUNT", 1),
            ("XREAD", "COUNT", 1, "STREAMS", key, "0"),
            ("TIME",),
        ]
        try:
            await self._echo()
        except Declined as error:
            if _is_prohibition(error):
                missing["EVAL"] = str(error)
            else:
                other = str(error)
        for words in tries:
            try:
                await self._send(words)
            except Declined as error:
                if _is_prohibition(error):
                    missing[words[0]] = str(error)
                else:
                    other = other or str(error)
        return missing, other

    async def _send(self, words: tuple[Any, ...]) -> None:
        await self._link.call(lambda redis: redis.execute_command(*words))

    async def _echo(self) -> None:
        """Have a script return a random word: only a Redis server can do that."""
        word = secrets.token_hex(8)

        def read(reply: Any) -> None:
            if reply != word.encode():
                raise ValueError("a script returned another word than the one it was given")

        await self._link.call(lambda redis: redis.eval("return ARGV[1]", 1, self._key, word), read)

    def _text(self, missing: dict[str, str]) -> str:
        names = ", ".join(sorted(missing))
        parts = ", ".join(self.parts)
        said = next(iter(missing.values()))
        return (
            f"Redis does not let this node run {names}, so these do not work: {parts} ({said}). "
            "Give its user the commands that docs/deploy.md lists"
        )

    # -- reaching it ----------------------------------------------------------------------------

    async def _explain(self, error: str) -> None:
        """Find out why Redis cannot be reached; log it if the error does not say it."""
        now = asyncio.get_running_loop().time()
        if self.problem is not None and now < self._explained + EXPLAIN_SECONDS:
            return
        self._explained = now
        address = self._link.address
        for host, port in address.hosts if not address.socket else ():
            hint = await _mismatch(address, host, port)
            if hint is not None:
                self._report(hint)
                return
        remedy = next((fix for words, fix in _REMEDIES.items() if words in error.lower()), None)
        if remedy is not None:
            self._report(f"{error}: {remedy}")
        else:
            self._set_problem(error)  # the circuit breaker has logged it

    def _set_problem(self, problem: str | None) -> None:
        self.problem = problem
        self._up(float(problem is None))

    def _report(self, problem: str | None) -> None:
        self._set_problem(problem)
        if problem == self._logged:
            return
        if problem is not None:
            log.error("%s", problem)
        else:
            log.warning("Redis accepts all commands that this node needs")
        self._logged = problem


def _is_prohibition(error: Declined) -> bool:
    """Whether this user may not run the command, or Redis does not have it."""
    said = error.__cause__
    return isinstance(said, exceptions.NoPermissionError) or str(said).lower().startswith(
        "unknown command"
    )


async def _mismatch(address: RedisAddress, host: str, port: int) -> str | None:
    """Return a hint if one side speaks TLS and the other does not."""
    if address.tls:
        if await _speaks_plainly(host, port):
            return (
                f"Redis at {host}:{port} does not speak TLS there: write redis:// in place of "
                "rediss:// in ROUTECAST_REDIS_URL, or name its TLS port"
            )
    elif await _speaks_tls(host, port):
        return (
            f"The server at {host}:{port} speaks TLS: write rediss:// in place of redis:// in "
            "ROUTECAST_REDIS_URL"
        )
    return None


async def _speaks_plainly(host: str, port: int) -> bool:
    """Whether a server answers a PING without TLS; False after any error."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"PING\r\n")
                return (await reader.read(64)).startswith(_PLAIN_ANSWERS)
            finally:
                writer.close()
    except Exception:
        return False


async def _speaks_tls(host: str, port: int) -> bool:
    """Whether a server completes a TLS handshake; False after any error."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # only the TLS handshake is sent
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.close()
    except Exception:
        return False
    return True
