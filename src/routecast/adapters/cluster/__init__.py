"""Clusters: what nodes agree on. One adapter an engine."""
