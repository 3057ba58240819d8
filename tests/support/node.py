"""Node.js, the packages of the JavaScript client, and processes that run this client."""

import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.support.needs import skip_without

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "js"
WAIT_SECONDS = 30.0
LEAST_NODE = 20
NODE = (f"Node.js {LEAST_NODE} or newer", "apt install nodejs npm, or https://nodejs.org")

Message = dict[str, Any]


def node() -> str:
    """Return the path of Node.js; skip the test if it is missing or too old."""
    program = shutil.which("node")
    if program is None:
        skip_without(*NODE)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.lstrip("v").partition(".")[0]) < LEAST_NODE:
        skip_without(*NODE)
    return program


def modules() -> Path:
    """Return the folder of the client's packages; skip the test if they are not installed."""
    folder = CLIENT / "node_modules"
    if not (folder / "ws").exists():
        skip_without("the packages of clients/js", "npm ci --prefix clients/js")
    return folder


class FollowerProcess:
    """A process with the JavaScript client that prints what it receives."""

    def __init__(self, folder: Path, url: str, view: Message, *options: str) -> None:
        # Outside of the client's package, like the programs of its users.
        script = folder / "follow.mjs"
        script.write_bytes((CLIENT / "test" / "follow.js").read_bytes())
        self.process = subprocess.Popen(
            [node(), str(script), url, json.dumps(view), *options],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NODE_NO_WARNINGS": "1"},
        )
        self._messages: queue.Queue[Message] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._messages.put(json.loads(line))

    def until(self, good: Callable[[Message], bool]) -> Message:
        """Return the next line that satisfies a condition."""
        seen = []
        while True:
            try:
                seen.append(self._messages.get(timeout=WAIT_SECONDS))
            except queue.Empty:
                raise AssertionError(f"nothing good in {seen}") from None
            if good(seen[-1]):
                return seen[-1]

    def state(self, name: str) -> Message:
        """Return the next state of this name."""
        state: Message = self.until(lambda line: line.get("state", {}).get("name") == name)["state"]
        return state

    def total(self, count: int) -> Message:
        """Return the next line with this number of decisions."""
        return self.until(lambda line: line.get("metrics", {}).get("total_decisions") == count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        assert self.process.stdout
        self.process.stdout.close()
