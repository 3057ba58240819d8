"""Clusters: what nodes agree on. One adapter for each engine."""
