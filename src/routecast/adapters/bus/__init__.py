"""Buses: they carry deltas to every node. One adapter for each engine."""
