"""Prices: they equal those of genai-prices, to the nano-dollar."""

from datetime import UTC, datetime

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, TieredPrices
from hypothesis import given, settings
from hypothesis import strategies as st

from routecast.adapters.prices import LOOKUP_SECONDS, MAX_REMEMBERED, GenaiPrices, is_local
from tests.support.decisions import NOW

MOMENT = datetime.fromtimestamp(NOW // 10**6, UTC)


def theirs(
    provider: str | None, model: str, tokens_in: int, tokens_out: int, cached: int = 0
) -> int:
    price = calc_price(
        Usage(input_tokens=tokens_in, output_tokens=tokens_out, cache_read_tokens=cached),
        model,
        provider_id=provider,
        genai_request_timestamp=MOMENT,
    )
    return round(price.total_price * 10**9)


def tiered() -> list[tuple[str, str, int]]:
    """Return some (provider, model, threshold) whose price depends on the size of the input."""
    found = []
    for provider in get_snapshot().providers:
        for model in provider.models:
            rate = model.prices.input_mtok if isinstance(model.prices, ModelPrice) else None
            if isinstance(rate, TieredPrices):
                found.append((provider.id, model.id, rate.tiers[0].start))
    return found[:3] + found[-3:]


def listed() -> list[tuple[str, str]]:
    """Return the models that the tables find under their own ids, with prices of tokens."""
    found = []
    for provider in get_snapshot().providers:
        for model in provider.models:
            if provider.find_model(model.id) is model:
                price = model.get_prices(MOMENT)
                if price.input_mtok is not None and price.output_mtok is not None:
                    found.append((provider.id, model.id))
    return found


LISTED = listed()


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o"),
        ("openai", "gpt-4o-mini"),
        ("openai", "o3"),
        ("anthropic", "claude-sonnet-4-5"),
        ("google", "gemini-2.5-pro"),
        ("deepseek", "deepseek-chat"),
        ("mistral", "mistral-small-latest"),
    ],
)
@pytest.mark.parametrize("tokens", [(0, 0), (1, 0), (0, 1), (1234, 567), (1_000_000, 300_000)])
def test_price_is_that_of_the_tables(provider: str, model: str, tokens: tuple[int, int]) -> None:
    """Prices are flat, tiered or time-dependent."""
    size, output = tokens
    expected = theirs(provider, model, size, output)
    assert GenaiPrices().cost(provider, model, size, 0, output, NOW) == expected


@given(st.data())
@settings(max_examples=300)
def test_cached_tokens_have_the_price_of_the_cache(data: st.DataObject) -> None:
    """The model may be any; the size is below or above its tiers, with or without a cache price."""
    provider, model = data.draw(st.sampled_from(LISTED))
    size = data.draw(st.integers(0, 10**6))
    cached, output = data.draw(st.integers(0, size)), data.draw(st.integers(0, 10**5))
    expected = theirs(provider, model, size, output, cached)
    assert GenaiPrices().cost(provider, model, size, cached, output, NOW) == expected


def test_cached_tokens_are_not_billed_in_full() -> None:
    """Nearly all of a long prompt came from the cache: it costs $0.12, and not $0.82."""
    paid = GenaiPrices().cost("anthropic", "claude-sonnet-4-5", 262_960, 257_955, 1_744, NOW)
    # Above 200,000 input tokens: $6 a million, $0.60 for cached ones, and $22.50.
    assert paid == (262_960 - 257_955) * 6_000 + 257_955 * 600 + 1_744 * 22_500


LOCAL = (
    *(
        "ollama",
        "ollama_chat",
        "local",
        "vllm",
        "hosted_vllm",
        "lmstudio",
        "lm_studio",
        "LM Studio",
    ),
    *("llamacpp", "llama.cpp", "llamafile", "xinference", "self-hosted", "self_hosted", "tgi"),
    *("sglang", "localai", "oobabooga", "petals", "mlx", "custom", "vllm-prod-2", "ollama2"),
    *("localhost:11434", "http://10.0.0.7:8000/v1", "text-generation-inference", "on-prem"),
)


@pytest.mark.parametrize("provider", LOCAL)
def test_local_models_have_no_price(provider: str) -> None:
    """The name of the model does not matter if the provider is local."""
    prices = GenaiPrices()
    for model in ("deepseek-r1:14b", "mistral-7b", "llama-3.1-8b-instruct", "gpt-oss-20b"):
        assert prices.cost(provider, model, 10**6, 0, 10**6, NOW) is None


def test_no_provider_of_the_tables_is_local() -> None:
    """A company's own gateway is not local either, because a cloud runs its models."""
    for provider in (*(known.id for known in get_snapshot().providers), "our-gateway", "litellm"):
        assert not is_local(provider)


