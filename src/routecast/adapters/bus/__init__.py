"""Buses: deltas to every node. One adapter an engine."""
