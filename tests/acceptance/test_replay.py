"""`routecast replay` into a real server: exact totals, clear messages, each row counted once."""

import asyncio
import csv
import gzip
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from websockets.asyncio.client import connect

from tests.support import oracle
from tests.support.command import COMMAND, WAIT_SECONDS, Terminal, routecast
from tests.support.needs import skip_without
from tests.support.ports import free_port
from tests.support.server import Server
from tests.support.stream import receive_until

DATA = Path(
    os.environ.get("ROUTECAST_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data")
)
BOTH = ("--set", "strategy=hybrid", "--set", "provider=gemini")
SUMMARY = re.compile(
    r"Sent (\d[\d,]*): accepted (\d[\d,]*), duplicates (\d[\d,]*), rejected (\d[\d,]*)"
    r"(?:, broken lines (\d[\d,]*))?\."
)


def replay(server: Server, file: object, *words: object, **given: Any) -> Any:
    """Replay a file into a server; return the finished process."""
    return routecast("replay", file, "--server", server.url, *words, **given)


def summary(output: str) -> tuple[int, ...]:
    """Return sent, accepted, duplicates, rejected and broken lines from the output."""
    found = SUMMARY.search(output)
    assert found, output
    return tuple(int((number or "0").replace(",", "")) for number in found.groups())


def decisions(output: str) -> list[dict[str, Any]]:
    """Return the decisions that a dry run shows."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def write(path: Path, *lines: str) -> Path:
    """Write lines to a file."""
    path.write_text("\n".join(lines) + "\n")
    return path


def wait_until(good: Callable[[], bool]) -> None:
    """Repeat a check until it holds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not good():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)  # time between two checks; the answer is the event


# -- real input ---------------------------------------------------------------------------------


