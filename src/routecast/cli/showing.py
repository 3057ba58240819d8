"""Commands that show something until the user leaves."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from routecast.cli.terminal import TERMINATED


def run_until_left(showing: Coroutine[Any, Any, None]) -> int:
    """Run until the end, Ctrl-C, a closed pipe or SIGTERM; return the exit code.

    Raises what `showing` raises otherwise.
    """

    async def main() -> None:
        task = asyncio.current_task()
        assert task
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await showing

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        return 0
    except asyncio.CancelledError:
        return TERMINATED
    except BrokenPipeError:
        # The reader of our output is gone; Python must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
