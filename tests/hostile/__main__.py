"""`make hostile`: attack a node on SQLite, then one on PostgreSQL, and print the results."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.hostile.soak import MIB, Report, soak
from tests.support import postgres


def main() -> int:
    """Run the soak; return 1 if anything broke or a target was missed."""
    parser = argparse.ArgumentParser(
        prog="make hostile",
        description="Attack a node that has 40,000 rollup keys with every hostile input at once, "
        "beside producers and viewers that behave well.",
    )
    parser.add_argument(
        "--seconds", type=float, default=300, help="how long each database is attacked (300)"
    )
    parser.add_argument(
        "--database", choices=["sqlite", "postgresql", "both"], default="both", help="which (both)"
    )
    given = parser.parse_args()
    reports = []
    with tempfile.TemporaryDirectory(prefix="hostile") as place:
        if given.database != "postgresql":
            reports.append(soak(Path(place) / "sqlite", given.seconds, tell=_tell))
            _show(reports[-1])
        if given.database != "sqlite":
            with postgres.running() as server:
                url = server.create()
                folder = Path(place) / "postgresql"
                reports.append(soak(folder, given.seconds, database_url=url, tell=_tell))
                _show(reports[-1])
    return int(any(report.broken or report.missed for report in reports))


def _tell(text: str) -> None:
    print(f"  {text}", flush=True)


def _show(report: Report) -> None:
    seen = report.seen
    print(f"\n{report.database}, attacked for {report.seconds:.0f} s")
    print(
        f"  producers: p50 {report.percentile(50) * 1000:.0f} ms, "
        f"p95 {report.percentile(95) * 1000:.0f} ms, p99 {report.percentile(99) * 1000:.0f} ms, "
        f"longest {max(seen.seconds, default=0) * 1000:.0f} ms; {len(seen.seconds)} batches, "
        f"{seen.refused} answered 503 and sent again"
    )
    steps = max(1, len(report.memory) // 10)
    memory = ", ".join(str(each // MIB) for each in report.memory[::steps])
    print(f"  memory over time: {memory} MiB; most {max(report.memory, default=0) // MIB} MiB")
    print(f"  viewers: {seen.documents} documents")
    for name, (seconds, size) in (("before", report.first_start), ("after", report.restart)):
        print(f"  start {name} the attack: {seconds:.1f} s, {size // MIB} MiB")
    print(f"  stopped under attack in {report.stopped:.1f} s")
    print(f"  verify: {report.verified}")
    for text in report.broken:
        print(f"  BROKEN: {text}")
    for text in report.missed:
        print(f"  MISSED: {text}")


if __name__ == "__main__":
    sys.exit(main())
