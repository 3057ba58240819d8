"""Streaming: the open connections, and what each of them is sent, and when."""
