"""Caches: they keep one snapshot for a while. One adapter for each engine."""
