"""`Stage`: the database, document and C programs of all stream benchmarks, which are made once."""

import os
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
import msgspec

from benchmarks.cases import Absent, Broken
from benchmarks.load import HOST
from benchmarks.servers import routecast
from benchmarks.traffic import STRATEGIES, Ids, decisions

DECISIONS: Final = 1_000
# More than any benchmark opens in one process.
DESCRIPTORS: Final = 20_000
# The server runs on one processor, its clients on another; if there is only one, they share it.
SERVER_CORE, CLIENT_CORE = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Stage:
    """A database, the document that every server streams, and the programs in C."""

    folder: Path
    floor: Path
    subscribers: Path
    database: Path
    document: Path  # without its timestamp, which is last, and the closing brace


def set_stage(folder: Path) -> Stage:
    """Make everything in an empty folder. Raises Absent if there is no C compiler."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit < DESCRIPTORS:
        raise Absent(f"a process may open {limit} files, and {DESCRIPTORS} are needed (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, limit))
    database, document = folder / "routecast.db", folder / "document"
    with routecast(database) as port:
        document.write_bytes(_fill(f"http://{HOST}:{port}"))
    floor, subscribers = (_compile(name, folder) for name in ("floor", "subscribers"))
    return Stage(folder, floor, subscribers, database, document)


def _fill(url: str) -> bytes:
    """Send decisions to a server, and return its document up to the value of `timestamp`."""
    sent = [d for d in decisions(DECISIONS, Ids.RANDOM) if d["strategy"] in STRATEGIES[:2]]
    httpx2.post(f"{url}/v1/decisions", content=msgspec.json.encode(sent)).raise_for_status()
    head, stamp, _ = httpx2.get(f"{url}/routing/metrics").content.partition(b'"timestamp":')
    return head + stamp


def _compile(name: str, folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        raise Absent("there is no C compiler (cc)")
    source, program = Path(__file__).with_name(f"{name}.c"), folder / name
    command = [compiler, "-O2", "-D_GNU_SOURCE", "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise Broken(f"{source.name} does not compile:\n{done.stderr.decode().strip()}")
    return program
