"""A browser tab that shows the page, with its console errors."""

import re
import time
from dataclasses import dataclass, field

from playwright.sync_api import Page, expect

from tests.support.server import Server


@dataclass
class Tab:
    """A page, the errors that the browser reported, and the hosts that it asked."""

    page: Page
    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def wait_longest(self) -> None:
        """Make the pages of this browser use the longest delays in place of random ones.

        Their clock stands still, while their timers run: a countdown shows the number with which it
        begins until the next attempt, however late a test looks.
        """
        context = self.page.context
        context.add_init_script("Math.random = () => 1 - Number.EPSILON")
        context.clock.set_fixed_time(time.time())

    def open(self, server: Server) -> Page:
        """Load the dashboard and wait until its numbers are live."""
        self.page.goto(server.url)
        expect(self.page.get_by_role("status")).to_have_text("Live")
        return self.page


def wait_seconds(page: Page, least: int, most: int) -> None:
    """Expect a countdown to the next attempt that starts within these limits."""
    seconds = "|".join(str(second) for second in range(least, most + 1))
    expect(page.locator(".state")).to_have_text(re.compile(rf"^Reconnecting in ({seconds}) s$"))
