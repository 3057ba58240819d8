"""Caches: one snapshot, shared for a while. One adapter an engine."""
