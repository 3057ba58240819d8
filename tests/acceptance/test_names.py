"""Limits of names on real servers, and `routecast names`, which makes room while they run."""

import asyncio
import json
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from routecast.adapters.store.sqlite import SqliteStore
from routecast.core.decision import DecisionRecord
from tests.support.command import routecast
from tests.support.decisions import NOW, kept
from tests.support.nodes import Nodes
from tests.support.postgres import Postgres
from tests.support.server import Server
from tests.support.waiting import until

PATIENCE = 180.0  # seconds, of a machine with other work
SMALL = {"ROUTECAST_MAX_NAMES": "3"}


def decision(model: str = "flash", **more: Any) -> dict[str, Any]:
    return {"strategy": "hybrid", "provider": "gemini", "model": model, "cost": 0.25, **more}


def models(server: Server) -> dict[str, int]:
    """Return the number of decisions of each model, as the server shows it."""
    document = server.http.get("/routing/metrics?fields=models").json()
    return {name: model["count"] for name, model in document["models"].items()}


def names(server: Server, *words: str) -> str:
    """Run `routecast names` on a server's database; return what it prints."""
    done = routecast("names", *words, "--database", server.database_url, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def keep(server: Server, *decisions: DecisionRecord) -> None:
    """Store decisions with names that an earlier version may have accepted."""

    async def commit() -> None:
        store = SqliteStore(server.database)
        await store.open()
        await store.commit([decisions], NOW)
        await store.close()

    server.stop()
    asyncio.run(commit())
    server.start()


def assert_verified(server: Server) -> None:
    """Assert that the rollups equal a recount."""
    done = routecast("verify", "--database", server.database_url, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    """A server with room for three names of each part."""
    with Server(tmp_path, env=SMALL) as running:
        yield running


# -- the limit ----------------------------------------------------------------------------------


def test_reaching_the_limit_is_reported(small: Server) -> None:
    """It is logged once, and is in /metrics and /health, where the page reads it."""
    small.post([decision("a"), decision("b")])
    assert small.http.get("/health").json()["full_names"] == {}
    small.post([decision("c")])
    small.post([decision("d")])
    small.post([decision("e")])
    assert small.http.get("/health").json()["full_names"] == {"model": 3}
    assert small.instrument('routecast_names{part="model"}') == 3
    assert small.instrument('routecast_names{part="provider"}') == 1
    assert small.instrument('routecast_names_limit{part="model"}') == 3
    assert small.instrument('routecast_names_limit{part="combination"}') == 5000
    assert models(small) == {"a": 1, "b": 1, "c": 1, "other": 2}
    told = [line for line in small.log.read_text().splitlines() if "limit of 3" in line]
    assert len(told) == 1
    assert "ROUTECAST_MAX_NAMES" in told[0]
    assert "routecast names fold" in told[0]


def test_names_of_duplicates_use_no_room(small: Server) -> None:
    """A known id with new names is not stored, so its names do not count towards the limit."""
    small.post([decision("a", id="known")])
    for number in range(5):
        assert small.post([decision(f"spent-{number}", id="known")])["conflicts"] == 1
    small.post([decision("b"), decision("c")])
    assert models(small) == {"a": 1, "b": 1, "c": 1}


def test_ids_of_projects_over_the_limit_do_not_collide(small: Server) -> None:
    """Ids are unique within each true project, for any ids and projects."""
    small.post([decision(project=name) for name in ("one", "two", "three")])
    pairs = [
        ("a/b", "c"),
        ("a", "b/c"),
        ("x", "y"),
        ("other", "x/y"),
        ("other", "y"),
        ("late", "y"),
    ]
    for project, identity in pairs:
        assert small.post([decision(project=project, id=identity)])["accepted"] == 1
    for project, identity in pairs:
        assert small.post([decision(project=project, id=identity)])["duplicates"] == 1
    assert_verified(small)


def test_reaching_the_limit_is_shown_by_list(small: Server) -> None:
    """`list` shows the number of names, the limit, and each name's decisions."""
    small.post([decision("a"), decision("a"), decision("b")])
    done = routecast(
        *("names", "list", "--part", "model", "--database", small.database_url), env={**small.env}
    )
    assert "model: 2 of 3 names" in done.stdout
    assert re.search(r"^a +2 ", done.stdout, re.MULTILINE)
    listed = json.loads(names(small, "list", "--json"))["names"]
    shown = {(one["part"], one["name"]): one["decisions"] for one in listed}
    assert shown["model", "a"] == 2
    assert shown["project", "default"] == 3
    assert {one["first_hour"][-7:] for one in listed} == {":00:00Z"[-7:]}


# -- folding and forgetting ---------------------------------------------------------------------


def test_fold_makes_room_while_a_server_runs(small: Server) -> None:
    """Totals stay, subscribers get a snapshot of the new epoch, and the name stays folded."""
    small.post([decision("a"), decision("b"), decision("c"), decision("b")])
    with connect(f"{small.ws_url}?interval=0.1", subprotocols=["routecast.v1.json"]) as socket:  # type: ignore[list-item]  # -- a str is one
        ask = {"type": "subscribe", "id": "main", "fields": ["total_decisions", "models"]}
        socket.send(json.dumps(ask))
        before = next(m for m in map(json.loads, socket) if m["type"] == "snapshot")
        assert "4 decisions of model `a`" not in names(small, "fold", "model", "a", "b", "--yes")
        after = next(
            m
            for m in map(json.loads, socket)
            if m["type"] == "snapshot" and m["position"]["epoch"] != before["position"]["epoch"]
        )
    assert {name: one["count"] for name, one in after["data"]["models"].items()} == {
        "c": 1,
        "other": 3,
    }
    small.post([decision("a"), decision("d"), decision("e"), decision("f")])
    assert models(small) == {"c": 1, "d": 1, "e": 1, "other": 5}
    past = small.http.get("/v1/history?group_by=model&fields=count").json()
    counts = {one["key"]: sum(one["count"]) for one in past["series"]}
    assert counts == models(small)
    assert past["series"][-1]["key"] == "other"
    assert_verified(small)


def test_fold_counts_as_other_at_once(server: Server) -> None:
    """This holds also for decisions that come before the server notices the new epoch."""
    server.post([decision("a"), decision("b")])
    names(server, "fold", "model", "a", "--yes")
    server.post([decision("a", id="1")])
    assert models(server) == {"b": 1, "other": 2}
    assert_verified(server)


def test_forgotten_name_comes_back_where_there_is_room(server: Server) -> None:
    """Its earlier decisions stay `other`; forgetting a folded name ends the fold."""
    server.post([decision("a"), decision("b")])
    names(server, "fold", "model", "a", "--yes")
    names(server, "forget", "model", "b", "a", "--yes")
    server.post([decision("a"), decision("b"), decision("b")])
    assert models(server) == {"a": 1, "b": 2, "other": 2}
    server.stop()
    server.start()
    assert models(server) == {"a": 1, "b": 2, "other": 2}
    assert_verified(server)


def test_nothing_acknowledged_is_lost_while_names_change(server: Server) -> None:
    """All totals equal those of the producers, who send while names are folded and forgotten."""
    sent: Counter[str] = Counter()
    done = threading.Event()

    def produce() -> None:
        number = 0
        while not done.is_set():
            batch = [decision(f"m{(number + k) % 4}", id=f"{number}-{k}") for k in range(5)]
            answer = server.http.post("/v1/decisions", json=batch)
            if answer.status_code == 200:
                sent["accepted"] += answer.json()["accepted"]
                number += 1

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for change in ("fold", "forget", "fold"):
            names(server, change, "model", "m1", "m2", "--yes")
    finally:
        done.set()
        producer.join()
    shown = models(server)
    assert sum(shown.values()) == sent["accepted"]
    assert "m1" not in shown
    assert_verified(server)


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, redis_url: str
) -> Iterator[Nodes]:
    """Two nodes on one PostgreSQL and one Redis."""
    folder = tmp_path_factory.mktemp("nodes")
    with Nodes(folder, 2, database_url=postgres.create(), redis_url=redis_url) as running:
        yield running


def _epoch(node: Server) -> str:
    return str(node.http.get("/health").json()["position"]["epoch"])


def test_all_nodes_follow_a_fold(nodes: Nodes) -> None:
    """Every node shows the numbers of the new epoch only."""
    here, there = nodes
    here.post([decision("a"), decision("b")])
    there.post([decision("a"), decision("c", project="late", id="42")])
    names(here, "fold", "model", "a", "c", "--yes")
    here.post([decision("a")])
    there.post([decision("c")])
    names(here, "fold", "project", "late", "--yes")
    assert here.post([decision("c", project="late", id="42")])["duplicates"] == 1
    assert there.post([decision("c", project="late", id="42")])["duplicates"] == 1
    wanted = {"b": 1, "other": 5}
    until(lambda: [models(node) for node in nodes] == [wanted, wanted])
    # The second fold changed no model, so a node may have yet to hear of its epoch.
    until(lambda: len({_epoch(node) for node in nodes}) == 1)
    assert_verified(here)
    assert "Traceback" not in nodes.log()


# -- what the command says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ("fold", "model", "flsh", "--yes"),
            "model 'flsh': no decision has this name; did you mean flash?",
        ),
        (("forget", "project", "x", "--yes"), "see `names list --part project`"),
        (("fold", "model", "other", "--yes"), "names are folded into it"),
        (("fold", "colour", "red", "--yes"), "'colour' is not one of"),
        (("fold", "model", "flash"), "--yes"),
    ],
)
def test_names_says_what_is_wrong(server: Server, words: tuple[str, ...], error: str) -> None:
    """An error is one line with exit code 2, and changes nothing."""
    server.post([decision()])
    place = ("--database", server.database_url)
    done = routecast("names", *words, *place, stdin=subprocess.DEVNULL, timeout=PATIENCE)
    assert done.returncode == 2
    assert error in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert models(server) == {"flash": 1}


def test_names_asks_first(server: Server) -> None:
    """The answer no changes nothing."""
    server.post([decision()])
    words = ("names", "fold", "model", "flash", "--database", server.database_url)
    assert routecast(*words, input="n\n").returncode == 1
    assert models(server) == {"flash": 1}
    assert routecast(*words, input="y\n").returncode == 0
    assert_verified(server)


def test_names_of_earlier_versions_disturb_no_terminal(server: Server) -> None:
    """Names with control characters are shown escaped, and can be folded in that form."""
    server.post([decision("b")])
    keep(server, kept(model="a\x9b\u202e", strategy="a\x9b\u202e"))
    shown = r"a\u009b\u202e"
    listed = names(server, "list")
    assert shown in listed
    watched = routecast("watch", "--once", "--json", "--server", server.url)
    assert json.loads(watched.stdout)["strategy_performance"]["a\x9b\u202e"]["count"] == 1
    assert not {"\x9b", "\u202e"} & {*listed, *watched.stdout}
    names(server, "fold", "model", shown, "--yes")
    until(lambda: models(server) == {"b": 1, "other": 1})
