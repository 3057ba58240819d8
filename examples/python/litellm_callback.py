"""A LiteLLM callback that records each call in Routecast, failed calls and fallbacks included.

import litellm
from litellm_callback import Callback

litellm.callbacks = [Callback("http://127.0.0.1:8000")]

Put this file beside your own, and `pip install /path/to/a/checkout/of/routecast`. The address may
begin with `http`, `https`, `ws` or `wss`. Prompts and answers are not sent. If the server needs an
API key, set ROUTECAST_API_KEY, or give a `token`.
"""

import os
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from routecast.client import Decision, Recorder


def decision_of(call: dict[str, Any]) -> Decision:
    """Return a call, as LiteLLM's `standard_logging_object` has it, as a decision.

    The strategy is the group of models that was asked for: what a LiteLLM router chooses within.
    """
    decision: Decision = {
        "id": call["litellm_call_id"],
        "timestamp": call["endTime"],
        "strategy": call.get("model_group") or "litellm",
        "provider": call.get("custom_llm_provider") or "unknown",
        "model": call["model"],
        "latency_ms": call["response_time"] * 1000,
        "status": "success" if call["status"] == "success" else "error",
        "cost": cost_of(call),
    }
    # LiteLLM writes 0 for tokens that it does not know; to Routecast that would be a fact.
    if call["total_tokens"]:
        decision["input_tokens"] = call["prompt_tokens"]
        decision["output_tokens"] = call["completion_tokens"]
    return decision


def cost_of(call: dict[str, Any]) -> float | None:
    """Return what a call cost, in dollars; None where LiteLLM does not know it and writes 0.

    Without a cost, Routecast looks for a list price. A call answered from a cache, by a local model
    or under a contract of your own costs 0, and that is what must be sent.
    """
    cost: float | None = call["response_cost"]
    if cost == 0 and (
        call["status"] != "success"  # it may have cost something until it failed
        or call.get("response_cost_failure_debug_info")  # LiteLLM has no price
        or call.get("zero_cost_diagnostic")  # LiteLLM has only a part of the price
    ):
        return None
    return cost


class Callback(CustomLogger):
    """What LiteLLM calls after each call. Of some it tells twice: by its id, each counts once."""

    def __init__(self, url: str, token: str | None = None) -> None:
        super().__init__()
        self.recorder = Recorder(url, token=token or os.environ.get("ROUTECAST_API_KEY"))

    def log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        if call := kwargs.get("standard_logging_object"):
            self.recorder.record(decision_of(call))

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    log_failure_event = log_success_event
    async_log_failure_event = async_log_success_event
