"""The programs in `examples/`, run against a real server that is lost and comes back."""

import json
import os
import queue
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tests.support.needs import skip_without
from tests.support.node import NODE
from tests.support.proxies_and_sites import plain_proxy
from tests.support.server import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
WAIT_SECONDS = 60.0
PATH = "/ws/metrics"
DECISION = {"strategy": "hybrid", "provider": "gemini", "confidence": 0.9}


def javascript(script: str = "watch.mjs") -> list[str]:
    """Return the command of a JavaScript example; skip the test if it cannot run."""
    node = shutil.which("node")
    if node is None:
        skip_without(*NODE)
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    major = int(version.stdout.lstrip("v").partition(".")[0])
    if major < 20:
        skip_without(*NODE)
    flags = ["--experimental-websocket"] if major < 22 else []
    return [node, *flags, str(EXAMPLES / "javascript" / script)]


def python() -> list[str]:
    """Return the command of the Python example of the default stream."""
    return [sys.executable, str(EXAMPLES / "python" / "default_stream.py")]


@pytest.fixture(params=[python, javascript])
def example(request: pytest.FixtureRequest) -> list[str]:
    """The command of one of the examples."""
    words: list[str] = request.param()
    return words


class Running:
    """A running example, and the lines it has printed."""

    def __init__(self, *words: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)

    def wait_for(self, pattern: str) -> str:
        """Return the next line that matches."""
        seen = []
        while True:
            try:
                seen.append(self._lines.get(timeout=WAIT_SECONDS))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {seen}") from None
            if re.search(pattern, seen[-1]):
                return seen[-1]

    def write(self, *lines: str) -> None:
        """Send lines to the example's input."""
        assert self.process.stdin
        self.process.stdin.writelines(f"{line}\n" for line in lines)
        self.process.stdin.flush()

    def end(self) -> int:
        """Close its input, and wait for its exit code."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(WAIT_SECONDS)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def stream_url(server: Server) -> str:
    """The address of a stream with a short interval."""
    return f"{server.ws_url}?interval=0.1"


def test_an_example_prints_documents_and_ends(
    server: Server, stream_url: str, example: list[str]
) -> None:
    """An example prints a line for each document, and ends after the requested number."""
    server.post(DECISION)
    done = subprocess.run(
        [*example, stream_url, "--count", "3"],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert re.search(r"1 decisions, confidence 0\.900: .hybrid. 1$", line)


def test_any_form_of_address_works(server: Server) -> None:
    """An address may be HTTP or WebSocket, with or without the path; its query is used."""
    for form in ("{}", "{}/", "{}/v1/decisions"):
        with producer(form.format(server.url.replace("http", "ws")), "--count", "3") as running:
            running.wait_for("accepted 3")
    for scheme, form in (("http", "{}"), ("ws", "{}/"), ("http", "{}/ws/metrics"), ("ws", "{}")):
        address = form.format(server.url.replace("http", scheme))
        with Running(*python(), f"{address}?strategy=nobody", "--once") as running:
            running.wait_for("0 decisions")


@pytest.mark.parametrize("name", ["default_stream.py", "watch_metrics.py", "send_decisions.py"])
def test_a_bad_address_is_refused_at_once(name: str) -> None:
    """One line names the address and shows what a good one looks like; there is no traceback."""
    for address in ("ftp://127.0.0.1", "http://h:port"):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "python" / name), address],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=WAIT_SECONDS,
            check=False,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "address" in done.stderr.splitlines()[-1]


PAGE = (EXAMPLES.parent / "docs" / "client-python.md").read_text("utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_of_the_client_page_work(server: Server, code: str) -> None:
    """Each example on the page runs as it is written, and none of its numbers is unknown."""
    server.post([{**DECISION, "strategy": name} for name in ("hybrid", "complexity")])
    body = textwrap.indent(code.replace("http://127.0.0.1:8000", server.url), "    ")
    program = f"import asyncio\nasync def main():\n{body}\nasyncio.run(main())"
    with Running(sys.executable, "-u", "-c", program) as running:
        if "print(" in code:
            lines = [running.wait_for("") for _ in range(code.count("print("))]
            assert not re.search("None|Traceback", " ".join(lines)), lines
        else:
            assert running.end() == 0
            assert server.metrics()["total_decisions"] == 3


def test_the_reader_on_the_page_of_the_protocol_follows_a_server(server: Server) -> None:
    """The minimal client shows current numbers, changes, and changes that it missed."""
    page = (EXAMPLES.parent / "docs" / "protocol.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    server.post(DECISION)
    program = code.replace("ws://127.0.0.1:8000/ws/metrics", server.ws_url)
    with Running(sys.executable, "-c", program) as it:
        it.wait_for("'total_decisions': 1")
        server.post({**DECISION, "strategy": "complexity"})
        shown = it.wait_for("'total_decisions': 2")
        assert "'hybrid'" in shown
        assert "'complexity'" in shown
        server.kill()
        server.start()
        server.post(DECISION)
        it.wait_for("'total_decisions': 3")


def test_an_example_reconnects_by_itself(
    server: Server, stream_url: str, example: list[str]
) -> None:
    """An example reconnects after the server was killed and restarted, and shows new numbers."""
    server.post(DECISION)
    with Running(*example, stream_url, "--first-delay", "0.1") as running:
        running.wait_for("1 decisions")
        server.kill()
        running.wait_for("trying again in")
        server.start()
        server.post(DECISION)
        running.wait_for("2 decisions")
        server.stop()
        running.wait_for("1012.*trying again in")


def test_the_example_with_the_client_looks_back_and_follows(server: Server) -> None:
    """The example shows the last hour and then changes, also after the server was lost."""
    server.post(DECISION)
    with Running(*javascript("follow.mjs"), server.url) as running:
        running.wait_for('in the last hour: 1 by "hybrid"')
        running.wait_for("1 decisions, none priced$")
        server.post({**DECISION, "cost": 0})
        running.wait_for(r"2 decisions, \$0$")
        server.kill()
        running.wait_for("the server cannot be reached; trying again at")
        server.start()
        server.post({**DECISION, "cost": 0.5})
        running.wait_for(r"3 decisions, \$0\.5$")


@pytest.mark.parametrize("script", ["watch.mjs", "follow.mjs"])
def test_an_address_is_the_servers_or_its_streams(server: Server, script: str) -> None:
    """An example accepts the address of the server or of its stream, by http or ws."""
    server.post(DECISION)
    for address in (server.url, server.url + PATH, server.ws_url.removesuffix(PATH)):
        with Running(*javascript(script), address) as running:
            running.wait_for("  1 decisions")


@pytest.mark.parametrize("script", ["watch.mjs", "follow.mjs"])
def test_an_example_says_in_a_line_what_it_lacks(script: str) -> None:
    """Without a WebSocket or an address, an example prints one line and no traceback."""
    node, *_, path = javascript(script)
    without = [node, "--no-experimental-websocket", path]
    assert re.fullmatch(r"there is no WebSocket\b.*--experimental-websocket.*\n", failed(*without))
    assert failed(*javascript(script), "127.0.0.1:8000").count("\n") == 1


def failed(*words: str) -> str:
    """Run a program that must fail; return its output."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_the_python_example_ends_when_it_is_refused(server: Server) -> None:
    """A refused parameter ends the example; it does not try again."""
    done = subprocess.run(
        [*python(), f"{server.ws_url}?interval=nonsense"],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "HTTP 400" in done.stderr


def test_the_example_on_the_client_follows_a_server(server: Server) -> None:
    """The example prints a line for each change, also after a loss, and ends when refused."""
    server.post(DECISION)
    words = [sys.executable, str(EXAMPLES / "python" / "watch_metrics.py"), server.url]
    with Running(*words, "--interval", "0.1") as running:
        running.wait_for("1 decisions, confidence 0.900: 'hybrid' 1$")
        server.kill()
        running.wait_for("trying again in")
        server.start()
        server.post(DECISION)
        running.wait_for("2 decisions")
    with Running(*words, "--window", "nonsense") as running:
        running.wait_for("does not want this client: window: must be one of")
        assert running.end() == 1


# -- producers ----------------------------------------------------------------------------------


def producer(url: str, *words: str) -> Running:
    """Run the example that sends decisions."""
    script = EXAMPLES / "python" / "send_decisions.py"
    return Running(sys.executable, str(script), url, "--first-delay", "0.1", *words)


def total(server: Server) -> int:
    count: int = server.metrics()["total_decisions"]
    return count


def test_simulated_decisions_are_sent(server: Server) -> None:
    """The decisions are sent in several batches, and all are accepted."""
    with producer(server.url, "--count", "1200") as running:
        running.wait_for("accepted 1200, duplicates 0, rejected 0, refused 0")
        assert running.end() == 0
    assert total(server) == 1200


def test_a_bad_decision_is_named_and_the_rest_is_sent(server: Server) -> None:
    """A line names the bad decision, and the exit code says that there was one."""
    with producer(server.url) as running:
        running.write(json.dumps({**DECISION, "id": "bad", "timestamp": -1}), json.dumps(DECISION))
        assert running.end() == 1
        running.wait_for("rejected: bad: timestamp: ")
        running.wait_for("accepted 1, duplicates 0, rejected 1")
    assert total(server) == 1


def test_warnings_and_conflicts_are_printed(server: Server) -> None:
    """The example prints unusable fields, and ids of other decisions."""
    sent = {**DECISION, "id": "twice", "cost": 0.5}
    with producer(server.url) as running:
        running.write(json.dumps({**sent, "latency_ms": -1}), json.dumps({**sent, "cost": 0.6}))
        assert running.end() == 1
        running.wait_for("decision 0 of a batch: latency_ms: must be 0 or more")
        running.wait_for("accepted 1, duplicates 0, rejected 0, refused 0, conflicts 1")
    assert total(server) == 1


def test_an_id_of_0_is_kept(server: Server) -> None:
    """A decision with id 0 counts once when it is sent twice; an empty id is no id."""
    with producer(server.url) as running:
        running.write(*(json.dumps({**DECISION, "id": given}) for given in (0, 0, "", "", None)))
        assert running.end() == 0
        running.wait_for("accepted 4, duplicates 1")
    assert total(server) == 4


def test_a_producer_outlives_its_server(server: Server) -> None:
    """Decisions of the time when the server was down are sent when it is back."""
    with producer(server.url) as running:
        running.write(json.dumps(DECISION))
        while not total(server):
            time.sleep(0.02)  # time between two checks; the answer is the event
        server.kill()
        running.write(*[json.dumps(DECISION)] * 10)
        running.wait_for("no answer.*trying again in")
        server.start()
        assert running.end() == 0
        running.wait_for("accepted 11, duplicates 0")
    assert total(server) == 11


def test_a_lost_answer_counts_nothing_twice(server: Server) -> None:
    """A batch whose answer was lost is sent again with the same ids, and counts once."""
    with plain_proxy(server, lose=1) as url, producer(url, "--count", "10") as running:
        running.wait_for("no answer.*trying again in")
        running.wait_for("accepted 0, duplicates 10")
    assert total(server) == 10


def test_a_producer_waits_for_retry_after(server: Server) -> None:
    """`Retry-After` counts, and not the producer's own delay of 0.1 s."""
    lock = sqlite3.connect(server.database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    with producer(server.url, "--count", "10") as running:
        line = running.wait_for("locked.*trying again in")
        assert re.search(r"again in 1\.0 s", line)
        lock.execute("ROLLBACK")
        running.wait_for("accepted 10")
    lock.close()


# What LiteLLM 1.110 gave its callbacks, less what is not looked at.
CALL = {
    "litellm_call_id": "54936827-2f49-4bcd-85e4-4d4a7b9333f4",
    "status": "success",
    "custom_llm_provider": "openai",
    "endTime": 1795546101.462798,
    "response_time": 0.060787200927734375,
    "model": "openai/gpt-4o-mini",
    "response_cost": 1.35e-05,
    "total_tokens": 30,
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "model_group": "fast",
}
FAILED = {
    "litellm_call_id": "1f11e9e5-2d15-438c-8ba6-2e64be9dfe97",
    "status": "failure",
    "custom_llm_provider": "anthropic",
    "endTime": 1795546102.474773,
    "response_time": 0.005872011184692383,
    "model": "anthropic/claude-3-haiku-20240307",
    "response_cost": 0.0,
    "total_tokens": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "model_group": "bad",
}
# Known costs of 0: from LiteLLM's cache, and by a price of 0 of one's own.
CACHED = {**CALL, "litellm_call_id": "c1", "response_cost": 0.0, "cache_hit": True}
OWN_PRICE = {**CACHED, "litellm_call_id": "c2", "cache_hit": None, "model_group": "contract"}
# It writes 0 for a cost that it does not know as well, and elsewhere, why.
UNKNOWN = {
    **OWN_PRICE,
    "litellm_call_id": "c3",
    "model_group": "unknown",
    "model": "gpt-next",
    "response_cost_failure_debug_info": {"error_str": "This model isn't mapped yet."},
}
HALF = {
    **OWN_PRICE,
    "litellm_call_id": "c4",
    "model_group": "half",
    "model": "gpt-next",
    "zero_cost_diagnostic": {"reason": "missing_pricing_key"},
}
CALLS = """
import asyncio, json, sys
from litellm_callback import Callback
callback = Callback(sys.argv[1])
for call in json.loads(sys.argv[2]):
    given = {"kwargs": {"standard_logging_object": call}, "response_obj": None}
    given |= {"start_time": None, "end_time": None}
    callback.log_success_event(**given)
    asyncio.run(callback.async_log_failure_event(**given))
callback.recorder.close()
"""


def test_calls_of_litellm_become_decisions(server: Server, tmp_path: Path) -> None:
    """Each call counts once, though it is reported twice; unknown values are absent, and 0 is 0."""
    # LiteLLM is large: of it, only the class that its callbacks derive from stands in here.
    package = tmp_path / "litellm" / "integrations"
    package.mkdir(parents=True)
    (package / "custom_logger.py").write_text("class CustomLogger: pass")
    path = os.pathsep.join([str(tmp_path), str(EXAMPLES / "python")])
    calls = [CALL, FAILED, CACHED, OWN_PRICE, UNKNOWN, HALF]
    words = [sys.executable, "-c", CALLS, server.url, json.dumps(calls)]
    subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, check=True, timeout=WAIT_SECONDS)
    found = server.metrics(fields="strategy_performance,provider_usage,cost,tokens,errors")
    del found["timestamp"]
    assert found == {
        "strategy_performance": {
            "bad": {"count": 1, "avg_cost": None, "avg_confidence": None},
            "contract": {"count": 1, "avg_cost": 0, "avg_confidence": None},
            "fast": {"count": 2, "avg_cost": 6.75e-06, "avg_confidence": None},
            "half": {"count": 1, "avg_cost": None, "avg_confidence": None},
            "unknown": {"count": 1, "avg_cost": None, "avg_confidence": None},
        },
        "provider_usage": {"anthropic": 1, "openai": 5},
        "cost": {"total": 1.35e-05, "priced": 3, "unpriced": 3},
        "tokens": {"input": 50, "output": 100},
        "errors": {"count": 1, "rate": round(1 / 6, 6)},
    }
