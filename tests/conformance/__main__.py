"""`make conformance`: run the Autobahn fuzzing client on the echo server, and write its results.

The suite needs Python 2.7. Without it, or if the suite cannot be installed, this prints the reason
and exits with 0. Otherwise it writes the result to docs/conformance.md, and exits with 1 if a case
failed. It takes about ten minutes.
"""

import json
import shutil
import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

from routecast.edge.ws.connection import PATH

ROOT: Final = Path(__file__).parents[2]
BUILD: Final = ROOT / ".venv" / "autobahn"
PAGE: Final = ROOT / "docs" / "conformance.md"

VIRTUALENV: Final = "virtualenv==20.15.1"  # it still supports Python 2.7
SUITE: Final = "autobahntestsuite==0.8.2"
SECTIONS: Final = {
    "1": "Framing",
    "2": "Pings and pongs",
    "3": "Reserved bits",
    "4": "Opcodes",
    "5": "Fragmentation",
    "6": "UTF-8",
    "7": "Closing",
    "9": "Limits and speed",
    "10": "Miscellaneous",
    "12": "Compression: payloads",
    "13": "Compression: parameters",
}
GOOD: Final = ("OK", "NON-STRICT", "INFORMATIONAL")
FAILED: Final = "FAILED"

# The cases with another result than OK, and the reasons.
NOTES: Final = {
    "6.4.3": "invalid UTF-8 is noticed at the end of its frame, not in the middle",
    "6.4.4": "the same",
    "7.1.5": "a close frame between two fragments is answered with code 1002 instead of its own: "
    "`websockets` does this on purpose, and RFC 6455 allows it",
}
ALLOWED: Final = frozenset({"7.1.5"})

Results = dict[str, str]


class Skipped(Exception):
    """The suite cannot run on this machine; the text is the reason."""


def main() -> int:
    try:
        suite = install()
    except Skipped as reason:
        sys.stdout.write(f"Skipped: {reason}\n")
        return 0
    with echo() as port:
        results = fuzz(suite, port)
    page = report(results)
    sys.stdout.write(f"\n{page}")
    PAGE.write_text(page)
    failed = {case for case, result in results.items() if result == FAILED} - ALLOWED
    return 1 if failed else 0


# -- the suite ----------------------------------------------------------------------------------


def install() -> Path:
    """Install the suite; return its command. Raises Skipped."""
    command = BUILD / "python2" / "bin" / "wstest"
    done = BUILD / "installed"
    if not done.exists():
        python2 = find_python2()
        shutil.rmtree(BUILD, ignore_errors=True)
        maker = BUILD / "maker" / "bin"
        try:
            venv.create(BUILD / "maker", with_pip=True)
            answer(maker / "pip", "install", VIRTUALENV)
            answer(maker / "virtualenv", "--python", python2, BUILD / "python2")
            answer(BUILD / "python2" / "bin" / "pip", "install", SUITE)
        except subprocess.CalledProcessError as error:
            raise Skipped(f"{SUITE} cannot be installed:\n{error.output}") from None
        done.touch()
    return command


def find_python2() -> str:
    """Return the path of a Python 2.7. Raises Skipped."""
    program = "import sys; assert sys.version_info[:2] == (2, 7); print(sys.executable)"
    for candidate in candidates():
        try:
            return answer(candidate, "-c", program).strip()
        except subprocess.CalledProcessError:
            continue
    raise Skipped("there is no Python 2.7, which the Autobahn suite needs")


def candidates() -> Iterator[str | Path]:
    for name in ("python2.7", "python2", "python"):
        if path := shutil.which(name):
            yield path
    # The commands of pyenv run only the selected versions; it may have installed others.
    if pyenv := shutil.which("pyenv"):
        yield from Path(answer(pyenv, "root").strip()).glob("versions/2.7*/bin/python2.7")


def answer(*command: str | Path) -> str:
    """Run a command; return its output. Raises CalledProcessError."""
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return ended.stdout


# -- a run --------------------------------------------------------------------------------------


@contextmanager
def echo() -> Iterator[int]:
    """Run the echo server; yield its port."""
    command = [sys.executable, "-m", "tests.conformance.echo"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def fuzz(suite: Path, port: int) -> Results:
    """Run all cases; return the result of each: one of GOOD, or FAILED."""
    reports = BUILD / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    spec = BUILD / "cases.json"
    agent = {"agent": "routecast", "url": f"ws://127.0.0.1:{port}{PATH.decode()}"}
    cases = [f"{section}.*" for section in SECTIONS]
    wanted = {"outdir": str(reports), "servers": [agent], "cases": cases}
    spec.write_text(json.dumps({**wanted, "exclude-cases": [], "exclude-agent-cases": {}}))
    subprocess.run([suite, "--mode", "fuzzingclient", "--spec", spec], cwd=BUILD, check=True)
    index_file = reports / "index.json"
    if not index_file.exists():
        sys.exit("The suite ended before its report.")
    index = json.loads(index_file.read_text())["routecast"]
    return {case: judge(index[case]) for case in sorted(index, key=place)}


def judge(result: dict[str, str]) -> str:
    """Return the worse of the results of a case and of the end of its connection."""
    judged = (result["behavior"], result["behaviorClose"])
    if not set(judged) <= set(GOOD):
        return FAILED
    return max(judged, key=GOOD.index)


def place(case: str) -> tuple[int, ...]:
    return tuple(int(number) for number in case.split("."))


# -- the result ---------------------------------------------------------------------------------


def report(results: Results) -> str:
    """Return the page with the results."""
    columns = (*GOOD, FAILED)
    lines = [
        "# Conformance",
        "",
        "The results of the [Autobahn test suite]"
        "(https://github.com/crossbario/autobahn-testsuite), whose fuzzing client tests the "
        "WebSocket protocol class (`edge/ws/connection.py`). The server itself has no echo, so an "
        "echo server for the tests is built on the class (`tests/conformance`). "
        f"`websockets` {version('websockets')}, uvicorn {version('uvicorn')}. "
        "`make conformance` runs the suite again and writes this page.",
        "",
        "| section | cases | " + " | ".join(name.lower() for name in columns) + " |",
        "|---|" + "---:|" * (1 + len(columns)),
    ]
    for section, title in SECTIONS.items():
        of = Counter(result for case, result in results.items() if case.split(".")[0] == section)
        assert of, f"section {section} was not run"
        counts = [of.total(), *(of[column] for column in columns)]
        lines.append(f"| {section} {title} | " + " | ".join(map(str, counts)) + " |")
    of = Counter(results.values())
    counts = [of.total(), *(of[column] for column in columns)]
    lines.append("| **all** | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "Cases that are not `ok`:", ""]
    for case, result in results.items():
        if result in ("NON-STRICT", FAILED):
            lines.append(f"- {case}, {result.lower()}: {NOTES.get(case, 'to be fixed')}.")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
