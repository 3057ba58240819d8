"""Several nodes on one database and one Redis, each a process of its own."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from tests.support.server import Server


class Nodes:
    """Nodes that share their engines. Use as a context manager, or `start` and `stop`.

    `last` is added to the environment of the last one.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        database_url: str,
        redis_url: str,
        prefix: str = "routecast",
        last: Mapping[str, str] | None = None,
    ) -> None:
        self.database_url = database_url
        self._servers = [
            Server(
                folder / f"node{number}",
                database_url=database_url,
                redis_url=redis_url,
                env={
                    "ROUTECAST_REDIS_PREFIX": prefix,
                    **(last or {} if number == count - 1 else {}),
                },
            )
            for number in range(count)
        ]

    def __iter__(self) -> Iterator[Server]:
        return iter(self._servers)

    def __getitem__(self, number: int) -> Server:
        return self._servers[number]

    def __len__(self) -> int:
        return len(self._servers)

    def start(self) -> Self:
        """Start all that do not run, at the same moment; return when they are ready."""
        started = [server for server in self._servers if not server.runs]
        for server in started:
            server.launch()
        for server in started:
            server.wait_until_started()
        return self

    def stop(self) -> None:
        """Stop all."""
        for server in self._servers:
            if server.runs:
                server.thaw()
                server.terminate()
        for server in self._servers:
            if server.process is not None:
                server.wait()
            server.http.close()

    def log(self) -> str:
        """Return the logs of all."""
        return "\n".join(f"{server.log}:\n{server.log.read_text()}" for server in self._servers)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
