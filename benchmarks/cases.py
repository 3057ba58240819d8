"""Benchmark cases: each runs in a process of its own, and returns a result."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

Result = TypeVar("Result", bound=msgspec.Struct)


class Broken(Exception):
    """A case could not be measured: a process failed, or an answer was wrong."""


class Absent(Exception):
    """A benchmark cannot run here: this machine lacks something that it needs."""


def command(module: str, task: msgspec.Struct) -> list[str]:
    """Return the command that runs a module as a process with a task."""
    return [sys.executable, "-m", module, msgspec.json.encode(task).decode()]


def run_case(module: str, task: msgspec.Struct, answers: type[Result]) -> Result:
    """Run a module as a process with a task; return its result. Raises Broken."""
    done = subprocess.run(command(module, task), capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode().strip().splitlines()[-20:]
        raise Broken("\n".join([f"{module} failed:", *why]))
    return msgspec.json.decode(done.stdout, type=answers)


def answer(takes: Any, measure: Callable[[Any], msgspec.Struct]) -> None:
    """Do a process's task, of a type in `takes`, and answer: the other side of `run_case`."""
    task = msgspec.json.decode(sys.argv[1], type=takes)
    sys.stdout.buffer.write(msgspec.json.encode(measure(task)))
