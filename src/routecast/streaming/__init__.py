"""Streaming: the connections that are open, and what each of them is sent."""
