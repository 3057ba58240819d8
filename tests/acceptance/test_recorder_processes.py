"""`Recorder` in other programs' processes: forks, greenlets, exits, and many recorders in one."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from routecast.client.threads import MAX_THREADS
from tests.support import apps
from tests.support.needs import lacks
from tests.support.ports import free_port
from tests.support.server import Server
from tests.support.waiting import until

WAIT_SECONDS = 60.0
BEGIN = """
import logging, os, sys, threading, time
logging.basicConfig(format="%(message)s")
URL = sys.argv[1]
decision = {"strategy": "hybrid", "provider": "gemini"}
"""
IMPORT = "from routecast.client import Counters, Recorder\n"


def run(code: str, url: str, begin: str = BEGIN + IMPORT) -> str:
    """Run a program; return what it wrote to standard error, where the log goes."""
    done = subprocess.run(
        [sys.executable, "-c", begin + code, url],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def total(server: Server) -> int:
    count: int = server.metrics()["total_decisions"]
    return count


# -- forks ----------------------------------------------------------------------------------------

FORKED = """
recorder = Recorder(URL, linger=0.01)
recorder.record(decision)
assert recorder.flush(30)
children = []
for _ in range(4):
    child = fork()
    if not child:
        for _ in range(5):
            recorder.record(decision)
        ok = recorder.close() and recorder.counters == Counters(sent=5)
        os._exit(0 if ok else 1)
    children.append(child)
recorder.record(decision)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
assert recorder.close()
assert recorder.counters == Counters(sent=2), recorder.counters
"""


@pytest.mark.parametrize(
    "fork",
    ["fork = os.fork", "import ctypes; fork = ctypes.PyDLL(None).fork"],
    ids=["Python's", "the C library's"],
)
def test_a_forked_child_has_all_of_its_own(server: Server, fork: str) -> None:
    """A child has its own ids, queue, thread and connection, even if Python saw no fork."""
    assert run(f"{fork}\n{FORKED}", server.url) == ""
    assert total(server) == 22


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_send_what_they_recorded(
    server: Server, method: str, tmp_path: Path
) -> None:
    """Children send at their end, which runs no exit handlers; a recorder may be an argument."""
    program = tmp_path / "program.py"
    program.write_text(f"""{BEGIN}{IMPORT}
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

recorder = Recorder(URL, linger=30, exit_timeout=50)

def work(given):
    given.record(decision)
    recorder.record(decision)