def azure(name: str) -> Iterator[dict[str, Any]]:
    """Read an Azure trace independently, as the decisions it means."""
    with (DATA / f"azure_llm_{name}_2023.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            whole, _, fraction = row["TIMESTAMP"].partition(".")
            micros = round(int(fraction) / 10 ** (len(fraction) - 6))
            moment = datetime.fromisoformat(f"{whole}+00:00") + timedelta(microseconds=micros)
            yield {
                "strategy": name,
                "provider": "azure",
                "timestamp": moment.isoformat(),
                "input_tokens": int(row["ContextTokens"]),
                "output_tokens": int(row["GeneratedTokens"]),
            }


def semantic_router() -> Iterator[dict[str, Any]]:
    """Read the semantic router's decisions independently; its models have no known price."""
    for line in (DATA / "semantic_router_decisions.jsonl").read_text().splitlines():
        row = json.loads(line)
        with pytest.raises(LookupError):
            calc_price(Usage(input_tokens=1, output_tokens=1), row["selected_model"])
        yield {
            "strategy": row["category"],
            "provider": "vllm",
            "model": row["selected_model"],
            "input_tokens": row["prompt_tokens"],
            "output_tokens": row["generated_tokens"],
        }


def router_arena() -> Iterator[dict[str, Any]]:
    """Read RouterArena's calls independently; a call without a cost is priced by its model."""
    for line in (DATA / "routerarena_calls.jsonl").read_text().splitlines():
        row = json.loads(line)
        cost = row["cost_usd"]
        if cost is None:
            usage = Usage(input_tokens=row["input_tokens"], output_tokens=row["output_tokens"])
            price = calc_price(usage, row["model"], provider_id=row["provider"]).total_price
            cost = float(price)
        yield {
            "id": row["id"],
            "strategy": "arena",
            "provider": row["provider"],
            "model": row["model"],
            "cost": cost,
            "input_tokens": row["input_tokens"],
            "output_tokens": row["output_tokens"],
            "status": "success" if row["success"] else "error",
        }


FILES: dict[str, tuple[Callable[[], Iterator[dict[str, Any]]], tuple[str, ...]]] = {
    "azure_llm_conv_2023.csv": (
        lambda: azure("conv"),
        ("--set", "strategy=conv", "--set", "provider=azure"),
    ),
    "azure_llm_code_2023.csv": (
        lambda: azure("code"),
        ("--set", "strategy=code", "--set", "provider=azure"),
    ),
    "semantic_router_decisions.jsonl": (
        semantic_router,
        ("--map", "strategy=category", "--set", "provider=vllm"),
    ),
    "routerarena_calls.jsonl": (router_arena, ("--set", "strategy=arena")),
}


async def test_real_input_gives_the_totals_of_an_independent_count(server: Server) -> None:
    """After a replay of all four files, the last frame of a stream equals a recount of them."""
    if missing := [name for name in FILES if not (DATA / name).exists()]:
        skip_without(", ".join(missing), "set ROUTECAST_SHARED_DATA to their folder")
    now = time.time_ns() // 1000
    facts = [oracle.fact(row, now) for rows, _ in FILES.values() for row in rows()]
    fields = tuple(name for name in oracle.ALL_FIELDS if name != "savings")
    url = f"{server.ws_url}?interval=0.1&fields={','.join(fields)}"
    async with connect(url) as stream:
        last = asyncio.create_task(
            receive_until(stream, lambda d: d["total_decisions"] == len(facts), WAIT_SECONDS)
        )
        for name, (_, words) in FILES.items():
            done = await asyncio.to_thread(replay, server, DATA / name, *words)
            assert done.returncode == 0, done.stdout + done.stderr
        frame = await last
    # Two of the files have no calendar times: their rows count as of now, so the rate is theirs.
    recent = sum(1 for rows in (semantic_router, router_arena) for _ in rows())
    assert 0 < frame.pop("rate") <= round(recent / 60, 3)
    assert frame.pop("timestamp") > datetime.now(UTC).date().isoformat()[:4]
    expected = oracle.expect(facts, now=now, fields=fields)
    expected.pop("rate")
    oracle.assert_agree(frame, expected)


def test_prompts_are_never_sent(server: Server, tmp_path: Path) -> None:
    """A prompt column is listed as never sent, and nothing of it reaches the server's disk."""
    rows = [{"prompt": f"the secret of row {n}", "score": 0.9, "model": "m"} for n in range(50)]
    file = write(tmp_path / "calls.jsonl", *map(json.dumps, rows))
    done = replay(server, file, *BOTH)
    assert "prompt (never sent)" in done.stdout
    assert server.metrics()["total_decisions"] == 50
    assert server.metrics()["avg_confidence"] is None
    server.stop()
    kept = b"".join(path.read_bytes() for path in server.database.parent.glob("routecast.db*"))
    assert b"hybrid" in kept
    assert b"secret" not in kept


# -- exactness and identity ---------------------------------------------------------------------


def test_costs_are_exact(server: Server, tmp_path: Path) -> None:
    """Costs are summed from the decimal digits of the file: ten times 0.1 is exactly 1."""
    costs = ["0.1"] * 10 + ["1e-9", "0.000000002", "", "null"]
    lines = [f"hybrid,gemini,{cost}" for cost in costs]
    file = write(tmp_path / "costs.csv", "strategy,provider,cost_usd", *lines)
    assert replay(server, file).returncode == 0
    assert server.metrics(fields="cost")["cost"] == {
        "total": 1.000000003,
        "priced": 12,
        "unpriced": 2,
    }


def test_a_file_with_ids_counts_once_however_often_it_is_replayed(
    server: Server, tmp_path: Path
) -> None:
    """A second replay of the same ids has only duplicates, and says so."""
    file = write(tmp_path / "ids.csv", "id,model", *(f"call-{n},m" for n in range(30)))
    assert summary(replay(server, file, *BOTH).stdout) == (30, 30, 0, 0, 0)
    again = replay(server, file, *BOTH)
    assert again.returncode == 0
    assert summary(again.stdout) == (30, 0, 30, 0, 0)
    assert "the server has a decision with this id already" in again.stdout
    assert server.metrics()["total_decisions"] == 30


def test_a_file_without_ids_counts_once_too(server: Server, tmp_path: Path) -> None:
    """Rows count once also after the file has grown or a line was corrected; --again counts all."""
    rows = ["m"] * 29 + [""]
    file = write(tmp_path / "calls.csv", "strategy", *rows)
    words = ("--set", "provider=p")
    assert summary(replay(server, file, *words).stdout) == (29, 29, 0, 0, 0)
    file = write(file, "strategy", *["m"] * 32)
    second = replay(server, file, *words)
    assert summary(second.stdout) == (32, 3, 29, 0, 0)
    assert "an earlier run sent these rows of the file" in second.stdout
    assert server.metrics()["total_decisions"] == 32
    assert summary(replay(server, file, *words, "--again").stdout) == (32, 32, 0, 0, 0)
    other = ("--set", "provider=q")
    assert summary(replay(server, file, *other).stdout) == (32, 32, 0, 0, 0)


def test_an_interrupted_import_is_resumed(server: Server, tmp_path: Path) -> None:
    """After an interruption, the same command counts the remaining rows, and no row twice."""
    rows = 20_000
    file = write(tmp_path / "many.csv", "model", *("m" for _ in range(rows)))
    words = ["replay", str(file), "--server", server.url, *BOTH, "--batch", "100"]
    with subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_until(lambda: server.metrics()["total_decisions"] > 500)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, output
    assert "The same command continues" in output
    counted = server.metrics()["total_decisions"]
    assert counted < rows, "it was over before it was stopped"
    done = replay(server, file, *BOTH)
    assert summary(done.stdout) == (rows, rows - counted, counted, 0, 0)
    assert server.metrics()["total_decisions"] == rows


def test_a_server_that_dies_and_comes_back_counts_every_row_once(
    server: Server, tmp_path: Path
) -> None:
    """A replay goes on after the server was killed and restarted; each row counts once."""
    rows = 60_000
    file = write(tmp_path / "many.csv", "model", *("m" for _ in range(rows)))
    words = ["replay", str(file), "--server", server.url, *BOTH, "--batch", "500"]
    with subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_until(lambda: server.metrics()["total_decisions"] > 2_000)
        server.kill()
        server.start()
        assert server.metrics()["total_decisions"] < rows, "it was over before the kill"
        output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, output
    assert summary(output) == (rows, rows, 0, 0, 0)
    assert "; trying again" in output
    assert server.metrics()["total_decisions"] == rows


def test_a_server_without_its_database_is_waited_for(server: Server, tmp_path: Path) -> None:
    """On 503 `replay` waits, says why, and goes on when the server can store again."""
    server.post({"strategy": "first", "provider": "p"})
    file = write(tmp_path / "calls.csv", "model", "a", "b")
    lock = sqlite3.connect(server.database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    with Terminal(*COMMAND, "replay", file, "--server", server.url, *BOTH) as terminal:
        terminal.wait_for("503: .*locked; trying again")
        lock.execute("ROLLBACK")
        assert terminal.end() == 0
    assert summary(terminal.output) == (2, 2, 0, 0, 0)
    assert server.metrics()["total_decisions"] == 3


def test_ctrl_c_says_how_many_were_acknowledged(server: Server, tmp_path: Path) -> None:
    """Ctrl-C ends `replay` with 130; the count it shows is the server's."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    times = [start + timedelta(seconds=n) for n in (0, 0, 0, 3600)]
    file = write(tmp_path / "slow.csv", "time", *(time.isoformat() for time in times))
    with Terminal(
        *COMMAND, "replay", file, "--server", server.url, *BOTH, "--speed", 1
    ) as terminal:
        terminal.wait_for("no arrivals; continuing in")
        terminal.press_ctrl_c()
        assert terminal.end() == 130
    assert summary(terminal.output) == (3, 3, 0, 0, 0)
    assert "stopped" in terminal.output
    assert "Traceback" not in terminal.output
    assert server.metrics()["total_decisions"] == 3


# -- times --------------------------------------------------------------------------------------


def test_speed_keeps_the_gaps_and_stamps_with_the_time_of_sending(
    server: Server, tmp_path: Path
) -> None:
    """Sixty seconds of arrivals at speed 60 take a second, and count at the time of sending."""
    start = datetime(2023, 11, 16, 18, tzinfo=UTC)
    times = [(start + timedelta(seconds=n)).isoformat() for n in range(61)]
    file = write(tmp_path / "minute.csv", "time", *times)
    done = replay(server, file, *BOTH, "--speed", 60)
    assert summary(done.stdout) == (61, 61, 0, 0, 0)
    seconds = re.search(r"([\d.]+) s, [\d,]+ per second", done.stdout)
    assert seconds
    assert float(seconds[1]) >= 1
    assert server.metrics(window="5m")["total_decisions"] == 61


def test_timestamps_of_the_file_are_kept(server: Server, tmp_path: Path) -> None:
    """The file's times count with --speed only if asked for, and always without it."""
    file = write(tmp_path / "old.csv", "time", "2023-11-16T18:00:00Z", "2023-11-16T18:00:01Z")
    replay(server, file, *BOTH)
    replay(server, file, *BOTH, "--speed", 1000, "--timestamps", "keep", "--again")
    assert server.metrics()["total_decisions"] == 4
    assert server.metrics(window="7d")["total_decisions"] == 0
    replay(server, file, *BOTH, "--timestamps", "now", "--again")
    assert server.metrics(window="5m")["total_decisions"] == 2


def test_seconds_from_the_start_end_now(server: Server, tmp_path: Path) -> None:
    """Small numbers as times are seconds from the start; the last one is now."""
    file = write(tmp_path / "offsets.jsonl", *(f'{{"timestamp":{n}}}' for n in (0.25, 60, 7200)))
    done = replay(server, file, *BOTH, "--dry-run")
    assert "seconds from the start" in done.stdout
    times = [datetime.fromisoformat(row["timestamp"]) for row in decisions(done.stdout)]
    assert times[2] <= datetime.now(UTC)
    assert times[2] - times[0] == timedelta(seconds=7199.75)
    replay(server, file, *BOTH)
    assert server.metrics(window="5m")["total_decisions"] == 1
    assert server.metrics(window="24h")["total_decisions"] == 3


def test_a_row_is_never_counted_at_the_time_of_sending(server: Server, tmp_path: Path) -> None:
    """In a file with times, a row without a usable time is left out."""
    times = [*["2026-01-31 12:00:00+00"] * 10, "", "soon", "2199-01-01", "1969-12-31"]
    file = write(tmp_path / "x.csv", "time,model", *(f"{time},m" for time in times))
    done = replay(server, file, *BOTH)
    assert done.returncode == 1
    assert summary(done.stdout) == (10, 10, 0, 0, 4)
    for words in (
        "line 12: timestamp: this row has none",
        "line 13: timestamp: 'soon' is not a time",
        "line 14: timestamp: must be at most 24 hours in the future",
        "line 15: timestamp: must not be before 1970",
    ):
        assert words in done.stdout
    assert server.metrics(window="5m")["total_decisions"] == 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["time", "yesterday"], "--map 'timestamp=time:%d.%m.%Y %H:%M:%S'"),
        (["time", "01/02/2026 12:00"], "--map timestamp=time:dmy"),
        (["seen", "2026-01-31 12:00:00+00"], "--map timestamp=seen"),
        (["cost", "0.5 EUR"], "--map 'cost=cost*FACTOR'"),
        (["cost", '"1,234"'], "--map cost=cost:comma"),
        (["id,model", "a,x", "a,y"], "--map id="),
    ],
    ids=["words", "order", "name", "currency", "comma", "ids"],
)
def test_an_ambiguous_file_sends_nothing(
    server: Server, tmp_path: Path, rows: list[str], words: str
) -> None:
    """`replay` names the option that decides, also with --dry-run, and ends with 1."""
    file = write(tmp_path / "x.csv", *rows)
    for dry in ((), ("--dry-run",)):
        done = replay(server, file, *BOTH, *dry)
        assert done.returncode == 1
        assert words in done.stderr
        assert "so nothing was sent" in done.stderr
    assert server.metrics()["total_decisions"] == 0


