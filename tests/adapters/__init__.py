"""Tests of adapters: real SQLite, PostgreSQL and Redis, the clock and prices."""