if __name__ == "__main__":
    recorder.record(decision)
    context = multiprocessing.get_context({method!r})
    children = [context.Process(target=work, args=(recorder,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        list(pool.map(work, [recorder] * 3))
""")
    done = subprocess.run(
        [sys.executable, program, server.url],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert total(server) == 1 + 2 * 2 + 3 * 2


def count_requests(
    command: list[str], server: Server, folder: Path, *, lost: int = 0, **environment: str
) -> None:
    """Call an application; all its decisions but `lost` arrive, each with its own id."""
    with apps.application(command, folder, URL=server.url, **environment) as url:

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return apps.ask(url) == b"ok"
            return False

        until(answers)
        asked = 1

        def is_sent() -> bool:
            nonlocal asked
            assert apps.ask(url) == b"ok"
            asked += 1
            return asked >= 20 and (not lost or total(server) >= asked - lost)

        # Where the end may lose some, all others have arrived before it, however slow that is.
        until(is_sent)
    assert asked - lost <= total(server) <= asked


@pytest.mark.parametrize(
    "options",
    [[], ["--preload"], ["-k", "gevent"], ["-k", "gevent", "--preload"]],
    ids=" ".join,
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_under_gunicorn(server: Server, tmp_path: Path, options: list[str], workers: str) -> None:
    """It works also if gevent replaces threads and sockets after the recorder was made."""
    if "gevent" in options:
        apps.needs("gevent")
    count_requests(apps.gunicorn("-w", workers, *options), server, tmp_path)


@pytest.mark.parametrize("threads", [[], ["--enable-threads"]], ids=["", "threads"])
@pytest.mark.parametrize("before", [{}, {"BEFORE": "1"}], ids=["", "recorded before"])
def test_under_uwsgi(
    server: Server, tmp_path: Path, threads: list[str], before: dict[str, str]
) -> None:
    """uWSGI forks without Python's hooks; without `enable-threads` no thread runs between requests.

    The log says so, and that the master process sends nothing.
    """
    # uWSGI may end each of its workers before the last decision of that one is sent.
    command = apps.uwsgi("--processes", "3", *threads)
    count_requests(command, server, tmp_path, lost=3, **before)
    log = (tmp_path / "log").read_text()
    assert ("--enable-threads" in log) is (not threads)
    assert ("uWSGI's master, which sends nothing" in log) is bool(before)


@pytest.mark.parametrize(
    "order", ["patched first", "imported before", "made before", "used before"]
)
def test_greenlets_go_on(server: Server, order: str) -> None:
    """A recorder works whenever gevent patches the process; `flush` lets greenlets run."""
    apps.needs("gevent")
    patch = "from gevent import monkey; monkey.patch_all()\n"
    # Nothing is sent before `flush` asks for it: so it has to wait.
    make = "recorder = Recorder(URL, linger=10)\n"
    used = "recorder.record(decision); assert recorder.flush(30)\n"
    begin = (
        BEGIN
        + {
            "patched first": patch + IMPORT + make,
            "imported before": IMPORT + patch + make,
            "made before": IMPORT + make + patch,
            "used before": IMPORT + make + used + patch,
        }[order]
    )
    code = """
import gevent
beats = 0
def beat():
    global beats
    while True:
        beats += 1
        gevent.sleep(0)
gevent.spawn(beat)
for number in range(5):
    recorder.record(decision)
    before = beats
    assert recorder.flush(30)
    assert beats > before
assert recorder.close()
"""
    assert run(code, server.url, begin) == ""
    assert total(server) == (6 if order == "used before" else 5)


# -- many recorders -------------------------------------------------------------------------------

COUNT = """
def threads():
    return len(os.listdir("/proc/self/task"))
def sockets():
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:  # another thread closed it a moment ago
            pass
    return found
"""


@pytest.mark.skipif(sys.platform != "linux", reason=lacks("/proc", "run on Linux"))
def test_recorders_with_equal_arguments_share(server: Server) -> None:
    """They share a thread and a connection, closed or not; each has its own counts."""
    code = """
kept = []
for number in range(300):
    recorder = Recorder(URL, linger=0.01, token="t")
    recorder.record(decision)
    if number % 3 == 0:
        assert recorder.close()
        recorder.record(decision)
        assert recorder.counters == Counters(sent=1, dropped=1), recorder.counters
    elif number % 3 == 1:
        kept.append(recorder)
    assert threads() <= 3, threads()  # one may be just ending
    assert sockets() <= 2, sockets()
    Recorder(URL)
for recorder in kept:
    assert recorder.flush(30)
    assert recorder.counters == Counters(sent=1), recorder.counters
"""
    assert run(COUNT + code, server.url) == ""
    assert total(server) == 300


@pytest.mark.skipif(sys.platform != "linux", reason=lacks("/proc", "run on Linux"))
def test_recorders_with_different_arguments_take_turns(server: Server) -> None:
    """The number of threads is limited; a recorder without one waits for the next free thread."""
    code = f"""
recorders = []
for number in range(200):
    recorders.append(Recorder(URL, token=lambda: "t"))
    recorders[-1].record(decision)
    assert threads() <= 1 + 2 * {MAX_THREADS}, threads()  # some are just ending
    assert sockets() <= {MAX_THREADS}, sockets()
for recorder in recorders:
    assert recorder.flush(30)
    assert recorder.counters == Counters(sent=1), recorder.counters
"""
    assert run(COUNT + code, server.url) == ""
    assert total(server) == 200


def test_decisions_of_recorders_without_number_are_dropped_and_reported() -> None:
    """Too many recorders with different token functions drop decisions, and log that once."""
    code = f"""
recorders = [Recorder(URL, token=lambda: "t", exit_timeout=0) for _ in range({MAX_THREADS} + 1100)]
for recorder in recorders:
    recorder.record(decision)
dropped = sum(recorder.counters.dropped for recorder in recorders)
assert 100 <= dropped <= 100 + {MAX_THREADS}, dropped
logging.disable()
"""
    said = run(code, f"http://127.0.0.1:{free_port()}")
    assert said.count("recorders with different settings: decisions are dropped") == 1


# -- exits ----------------------------------------------------------------------------------------


def test_the_exit_timeout_is_shared() -> None:
    """Twenty recorders delay the exit no longer than one, and each address is logged once."""
    begin = f"{BEGIN}import atexit; atexit.register(lambda: tell()){chr(10)}{IMPORT}"
    code = f"""
def tell():
    print("took long" if time.monotonic() - began > 10 else "", file=sys.stderr)
ports = {[free_port() for _ in range(4)]}
recorders = [Recorder(f"http://127.0.0.1:{{ports[n % 4]}}", exit_timeout=1) for n in range(20)]
for recorder in recorders:
    recorder.record(decision)
began = time.monotonic()
"""
    said = run(code, "", begin)
    assert "took long" not in said
    assert said.count("the program ends with 5 decisions not sent") == 4, said


def test_a_closed_recorder_does_not_delay_the_exit() -> None:
    """The exit does not wait for a recorder that `close` has given up."""
    code = """
recorder = Recorder(URL, exit_timeout=600)
recorder.record(decision)
assert not recorder.close(0.1)
"""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        said = run(code, f"http://127.0.0.1:{deaf.getsockname()[1]}")
    assert said.count("1 decisions not sent") == 1, said


LATE: dict[str, tuple[str, str]] = {
    "in an exit handler": (
        BEGIN + IMPORT,
        "import atexit; recorder = Recorder(URL)\n"
        "atexit.register(lambda: recorder.record(decision))",
    ),
    "in an exit handler from before the import": (
        BEGIN + "import atexit; atexit.register(lambda: recorder.record(decision))\n" + IMPORT,
        "recorder = Recorder(URL)",
    ),
    "in an exit handler that closes": (
        BEGIN + IMPORT,
        "import atexit; recorder = Recorder(URL)\n"
        "atexit.register(lambda: (recorder.record(decision), recorder.close()))",
    ),
    "in __del__": (
        BEGIN + IMPORT,
        "recorder = Recorder(URL)\n"
        "class Late:\n"
        "    def __del__(self): recorder.record(decision)\n"
        "late = Late()",
    ),
    "in a thread that outlives the main one": (
        BEGIN + IMPORT,
        "recorder = Recorder(URL)\n"
        "threading.Thread(target=lambda: (time.sleep(.3), recorder.record(decision))).start()",
    ),
}


@pytest.mark.parametrize("place", LATE)
def test_a_first_decision_at_the_exit_arrives(server: Server, place: str) -> None:
    """A first decision at the exit arrives, though Python 3.12 starts no thread there."""
    begin, code = LATE[place]
    code = code.replace("Recorder(URL)", "Recorder(URL, exit_timeout=50)")
    assert run(code, server.url, begin) == ""
    assert total(server) == 1


@pytest.mark.parametrize("place", LATE)
def test_decisions_lost_at_the_exit_are_logged(place: str) -> None:
    """Decisions lost at the exit are logged in one line."""
    begin, code = LATE[place]
    code = code.replace("Recorder(URL)", "Recorder(URL, exit_timeout=0.1)")
    said = run(code, f"http://127.0.0.1:{free_port()}", begin)
    assert said.count("not sent") + said.count("too late to be sent") == 1, said


def test_decisions_dropped_by_a_full_queue_are_logged() -> None:
    """The number of decisions that a full queue dropped is logged once, at the latest at exit."""
    code = """
recorder = Recorder(URL, capacity=100, exit_timeout=0.1)
for _ in range(1100):
    recorder.record(decision)
"""
    said = run(code, f"http://127.0.0.1:{free_port()}")
    lines = [line for line in said.splitlines() if "decisions were dropped" in line]
    numbers = [int(line.split(": ")[1].split()[0].replace(",", "")) for line in lines]
    assert sum(numbers) == 1000, said


def test_an_internal_error_does_not_reach_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    """`record` raises nothing after an internal error."""
    from routecast.client import Recorder

    class Broken(Recorder):
        def _begin(self) -> Any:
            raise MemoryError

    Broken().record(strategy="s", provider="p")
    assert "could not be recorded" in caplog.text