def test_a_cell_at_the_end_decides_how_the_first_is_read(server: Server, tmp_path: Path) -> None:
    """The whole column decides the order of day and month, also when it comes from a pipe."""
    text = "time\n" + "01/02/2026 12:00\n" * 3000 + "31/01/2026 12:00\n"
    done = replay(server, "-", *BOTH, "--dry-run", input=text)
    assert done.returncode == 0
    assert decisions(done.stdout)[0]["timestamp"] == "2026-02-01T12:00:00.000000+00:00"


# -- where it reads from, and how much ----------------------------------------------------------


def test_gzip_and_standard_input(server: Server, tmp_path: Path) -> None:
    """Gzip is recognised by its content, not its name; - is standard input."""
    text = "strategy;provider\n" + "hybrid;gemini\n" * 10
    packed = tmp_path / "decisions"
    packed.write_bytes(gzip.compress(text.encode()))
    assert summary(replay(server, packed).stdout) == (10, 10, 0, 0, 0)
    assert summary(replay(server, "-", input=text).stdout) == (10, 10, 0, 0, 0)
    assert server.metrics()["strategy_performance"]["hybrid"]["count"] == 20


def test_a_file_without_times_is_reported(server: Server, tmp_path: Path) -> None:
    """Before it sends, `replay` says that all rows count as now, and how to name a column."""
    file = write(tmp_path / "x.csv", "strategy,provider", "s,p")
    done = replay(server, file, "--dry-run")
    assert done.returncode == 0
    assert "every decision will count as made now" in done.stdout
    assert "--map timestamp=COLUMN" in done.stdout
    silent = replay(server, file, "--dry-run", "--timestamps", "now")
    assert "No column gives times" not in silent.stdout


