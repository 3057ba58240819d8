"""Clients that behave well: producers that are timed, and viewers that check their documents."""

import asyncio
import http.client
import itertools
import json
import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

from routecast.client import Refused, stream
from tests.hostile import inputs
from tests.hostile.traffic import PROJECT, STEADY

PRODUCERS: Final = 4
BATCH: Final = 10
EVERY_SECONDS: Final = 0.2
VIEWERS: Final = 3


@dataclass(slots=True)
class Seen:
    """Results of the clients: seconds for each batch, accepted decisions, and errors."""

    seconds: list[float] = field(default_factory=list)
    accepted: int = 0
    refused: int = 0  # answers of 503, after which the batch was sent again
    documents: int = 0
    wrong: list[str] = field(default_factory=list)


class _Producer(threading.Thread):
    """Sends a small batch again and again, on one connection, and times each answer."""

    def __init__(self, port: int, number: int, seen: Seen, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._address = f"127.0.0.{10 + number}"
        self._seen = seen
        self._stopping = stop
        self._line: http.client.HTTPConnection | None = None

    def run(self) -> None:
        for number in itertools.count():
            if self._stopping.wait(EVERY_SECONDS):
                return
            batch = [{**STEADY, "id": f"{self._address}-{number}-{n}"} for n in range(BATCH)]
            started = time.monotonic()
            self._send(json.dumps(batch).encode())
            self._seen.seconds.append(time.monotonic() - started)

    def _send(self, body: bytes) -> None:
        """Send a batch until it is acknowledged, as producers do."""
        while not self._stopping.is_set():
            try:
                status, answer = self._exchange(body)
            except (OSError, http.client.HTTPException):
                self._line = None
                continue
            if status == 200:
                receipt = json.loads(answer)
                self._seen.accepted += receipt["accepted"] + receipt["duplicates"]
                return
            if status != 503:
                self._seen.wrong.append(f"a good batch was answered {status}: {answer[:200]!r}")
                return
            self._seen.refused += 1
            time.sleep(0.1)  # a short pause for a server that refuses

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        if self._line is None:
            self._line = http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=60, source_address=(self._address, 0)
            )
        self._line.request("POST", "/v1/decisions", body, {"Content-Type": "application/json"})
        answer = self._line.getresponse()
        return answer.status, answer.read()


async def _view(port: int, seen: Seen, sees: asyncio.Event) -> None:
    """Follow the plain document, whose count must never fall; set `sees` at the first one."""
    last = -1
    with suppress(Refused):
        async for metrics in stream(f"http://127.0.0.1:{port}", interval=1.0):
            count = metrics.total_decisions or 0
            if count < last:
                seen.wrong.append(f"the total went back from {last} to {count}")
            last, seen.documents = count, seen.documents + 1
            sees.set()


def behave_well(port: int, orders: Connection) -> None:
    """Produce and view until told to stop; send back the results. It runs in its own process."""
    seen, stop = Seen(), threading.Event()
    producers = [_Producer(port, number, seen, stop) for number in range(PRODUCERS)]

    async def run() -> None:
        sees = [asyncio.Event() for _ in range(VIEWERS)]
        viewers = [asyncio.create_task(_view(port, seen, event)) for event in sees]
        for event in sees:  # after that, this process has imported all its modules
            await event.wait()
        for producer in producers:
            producer.start()
        await asyncio.to_thread(orders.recv)
        stop.set()
        for viewer in viewers:
            viewer.cancel()
        results = await asyncio.gather(*viewers, return_exceptions=True)
        seen.wrong += [f"a viewer ended: {end!r}" for end in results if isinstance(end, Exception)]

    asyncio.run(run())
    for producer in producers:
        producer.join(60)
    orders.send(seen)


def attack(port: int, orders: Connection) -> None:
    """Send a message when prepared, and attack until told to stop. It runs in its own process."""
    # asyncio warns of each write to a connection that the server has closed, which it may do.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    inputs.prepare()
    orders.send("prepared")

    async def run() -> None:
        attacks = asyncio.create_task(inputs.attack(port))
        told = asyncio.create_task(asyncio.to_thread(orders.recv))
        await asyncio.wait({attacks, told}, return_when=asyncio.FIRST_COMPLETED)
        failure = attacks.exception() if attacks.done() else None
        attacks.cancel()
        await asyncio.gather(attacks, return_exceptions=True)
        await told
        orders.send(repr(failure.exceptions) if isinstance(failure, BaseExceptionGroup) else "")

    asyncio.run(run())


__all__ = ["PROJECT", "Seen", "attack", "behave_well"]
