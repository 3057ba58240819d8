"""The fixtures of `tests/unit`, for tests of adapters."""

from tests.unit.conftest import bus, cache, clock, instruments, path, store

__all__ = ["bus", "cache", "clock", "instruments", "path", "store"]