def test_limit_and_dry_run(server: Server, tmp_path: Path) -> None:
    """--limit stops early; --dry-run shows ten decisions as they would be, and sends none."""
    row = '{{"strategy":"s","provider":"p","cost":"0,00{}","time":"31.01.2026 12:{:02}"}}'
    file = write(tmp_path / "calls.jsonl", *(row.format(n, n) for n in range(10, 22)))
    dry = replay(server, file, "--dry-run")
    assert dry.returncode == 0
    shown = decisions(dry.stdout)
    assert [(one["cost"], one["timestamp"]) for one in shown] == [
        (n / 10_000, f"2026-01-31T12:{n:02}:00.000000+00:00") for n in range(10, 20)
    ]
    assert len({one["id"] for one in shown}) == 10
    assert server.metrics()["total_decisions"] == 0
    assert summary(replay(server, file, "--limit", 3, "--batch", 2).stdout) == (3, 3, 0, 0, 0)
    assert server.metrics(fields="cost")["cost"]["total"] == 0.0033


# -- bad input ----------------------------------------------------------------------------------


def test_columns_that_are_no_field_are_named(server: Server, tmp_path: Path) -> None:
    """A column with a misspelt name is left out, and named."""
    file = write(tmp_path / "x.csv", "strategy,provider,modle,junk", "hybrid,gemini,m,x")
    done = replay(server, file)
    assert "Left out: modle, junk" in done.stdout
    assert server.metrics(fields="models")["models"] == {}