def test_unknown_names_are_not_remembered_by_the_tables() -> None:
    """The tables' own memory has no limit, so it must not grow."""
    tables = get_snapshot()
    before = [len(held) for held in vars(tables).values() if isinstance(held, dict | set)]
    prices = GenaiPrices(used=lambda: 0.0)
    for number in range(100):
        prices.cost(f"nobody-{number}", f"made-up-{number}", 1, 0, 1, NOW)
        prices.cost("openai", f"made-up-{number}", 1, 0, 1, NOW)
        prices.cost(f"nobody-{number}", "gpt-4o", 1, 0, 1, NOW)
    after = [len(held) for held in vars(tables).values() if isinstance(held, dict | set)]
    assert before == after


@pytest.mark.parametrize(("provider", "model", "threshold"), tiered())
def test_tier_begins_at_its_threshold(provider: str, model: str, threshold: int) -> None:
    """Sizes are below, at and above the threshold."""
    prices = GenaiPrices()
    for size in (threshold - 1, threshold, threshold + 1, 2 * threshold):
        expected = theirs(provider, model, size, 1000)
        assert prices.cost(provider, model, size, 0, 1000, NOW) == expected
    under, over = (theirs(provider, model, threshold + side, 1000) for side in (-1, 1))
    assert over > under * 1.2


def test_price_for_an_unknown_provider_is_that_of_the_model() -> None:
    """The tables do not know the name of a company's own gateway."""
    prices = GenaiPrices()
    expected = theirs(None, "gpt-4o", 1000, 1000)
    assert prices.cost("our-gateway", "gpt-4o", 1000, 0, 1000, NOW) == expected > 0


@pytest.mark.parametrize(
    ("provider", "model"),
    [("our-gateway", "our-model"), ("openai", "claude-sonnet-4-5"), ("openai", "no-such-model")],
)
def test_unknown_price_is_none(provider: str, model: str) -> None:
    """It is neither 0 nor a guess: a known provider has no price for another one's model."""
    assert GenaiPrices().cost(provider, model, 1000, 0, 1000, NOW) is None


def test_price_per_million_is_that_of_a_million_tokens() -> None:
    """The field `savings` needs it."""
    found = GenaiPrices().per_million("gpt-4o")
    assert found == (theirs(None, "gpt-4o", 10**6, 0), theirs(None, "gpt-4o", 0, 10**6), None)
    assert GenaiPrices().per_million("no-such-model") is None


def test_price_per_million_of_a_tiered_model_is_that_of_the_lowest_tier() -> None:
    """The result has the size up to which the price holds."""
    found = GenaiPrices().per_million("gemini-2.5-pro")
    assert found is not None
    assert found.upto is not None
    size = found.upto
    assert found.input * size // 10**6 == theirs(None, "gemini-2.5-pro", size, 0)
    assert found.input * (size + 1) // 10**6 < theirs(None, "gemini-2.5-pro", size + 1, 0)


class Time:
    """A clock that a test sets, with 0.3 ms of work for each look-up."""

    def __init__(self) -> None:
        self.now = 0.0
        self.worked = 0.0

    def used(self) -> float:
        self.worked += 0.00015  # it is asked before and after
        return self.worked


def test_new_names_have_a_budget_and_known_ones_are_always_priced() -> None:
    """Many unknown models cost little time, and no price is ever wrong."""
    time, skipped = Time(), []
    prices = GenaiPrices(lambda: skipped.append(1), clock=lambda: time.now, used=time.used)
    expected = theirs("openai", "gpt-4o", 1000, 1000)
    assert prices.cost("openai", "gpt-4o", 1000, 0, 1000, NOW) == expected
    for number in range(10_000):
        assert prices.cost("our-gateway", f"made-up-{number}", 1, 0, 1, NOW) is None
        assert prices.cost("openai", "gpt-4o", 1000, 0, 1000, NOW) == expected
    assert time.worked <= 2 * (LOOKUP_SECONDS + 0.001)
    assert 5_000 < len(skipped) < 10_000
    # A name known to have no price is not skipped; a new name is, until there is time again.
    counted = len(skipped)
    assert prices.cost("our-gateway", "made-up-1", 1, 0, 1, NOW) is None
    assert len(skipped) == counted
    assert prices.cost("openai", "gpt-4o-mini", 1000, 0, 1000, NOW) is None
    assert len(skipped) == counted + 1
    time.now += 1.0
    assert prices.cost("openai", "gpt-4o-mini", 1000, 0, 1000, NOW) == theirs(
        "openai", "gpt-4o-mini", 1000, 1000
    )


def test_the_number_of_remembered_names_is_limited() -> None:
    """Any number of names may come over time."""
    time = Time()
    prices = GenaiPrices(clock=lambda: time.now, used=lambda: 0.0)
    for number in range(MAX_REMEMBERED + 100):
        prices.cost("our-gateway", f"made-up-{number}", 1, 0, 1, NOW)
    assert len(prices._known) == MAX_REMEMBERED
