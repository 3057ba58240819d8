"""The progress of a long send: a bar in a terminal, else a line every 5 seconds."""

import time
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.text import Text

from routecast.cli.terminal import plain, say
from routecast.client.stream_errors import MAX_CAUSES_LOGGED

_LINE_EVERY: Final = 5.0


class SendProgress:
    """Shows the acknowledged decisions, their rate, and the remaining time.

    Use it as a context manager. `advance` may be called at any rate.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._printed_at = time.monotonic()
        self._bar = Progress(BarColumn(24), _Words(), console=console, transient=True)
        self._task = self._bar.add_task("", total=None, words="")
        self._words = ""
        self._printed: set[str] = set()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def advance(self, acknowledged: int, share: float | None) -> None:
        """Set the number of acknowledged decisions, and their share of the work, 0..1."""
        now = time.monotonic()
        seconds = max(now - self._began, 1e-6)
        words = [f"{acknowledged:,} acknowledged", f"{acknowledged / seconds:,.0f}/s"]
        if share is not None and 0 < share < 1:
            words.append(f"{_clock(seconds / share - seconds)} left")
        self._words = ", ".join(words)
        total = None if share is None else 1.0
        self._bar.update(self._task, total=total, completed=share or 0, words=self._words)
        if not self._console.is_terminal and now - self._printed_at >= _LINE_EVERY:
            self._printed_at = now
            say(self._console, self._words)

    def wait(self, why: str, seconds: float) -> None:
        """Show that nothing happens for `seconds`, and why."""
        self._bar.update(self._task, words=f"{why}; continuing in {_clock(seconds)}")
        if not self._console.is_terminal:
            say(self._console, f"{why}; continuing in {seconds:.1f} s")

    def retry(self, why: str, seconds: float) -> None:
        """Show that the server does not accept a batch, which is tried again after `seconds`.

        Each cause is printed once in full.
        """
        if why not in self._printed and len(self._printed) < MAX_CAUSES_LOGGED:
            self._printed.add(why)
            say(self._console, f"{why}; trying again", "yellow")
        self._bar.update(
            self._task, words=f"{self._words or 'waiting'}; continuing in {_clock(seconds)}"
        )


class _Words(ProgressColumn):
    """The text beside the bar, without markup, because a server may have sent parts of it."""

    max_refresh = 0.1

    def render(self, task: Task) -> Text:
        return Text(plain(task.fields["words"]), overflow="ellipsis", no_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
