"""Cases: each runs in a process of its own, is told what to do, and answers with a result."""

import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

Task = TypeVar("Task", bound=msgspec.Struct)
Result = TypeVar("Result", bound=msgspec.Struct)


class Broken(Exception):
    """A case could not be measured: a process failed, or an answer was not what it must be."""


def run_case(module: str, task: msgspec.Struct, answers: type[Result]) -> Result:
    """Run a module as a process with a task; return its result. Raises Broken."""
    command = [sys.executable, "-m", module, msgspec.json.encode(task).decode()]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode().strip().splitlines()[-20:]
        raise Broken("\n".join([f"{module} failed:", *why]))
    return msgspec.json.decode(done.stdout, type=answers)


def answer(takes: type[Task], measure: Callable[[Task], msgspec.Struct]) -> None:
    """Be the process that `run_case` started: do the task and print its result."""
    task = msgspec.json.decode(sys.argv[1], type=takes)
    sys.stdout.buffer.write(msgspec.json.encode(measure(task)))
