"""The list of skipped tests at the end of a run, and how to enable them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.needs import lacks, list_skipped, skip_as_meant

TESTS = Path(__file__).parents[1]
CHROMIUM = lacks("Chromium", "apt install chromium")


class RecordingReporter:
    """A reporter of skipped tests that keeps its lines."""

    def __init__(self, *reasons: str) -> None:
        skipped = [SimpleNamespace(longrepr=("test.py", 1, f"Skipped: {one}")) for one in reasons]
        self.stats = {"skipped": skipped}
        self.lines: list[str] = []

    def write_sep(self, _: str, title: str) -> None:
        self.lines.append(f"- {title}")

    def write_line(self, line: str) -> None:
        self.lines.append(line)


class Cache(dict[str, Any]):
    set = dict.__setitem__


def written(cache: Cache, *reasons: str, go_on: bool = False) -> list[str]:
    reporter = RecordingReporter(*reasons)
    config: Any = SimpleNamespace(cache=cache)
    list_skipped(reporter, config, go_on=go_on)  # type: ignore[arg-type]
    return reporter.lines


def by_design() -> str:
    with pytest.raises(pytest.skip.Exception) as skipped:
        skip_as_meant("it has no such part")
    return str(skipped.value)


def test_each_reason_is_a_line_with_its_count_and_remedy() -> None:
    """Skips by design are listed apart; without skips nothing is written."""
    nginx = lacks("nginx", "apt install nginx")
    assert written(Cache(), by_design(), CHROMIUM, nginx, CHROMIUM) == [
        "- skipped: how to enable these tests",
        "   2 needs Chromium: apt install chromium",
        "   1 needs nginx: apt install nginx",
        "- skipped by design",
        "   1 it has no such part",
    ]
    assert written(Cache()) == []


def test_a_continued_run_lists_the_skips_of_the_one_before() -> None:
    """Only a run with `go_on` does so."""
    cache = Cache()
    written(cache, CHROMIUM)
    assert written(cache, CHROMIUM, go_on=True)[1:] == ["   2 needs Chromium: apt install chromium"]
    assert written(cache, CHROMIUM)[1:] == ["   1 needs Chromium: apt install chromium"]


def test_no_test_is_skipped_without_a_remedy() -> None:
    """Only `needs.py` skips tests."""
    other = re.compile(r"pytest\.(skip|importorskip)\(|skipif\((?!.*reason=lacks\()")
    found = {path.name for path in TESTS.rglob("*.py") if other.search(path.read_text())}
    assert found == {"needs.py"}
