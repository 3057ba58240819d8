"""Stores: where decisions, rollups and position live. One adapter a database."""
