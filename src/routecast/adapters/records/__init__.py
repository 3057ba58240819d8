"""Temporary records: short texts that end by themselves. One adapter for each engine."""
