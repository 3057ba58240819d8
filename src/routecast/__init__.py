"""Routecast: live, exact metrics of LLM routing decisions, streamed to any dashboard."""
