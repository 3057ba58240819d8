"""Tests of adapters: SQLite, PostgreSQL and Redis as they are, the clock, prices."""
