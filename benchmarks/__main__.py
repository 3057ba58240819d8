"""`python -m benchmarks`: run the benchmarks and show their tables."""

import argparse
import sys
from collections.abc import Callable
from typing import Final

from benchmarks.authentication import authenticated, operator, projects, refused, tokens
from benchmarks.cases import Absent, Broken
from benchmarks.cluster import cluster
from benchmarks.fanout import fanout, twins
from benchmarks.freshness import freshness
from benchmarks.handshakes import handshakes
from benchmarks.history import history
from benchmarks.idle import idle
from benchmarks.ingest import batches, singles
from benchmarks.options import Options
from benchmarks.pages import pages
from benchmarks.peers import peers
from benchmarks.postgres import postgres
from benchmarks.recorder import recorder
from benchmarks.report import Report, machine
from benchmarks.soak import soak
from benchmarks.stalled import stalled
from benchmarks.subscriptions import browsers, deltas, views
from benchmarks.totals import totals
from benchmarks.warm import warm

BENCHMARKS: Final[dict[str, Callable[[Options], Report]]] = {
    "batches": batches,
    "singles": singles,
    "totals": totals,
    "history": history,
    "freshness": freshness,
    "fanout": fanout,
    "twins": twins,
    "warm": warm,
    "views": views,
    "browsers": browsers,
    "deltas": deltas,
    "peers": peers,
    "recorder": recorder,
    "handshakes": handshakes,
    "tokens": tokens,
    "authenticated": authenticated,
    "refused": refused,
    "operator": operator,
    "projects": projects,
    "stalled": stalled,
    "idle": idle,
    "pages": pages,
    "soak": soak,
    "postgres": postgres,
    "cluster": cluster,
}


def _arguments() -> argparse.Namespace:
    listed = "\n".join(f"  {name:<13} {run.__doc__}" for name, run in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Routecast beside a floor, in pairs of runs. A ratio says something\n"
        "about the code; a rate says something about this machine at this hour.",
        epilog=f"benchmarks:\n{listed}\n\nThe results also go to benchmarks/results, as JSON.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help="which to run (all)")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, in about a minute: do they run at all?"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=0,
        metavar="SECONDS",
        help="before each pair of runs, wait up to so long for a quiet machine (0)",
    )
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return arguments


def main() -> int:
    """Run the benchmarks that the command line names; return the exit code."""
    arguments = _arguments()
    print(machine(), flush=True)
    for name in arguments.names or BENCHMARKS:
        try:
            report = BENCHMARKS[name](Options(arguments.quick, arguments.patience))
        except Absent as why:
            print(f"\n{name}: skipped, {why}", flush=True)
            continue
        except Broken as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        note = " (quick: too small to judge by)" if report.quick else ""
        print(f"\n{report.title}{note}\n\n{report.table()}", flush=True)
        report.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