def test_bad_rows_are_named_and_the_rest_is_sent(server: Server, tmp_path: Path) -> None:
    """Bad lines and values are counted and named with line and error; the exit code is 1."""
    file = tmp_path / "bad.csv"
    file.write_bytes(
        b"strategy,provider,cost,note\n"
        b"good,p,0.1,a\n"
        b"half,p,-1,a\n"
        b"bad,p\n"
        b'good,p,0.2,"two\nlines"\n'
        b"half,p,free,a\n"
        b"bad,\xff,0.1,a\n"
        b"good,p,0.3,a\n"
    )
    done = replay(server, file)
    assert done.returncode == 1
    assert summary(done.stdout) == (5, 5, 0, 0, 2)
    for words in (
        "line 3: cost: must be 0 or more (column cost); sent without it",
        "line 4: 2 cells under a header of 4",
        "line 7: cost: 'free' is not a number (column cost); sent without it",
        "line 8: not UTF-8",
        "Values left out because they cannot be used: 2.",
    ):
        assert words in done.stdout
    assert server.metrics()["strategy_performance"] == {
        "good": {"count": 3, "avg_cost": 0.2, "avg_confidence": None},
        "half": {"count": 2, "avg_cost": None, "avg_confidence": None},
    }


def test_rejected_rows_are_named(server: Server, tmp_path: Path) -> None:
    """A row that the server rejects is named by its line in the file; the exit code is 1."""
    names = ("good", "\u202ebad", "good")
    file = write(tmp_path / "x.csv", "strategy", *names)
    done = replay(server, file, "--set", "provider=p")
    assert done.returncode == 1
    assert summary(done.stdout) == (3, 2, 0, 1, 0)
    assert "line 3: strategy: " in done.stdout


