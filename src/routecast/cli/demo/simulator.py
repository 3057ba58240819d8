"""Simulated routing decisions whose arrivals and sizes are like those of real services."""

import bisect
import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

# Fitted to the Azure LLM inference traces 2023 (Azure/AzurePublicDataset, CC-BY 4.0): an hour of a
# chat service and of a code completion service. Each row of numbers has the values at these parts
# of all arrivals; the last five are the long tail, which makes the bursts.
ARRIVAL_SHARES: Final = (
    *(0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *(0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0),
)

Quantiles = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Service:
    """Requests of one service: seconds between two, and their size in tokens."""

    gaps: Quantiles
    prompts: Quantiles
    answers: Quantiles


CHAT: Final = Service(
    gaps=(
        *(2e-6, 0.000551, 0.00632, 0.0161, 0.0365, 0.0607, 0.0873, 0.118, 0.159, 0.214),
        *(0.289, 0.421, 0.565, 0.749, 0.889, 1.03, 1.25, 1.43, 4.31),
    ),
    prompts=(
        *(2, 29, 181, 207, 387, 403, 703, 1020, 1071, 1130),
        *(1315, 2734, 4083, 4098, 4142, 4831, 5652, 6212, 14050),
    ),
    answers=(
        *(7, 16, 41, 54, 77, 91, 103, 129, 177, 384),
        *(400, 424, 451, 540, 601, 643, 916, 954, 1000),
    ),
)
CODE: Final = Service(
    gaps=(
        *(6e-6, 2.2e-5, 8.8e-5, 0.000209, 0.00118, 0.00329, 0.0151, 0.0638, 0.095, 0.1),
        *(0.16, 0.273, 0.401, 0.799, 2.21, 10.1, 40.3, 78.4, 217.0),
    ),
    prompts=(
        *(3, 17, 75, 147, 386, 770, 1075, 1469, 1909, 2433),
        *(3192, 5186, 7302, 7436, 7436, 7436, 7436, 7437, 7437),
    ),
    answers=(
        *(6, 6, 6, 7, 8, 9, 11, 13, 16, 20),
        *(29, 55, 90, 172, 252, 361, 666, 824, 1899),
    ),
)
# Arrivals per second of both services together in the traces.
NATURAL_RATE: Final = 1 / 0.18083 + 1 / 0.38965


def draw(quantiles: Quantiles, rng: random.Random) -> float:
    """Draw a random value; between two quantiles, its logarithm is distributed evenly."""
    share = rng.random()
    index = bisect.bisect_right(ARRIVAL_SHARES, share) - 1
    low, high = quantiles[index], quantiles[index + 1]
    within = (share - ARRIVAL_SHARES[index]) / (ARRIVAL_SHARES[index + 1] - ARRIVAL_SHARES[index])
    return float(low * (high / low) ** within)


# -- models and strategies --------------------------------------------------------------------


class Model(NamedTuple):
    """A model: milliseconds before its first token and per token, and its price.

    `dollars` per million tokens in and out are sent as the cost. Without them the server prices the
    models that it knows, and a self-hosted model has no price.
    """

    provider: str
    name: str
    first_ms: float
    token_ms: float
    dollars: tuple[float, float] | None = None


FLASH: Final = Model("gemini", "gemini-2.5-flash", 280, 4.5)
PRO: Final = Model("gemini", "gemini-2.5-pro", 900, 7.5)
SONNET: Final = Model("claude", "claude-sonnet-4-5", 750, 13)
HAIKU: Final = Model("claude", "claude-haiku-4-5", 350, 6)
LLAMA: Final = Model("cerebras", "llama-3.3-70b", 120, 0.5)
OSS: Final = Model("cerebras", "gpt-oss-120b", 140, 0.4)
DEEPSEEK: Final = Model("openrouter", "deepseek/deepseek-chat", 800, 18, (0.32, 0.89))
OWN: Final = Model("self-hosted", "llama-3.1-8b-tuned", 60, 9)


class Strategy(NamedTuple):
    """A strategy: how often it is used, and its choices for small and large requests.

    `confidence` has the two parameters of a beta distribution; with None, the strategy reports a
    band.
    """

    name: str
    weight: float
    small: dict[Model, float]
    large: dict[Model, float]
    confidence: tuple[float, float] | None


STRATEGIES: Final = (
    Strategy(
        "hybrid",
        0.42,
        {FLASH: 5, HAIKU: 3, LLAMA: 2},
        {FLASH: 3, SONNET: 4, PRO: 2},
        (17, 2.6),
    ),
    Strategy("complexity", 0.26, {FLASH: 6, OSS: 3, OWN: 1}, {SONNET: 5, PRO: 4}, (12, 3)),
    Strategy("learning", 0.16, {HAIKU: 3, DEEPSEEK: 3, LLAMA: 2}, {SONNET: 3, DEEPSEEK: 4}, (5, 3)),
    Strategy("cost", 0.10, {DEEPSEEK: 4, OWN: 4, FLASH: 2}, {DEEPSEEK: 5, FLASH: 3}, (9, 4)),
    Strategy("latency", 0.06, {LLAMA: 5, OSS: 5}, {OSS: 4, LLAMA: 4, FLASH: 2}, None),
)
_LARGE: Final = 1_500  # tokens of a prompt from which a request counts as large
_ERRORS: Final = 0.01
_FALLBACKS: Final = 0.03
_UNSURE: Final = 0.04  # part of the decisions without a confidence


class Arrival(NamedTuple):
    """A decision without id and time, and when it arrives, in seconds from the start."""

    at: float
    decision: dict[str, Any]


def arrivals(seed: int | None, rate: float = NATURAL_RATE) -> Iterator[Arrival]:
    """Yield decisions for ever, `rate` per second on average, in the order of arrival.

    The same seed gives the same decisions. Another rate than NATURAL_RATE stretches or shrinks
    time, and keeps the bursts.
    """
    rng = random.Random(seed)
    services = (CHAT, CODE)
    clocks = [(draw(service.gaps, rng), index) for index, service in enumerate(services)]
    heapq.heapify(clocks)
    while True:
        at, index = clocks[0]
        service = services[index]
        heapq.heapreplace(clocks, (at + draw(service.gaps, rng), index))
        prompt, answer = round(draw(service.prompts, rng)), round(draw(service.answers, rng))
        yield Arrival(at * NATURAL_RATE / rate, decide(prompt, answer, rng))


def decide(prompt: int, answer: int, rng: random.Random) -> dict[str, Any]:
    """Return a decision, with its outcome, for a request of `prompt` and `answer` tokens."""
    strategy = rng.choices(STRATEGIES, [strategy.weight for strategy in STRATEGIES])[0]
    mix = strategy.large if prompt >= _LARGE else strategy.small
    model = rng.choices(list(mix), list(mix.values()))[0]
    decision: dict[str, Any] = {
        "strategy": strategy.name,
        "provider": model.provider,
        "model": model.name,
        "project": "demo",
        "input_tokens": prompt,
    }
    if rng.random() >= _UNSURE:
        decision["confidence"] = _confidence(strategy, rng)
    if rng.random() < _FALLBACKS:
        decision["fallback"] = True
    spread = rng.lognormvariate(0, 0.25)
    if rng.random() < _ERRORS:
        # A request that failed before its first token has no answer and no known cost.
        return decision | {"status": "error", "latency_ms": round(model.first_ms * spread, 3)}
    decision["output_tokens"] = answer
    waited = model.first_ms + 0.02 * prompt + model.token_ms * answer
    decision["latency_ms"] = round(waited * spread, 3)
    if model.dollars:
        decision["cost"] = round((prompt * model.dollars[0] + answer * model.dollars[1]) / 1e6, 9)
    return decision


def _confidence(strategy: Strategy, rng: random.Random) -> float | str:
    if strategy.confidence is None:
        return rng.choices(("high", "medium", "low"), (6, 3, 1))[0]
    return round(rng.betavariate(*strategy.confidence), 4)
