"""Print a line whenever the metrics of a Routecast server change; reconnect after a loss.

pip install /path/to/a/checkout/of/routecast
python watch_metrics.py http://127.0.0.1:8000 --window 5m

If the server needs a token or an API key, set ROUTECAST_API_KEY.
"""

import argparse
import asyncio
import logging
import os
import sys

from routecast.client import BadParameter, Metrics, RoutecastError, stream


def line(metrics: Metrics) -> str:
    """Put the numbers into one line; what is not known is None, never 0."""
    counts = (f"{name!r} {found.count}" for name, found in metrics.strategy_performance.items())
    confidence = "unknown" if metrics.avg_confidence is None else f"{metrics.avg_confidence:.3f}"
    return (
        f"{metrics.timestamp}  {metrics.total_decisions} decisions, "
        f"confidence {confidence}: {', '.join(counts) or 'none yet'}"
    )


async def watch(url: str, window: str, interval: float) -> None:
    """Print for ever."""
    token = os.environ.get("ROUTECAST_API_KEY")
    async for metrics in stream(url, token=token, window=window, interval=interval):
        print(line(metrics), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--window", default="all", help="all, 5m, 1h, 24h or 7d")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two lines")
    options = parser.parse_args()
    # The client says here when a connection is lost, and when it tries again.
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        asyncio.run(watch(options.url, options.window, options.interval))
    except KeyboardInterrupt:
        return 0
    except BadParameter as error:
        parser.error(str(error))
    except RoutecastError as error:
        print(f"The server does not want this client: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
