"""Decisions as a busy router sends them, made before any clock starts."""

import itertools
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

STRATEGIES: Final = ("hybrid", "complexity", "learning", "cost", "latency")
MODELS: Final = (
    ("gemini", "gemini-2.5-flash"),
    ("gemini", "gemini-2.5-pro"),
    ("claude", "claude-sonnet-4-5"),
    ("claude", "claude-haiku-4-5"),
    ("cerebras", "llama-3.3-70b"),
    ("openrouter", "deepseek/deepseek-chat"),
)
FAILING: Final = 0.02
# A producer that sends a thousand decisions at a time has collected them over some seconds.
GATHERED_SECONDS: Final = 10.0
SEED: Final = 20_260_131


class Ids(StrEnum):
    """The order of decision ids, which decides how much of an index each commit touches."""

    RANDOM = "random"  # like a UUID of version 4
    ORDERED = "ordered"  # like a UUID of version 7 or a ULID: they rise with time


def latencies(rng: random.Random) -> Iterator[float]:
    """Yield latencies in milliseconds: half are under 650, one in a hundred is over 4,000."""
    while True:
        yield round(rng.lognormvariate(6.48, 0.78), 1)


def decisions(count: int, ids: Ids) -> Iterator[dict[str, Any]]:
    """Yield decisions of about 270 bytes each, all ids distinct, decided in the last seconds."""
    rng = random.Random(SEED)
    latency = latencies(rng)
    now = time.time()
    for number in range(count):
        drawn = f"{rng.getrandbits(64):016x}"
        provider, model = rng.choice(MODELS)
        decided = datetime.fromtimestamp(now - GATHERED_SECONDS * rng.random(), UTC)
        yield {
            "id": f"req_{drawn}{number:08x}" if ids is Ids.RANDOM else f"req_{number:08x}{drawn}",
            "timestamp": decided.isoformat(timespec="microseconds"),
            "strategy": rng.choice(STRATEGIES),
            "provider": provider,
            "model": model,
            "confidence": round(rng.betavariate(5, 2), 4),
            "cost": round(rng.lognormvariate(-6.5, 1), 6),
            "latency_ms": next(latency),
            "input_tokens": int(rng.lognormvariate(6.5, 1)),
            "output_tokens": int(rng.lognormvariate(5, 1)),
            "status": "error" if rng.random() < FAILING else "success",
        }


def write_bodies(path: Path, requests: int, batch: int | None, ids: Ids) -> None:
    """Write request bodies to a file: arrays of `batch` decisions, or single objects (None)."""
    sent = decisions(requests * (batch or 1), ids)
    groups = [list(itertools.islice(sent, batch)) if batch else next(sent) for _ in range(requests)]
    path.write_bytes(msgspec.msgpack.encode([msgspec.json.encode(group) for group in groups]))


def read_bodies(path: str) -> list[bytes]:
    """Return the bodies that `write_bodies` wrote."""
    return msgspec.msgpack.decode(Path(path).read_bytes(), type=list[bytes])
