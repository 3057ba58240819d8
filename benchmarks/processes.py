"""Time and memory of processes, as Linux reports them (proc(5))."""

import os
import resource
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its children have used, in seconds."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    own = sum(int(thread.read_text().split()[0]) for thread in threads)
    return own / 1e9 + sum(map(cpu_seconds, _children(pid)))


def busy_seconds(core: int) -> float:
    """Return how long a core was busy since the machine started, in steps of 0.01 seconds."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *times = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _waiting, interrupts, soft = map(int, times[:7])
            return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
    raise ValueError(f"there is no core {core}")


def unique_bytes(pid: int) -> int:
    """Return the unshared memory of a process and its children (unique set size), in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return own * 1024 + sum(map(unique_bytes, _children(pid)))


def clear_references(pid: int) -> None:
    """Clear the marks of touched pages of a process and its children."""
    Path(f"/proc/{pid}/clear_refs").write_text("1")
    for child in _children(pid):
        clear_references(child)


def referenced_bytes(pid: int) -> int:
    """Return the memory that a process and its children touched since `clear_references`.

    Only writable pages count, because other processes touch the pages of programs and libraries,
    too.
    """
    own, is_writable = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            is_writable = rest[0].startswith("rw")
        elif name == "Referenced:" and is_writable:
            own += int(rest[0]) * 1024
    return own + sum(map(referenced_bytes, _children(pid)))


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").glob("*/children")
        for child in thread.read_text().split()
    ]


def kernel_tcp_bytes() -> int:
    """Return the kernel's memory for all TCP sockets of this machine, both ends of each."""
    _, _, counts = Path("/proc/net/sockstat").read_text().partition("\nTCP: ")
    return int(counts.splitlines()[0].split()[-1]) * resource.getpagesize()