def test_broken_json_lines(server: Server, tmp_path: Path) -> None:
    """A line that is no JSON object is named; NaN is no JSON."""
    good = '{"strategy":"s","provider":"p"}'
    lines = (good, '{"strategy":', '"text"', '{"strategy":"s","cost":NaN}', "", good)
    file = write(tmp_path / "bad.jsonl", *lines)
    done = replay(server, file)
    assert done.returncode == 1
    assert summary(done.stdout) == (2, 2, 0, 0, 3)
    for words in ("line 2: not JSON", "line 3: not a JSON object", "line 4: not JSON"):
        assert words in done.stdout


def test_a_truncated_gzip_sends_the_rows_before_the_damage(server: Server, tmp_path: Path) -> None:
    """The rows before the damage count; the damage is named, and the exit code is 1."""
    rows = "".join(f"hybrid,gemini,{n % 9000}\n" for n in range(20_000))
    packed = gzip.compress(f"strategy,provider,cost\n{rows}".encode())
    file = tmp_path / "cut.csv.gz"
    file.write_bytes(packed[: len(packed) // 2])
    done = replay(server, file)
    assert done.returncode == 1
    assert "cannot be read from here on" in done.stdout
    sent, accepted, *_ = summary(done.stdout)
    assert 0 < accepted == sent < 20_000
    assert server.metrics()["total_decisions"] == accepted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"a,b\n", "a header and no rows"),
        (b"\x7fELF\x02\x01\x00\x00\x00", "neither CSV nor JSON lines"),
        (b'[{"strategy":"s"}]', "one JSON array"),
        (b'{\n  "strategy": "s"\n}\n', "no row could be read; line 1: not JSON"),
        (b"\x1f\x8b\x08nonsense", "damaged gzip"),
    ],
    ids=["nothing", "blank", "header", "binary", "array", "pretty", "gzip"],
)
def test_files_without_rows(tmp_path: Path, content: bytes, words: str) -> None:
    """`replay` says what the file seems to be, and ends with 1 without a request to a server."""
    file = tmp_path / "file"
    file.write_bytes(content)
    done = routecast("replay", file, *BOTH)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_a_path_that_is_no_file(tmp_path: Path, name: str) -> None:
    """A missing path or a folder is a usage error."""
    done = routecast("replay", name, cwd=tmp_path)
    assert done.returncode == 2
    assert f"cannot read {name}" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ("strategy", "provider", "--map strategy=COLUMN", "--set provider=VALUE")),
        ((*BOTH, "--map", "model=modle"), ("--map", "'modle'", "model")),
        ((*BOTH, "--map", "model"), ("--map", "FIELD=")),
        (
            (*BOTH, "--map", "model=size", "--map", "model =model"),
            ("--map", "model is given twice"),
        ),
        ((*BOTH, "--speed", "2"), ("--speed", "--map timestamp=COLUMN")),
        ((*BOTH, "--server", "ftp://x"), ("--server", "ftp://x")),
    ],
    ids=["required", "no such column", "no equals", "given twice", "speed", "server"],
)
def test_bad_usage_names_the_columns_and_the_flag(
    tmp_path: Path, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    """The exit code is 2; the message names the columns and the option to add."""
    file = write(tmp_path / "calls.csv", "model,size", "m,1")
    done = routecast("replay", file, *words)
    assert done.returncode == 2
    for word in said:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server(tmp_path: Path) -> None:
    """If no server listens, `replay` says so at once, and how to start one."""
    file = write(tmp_path / "calls.csv", "model", "m")
    url = f"http://127.0.0.1:{free_port()}"
    done = routecast("replay", file, *BOTH, "--server", url)
    assert done.returncode == 1
    assert f"cannot reach {url}: connection refused" in done.stderr
    assert "routecast serve" in done.stderr


def test_sigterm_leaves_the_terminal_as_it_was(server: Server, tmp_path: Path) -> None:
    """SIGTERM ends a pause with the cursor shown; acknowledged rows stay."""
    file = write(tmp_path / "slow.csv", "ts", "0", "3600")
    words = ("replay", file, "--server", server.url, *BOTH, "--speed", 1)
    with Terminal(*COMMAND, *words) as terminal:
        terminal.wait_for("no arrivals")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 143
    assert terminal.output.rindex("\x1b[?25h") > terminal.output.rindex("\x1b[?25l")
    assert server.metrics()["total_decisions"] == 1
