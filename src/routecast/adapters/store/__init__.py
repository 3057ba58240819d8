"""Stores: they keep decisions, rollups and position. One adapter for each database."""
