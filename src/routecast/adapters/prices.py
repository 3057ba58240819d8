"""The prices of models, from the offline tables of genai-prices (`ports.Prices`)."""

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, NamedTuple

from genai_prices import Usage
from genai_prices.data_snapshot import find_provider_by_id, get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from routecast.ports import ListPrice
from routecast.protocol import EPOCH

# Names whose price, or lack of one, is remembered: about 4 MB for the longest names.
MAX_REMEMBERED: Final = 4_096
# Looking up a name takes up to 0.3 ms of the event loop. Lookups may use LOOKUP_SHARE of the time,
# and LOOKUP_SECONDS at once after a pause: enough for 1,500 new names.
LOOKUP_SHARE: Final = 0.05
LOOKUP_SECONDS: Final = 0.5


class GenaiPrices:
    """Prices by provider and model name, as exact decimals.

    If the tables know the provider, only its own price of the model counts. For other providers,
    such as a gateway, the price is found by the model's name alone. If there is no such price, the
    cost is unknown. It is also unknown for local software (`is_local`), even if the tables know the
    name of its model.

    New names are only looked up while that does not take too long in total; at other times their
    cost is unknown, and `skipped` is called for each such cost. `clock` and `used` return seconds:
    the time that has passed, and the processor time of this thread.
    """

    def __init__(
        self,
        skipped: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._skipped = skipped
        self._clock = clock
        self._used = used
        self._left = LOOKUP_SECONDS
        self._filled = clock()

    def load(self) -> None:
        _find("", "")  # imports the tables, which takes up to a second

    def cost(
        self,
        provider: str,
        model: str,
        input_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        moment: int,
    ) -> int | None:
        known = self._look_up(provider, model)
        if known is None:
            self._skipped()
            return None
        found, flat = known
        if flat is not None and input_tokens <= flat.upto:
            paid = flat.input * (input_tokens - cached_tokens) + flat.cached * cached_tokens
            nano = (paid + flat.output * output_tokens) / 10**6
            return int(nano.to_integral_value(ROUND_HALF_EVEN))
        if found is None:
            return None
        # Very large prices, and prices that depend on time, are computed by the tables.
        owner, info = found
        usage = Usage(
            input_tokens=input_tokens,
            cache_read_tokens=cached_tokens,
            output_tokens=output_tokens,
        )
        price = info.calc_price(
            usage,
            owner,
            genai_request_timestamp=EPOCH + timedelta(microseconds=moment),
            auto_update_timestamp=None,
        ).total_price
        return int((price * 10**9).to_integral_value(ROUND_HALF_EVEN))

    def per_million(self, model: str) -> ListPrice | None:
        flat = _flat(_find("", model))
        if flat is None:
            return None
        upto = None if flat.upto == _UNLIMITED else flat.upto
        return ListPrice(int(flat.input), int(flat.output), upto)

    def _look_up(self, provider: str, model: str) -> "_Known | None":
        """Return the result of looking up a name; None if it must not be looked up now."""
        key = provider, model
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        now = self._clock()
        self._left = min(LOOKUP_SECONDS, self._left + LOOKUP_SHARE * (now - self._filled))
        self._filled = now
        if self._left <= 0:
            return None
        began = self._used()
        found = _find(provider, model)
        known = self._known[key] = _Known(found, _flat(found))
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        self._left -= self._used() - began
        return known


def _flat(found: "tuple[Provider, ModelInfo] | None") -> "_Flat | None":
    if found is None or not isinstance(found[1].prices, ModelPrice):
        return None
    price = found[1].prices
    if price.requests_kcount or price.input_mtok is None or price.output_mtok is None:
        return None
    # If a model has no price for cached tokens, they cost as much as the others.
    cached = price.input_mtok if price.cache_read_mtok is None else price.cache_read_mtok
    rates = price.input_mtok, cached, price.output_mtok
    (paid_in, *_), (paid_cached, *_), (paid_out, *_) = bases = [_base(rate) for rate in rates]
    upto = min(upto for _, upto in bases)
    return _Flat(paid_in * 10**9, paid_cached * 10**9, paid_out * 10**9, upto)


_UNLIMITED = 2**63


def _base(rate: Decimal | TieredPrices) -> tuple[Decimal, int]:
    if isinstance(rate, TieredPrices):
        return rate.base, min(tier.start for tier in rate.tiers)
    return rate, _UNLIMITED


class _Flat(NamedTuple):
    """Nano-dollars per million tokens, for requests with up to `upto` input tokens."""

    input: Decimal
    cached: Decimal
    output: Decimal
    upto: int


class _Known(NamedTuple):
    """The result of a lookup: the entries in the tables, and the price if it is a simple one."""

    found: tuple[Provider, ModelInfo] | None
    flat: _Flat | None


# Local software that runs models: as a whole name, or as a word of one ("vllm-prod-2").
_LOCAL: Final = frozenset(
    (
        *("local", "localhost", "selfhosted", "selfhost", "onprem", "onpremise", "onpremises"),
        *("custom", "inhouse", "ollama", "vllm", "hostedvllm", "lmstudio", "llamacpp"),
        *("llamacpppython", "llamafile", "llamaserver", "llamaswap", "tgi"),
        *("textgenerationinference", "textgenerationwebui", "textgenwebui", "oobabooga"),
        *("sglang", "localai", "xinference", "petals", "mlx", "mlxlm", "mlcllm", "koboldcpp"),
        *("koboldai", "kobold", "exllama", "exllamav2", "tabbyapi", "aphrodite", "lmdeploy"),
        *("tensorrt", "tensorrtllm", "trtllm", "triton", "gpt4all", "ramalama", "openllm"),
        *("mistralrs", "ctransformers", "lemonade", "dockermodelrunner", "transformers"),
    )
)
_WORD: Final = re.compile(r"[a-z0-9]+")
_ADDRESS: Final = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}|::1")


def is_local(provider: str) -> bool:
    """Whether a provider's name is that of local software, which has no price."""
    words = _WORD.findall(provider.lower())
    # Names of several words may be written with any sign between them or none, and a number may
    # follow.
    joined = ["".join(words[at : at + size]) for size in (1, 2, 3) for at in range(len(words))]
    plain = (name.rstrip("0123456789") for name in joined)
    return not _LOCAL.isdisjoint((*joined, *plain)) or _ADDRESS.search(provider) is not None


def _find(provider: str, model: str) -> tuple[Provider, ModelInfo] | None:
    if is_local(provider):
        return None
    # The snapshot's own methods are not used: they remember each requested name without a limit.
    providers, model = get_snapshot().providers, model.lower()
    owner = find_provider_by_id(providers, provider) if provider else None
    if owner is None:
        matches = (one for one in providers if one.model_match and one.model_match.is_match(model))
        owner = next(matches, None)
    info = owner and owner.find_model(model, all_providers=providers)
    return (owner, info) if owner and info else None
