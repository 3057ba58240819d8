"""What models cost, by the offline tables of genai-prices (`ports.Prices`)."""

from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import NamedTuple

from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from routecast.protocol import EPOCH


class GenaiPrices:
    """Prices by provider and model name, in exact decimals.

    A provider the tables know is asked for its own price of the model only; for a name they do
    not know (a gateway's own, say), the model's name alone decides. What neither finds has no
    price.
    """

    def __init__(self) -> None:
        self._find = lru_cache(maxsize=4096)(_find)
        self._flat = lru_cache(maxsize=4096)(self._flat_price)

    def cost(
        self, provider: str, model: str, input_tokens: int, output_tokens: int, moment: int
    ) -> int | None:
        flat = self._flat(provider, model)
        if flat is not None and input_tokens <= flat.upto:
            nano = (flat.input * input_tokens + flat.output * output_tokens) / 10**6
            return int(nano.to_integral_value(ROUND_HALF_EVEN))
        found = self._find(provider, model)
        if found is None:
            return None
        # Prices of great size, or that depend on time, are the tables' own business.
        owner, info = found
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        price = info.calc_price(
            usage,
            owner,
            genai_request_timestamp=EPOCH + timedelta(microseconds=moment),
            auto_update_timestamp=None,
        ).total_price
        return int((price * 10**9).to_integral_value(ROUND_HALF_EVEN))

    def per_million(self, model: str) -> tuple[int, int] | None:
        flat = self._flat("", model)
        return None if flat is None else (int(flat.input), int(flat.output))

    def _flat_price(self, provider: str, model: str) -> "_Flat | None":
        found = self._find(provider, model)
        if found is None or not isinstance(found[1].prices, ModelPrice):
            return None
        price = found[1].prices
        if price.requests_kcount or price.input_mtok is None or price.output_mtok is None:
            return None
        paid_in, upto_in = _base(price.input_mtok)
        paid_out, upto_out = _base(price.output_mtok)
        return _Flat(paid_in * 10**9, paid_out * 10**9, min(upto_in, upto_out))


_UNLIMITED = 2**63


def _base(rate: Decimal | TieredPrices) -> tuple[Decimal, int]:
    if isinstance(rate, TieredPrices):
        return rate.base, min(tier.start for tier in rate.tiers)
    return rate, _UNLIMITED


class _Flat(NamedTuple):
    """Nano-dollars per million tokens, good for requests of up to so many input tokens."""

    input: Decimal
    output: Decimal
    upto: int


def _find(provider: str, model: str) -> tuple[Provider, ModelInfo] | None:
    tables = get_snapshot()
    if provider:
        try:
            owner = tables.find_provider(None, provider, None)
        except LookupError:
            pass
        else:
            info = owner.find_model(model.lower(), all_providers=tables.providers)
            return None if info is None else (owner, info)
    try:
        return tables.find_provider_model(model, None, None, None)
    except LookupError:
        return None
