"""Reasons to skip a test: something is missing, with how to get it; or it does not apply.

A run ends with a list of both (`tests/conftest.py`).
"""

from typing import Any, Final, NoReturn

import pytest

_NEEDS: Final = "needs "
_NOT_MEANT: Final = "does not apply: "
# The file that keeps a run's list for the next run.
_KEPT: Final = "routecast/skipped"


def lacks(what: str, how: str) -> str:
    """Return the reason to skip a test that cannot run; `how` is what to install, run or set."""
    return f"{_NEEDS}{what}: {how}"


def skip_without(what: str, how: str) -> NoReturn:
    """Skip a test that cannot run here; `how` is what to install, run or set."""
    pytest.skip(lacks(what, how))


def skip_as_meant(why: str) -> NoReturn:
    """Skip a case that does not apply; nothing needs to be installed."""
    pytest.skip(f"{_NOT_MEANT}{why}")


def package(name: str) -> Any:
    """Import a package that `make install` brings; skip the test without it."""
    return pytest.importorskip(name, reason=lacks(f"the Python package {name}", "make install"))


def list_skipped(reporter: pytest.TerminalReporter, config: pytest.Config, *, go_on: bool) -> None:
    """Write the skipped tests: a line for each reason, with how to enable it.

    With `go_on`, the list includes the tests that the run before skipped.
    """
    cache = getattr(config, "cache", None)
    counts: dict[str, int] = dict(cache.get(_KEPT, {})) if cache is not None and go_on else {}
    for report in reporter.stats.get("skipped", []):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        counts[reason] = counts.get(reason, 0) + 1
    if cache is not None:
        cache.set(_KEPT, counts)
    by_design = {reason: n for reason, n in counts.items() if reason.startswith(_NOT_MEANT)}
    lacking = {reason: n for reason, n in counts.items() if reason not in by_design}
    _write(reporter, "skipped: how to enable these tests", lacking)
    _write(reporter, "skipped by design", by_design)


def _write(reporter: pytest.TerminalReporter, title: str, counts: dict[str, int]) -> None:
    if not counts:
        return
    reporter.write_sep("-", title)
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        reporter.write_line(f"{count:4} {reason.removeprefix(_NOT_MEANT)}")
