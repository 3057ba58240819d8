"""`routecast projects delete` on real servers, which show it while they run."""

from typing import Any

import pytest

from tests.support.command import routecast
from tests.support.server import Server
from tests.support.waiting import until

PATIENCE = 180.0  # seconds, of a machine with other work


def run(server: Server, *words: str) -> str:
    done = routecast(*words, "--database", server.database_url, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def create_key(server: Server, *projects: str) -> str:
    """Create a key that may read some projects; return its text."""
    given = [word for project in projects for word in ("--project", project)]
    name = f"of {len(projects)}"
    return run(server, "keys", "create", "--name", name, "--scope", "read", *given).strip()


def decision(project: str, number: int) -> dict[str, Any]:
    names = {"strategy": "hybrid", "provider": "gemini", "model": f"of-{project}"}
    return {"id": f"{project}-{number}", "project": project, "cost": 0.25, **names}


def test_running_server_shows_that_a_project_is_gone(server: Server) -> None:
    """Its numbers, names and history are gone, its key is refused, and the sums are verified."""
    server.post([decision(project, n) for project in ("search", "trial") for n in range(3)])
    everything = create_key(server)
    only = create_key(server, "trial")
    both = create_key(server, "trial", "search")

    def get(path: str, key: str) -> Any:
        return server.http.get(path, headers={"Authorization": f"Bearer {key}"})

    until(lambda: get("/routing/metrics", both).status_code == 200)
    until(lambda: get("/routing/metrics", only).status_code == 200)
    printed = run(server, "projects", "delete", "trial", "--yes")
    assert "`trial` is deleted: 3 stored decisions" in printed
    assert "1 keys are revoked; 1 others" in printed
    until(lambda: get("/routing/metrics", everything).json()["total_decisions"] == 3, PATIENCE)
    until(lambda: get("/routing/metrics", only).status_code == 401, PATIENCE)
    until(lambda: get("/routing/metrics?project=trial", both).status_code == 403, PATIENCE)
    assert get("/routing/metrics", both).json()["total_decisions"] == 3
    assert "trial" not in run(server, "names", "list")
    assert "of-trial" not in get("/v1/history?range=1h&group_by=model", everything).text
    run(server, "verify")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("other", "stands for several"), ("*", "stands for several"), ("no such", "names list")],
)
def test_wrong_names_are_refused(server: Server, name: str, hint: str) -> None:
    """The reason is one line, and nothing changes."""
    words = ("projects", "delete", name, "--yes", "--database", server.database_url)
    done = routecast(*words, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_it_asks_before_it_deletes(server: Server) -> None:
    """Without an answer, nothing is deleted."""
    server.post([decision("trial", 1)])
    words = ("projects", "delete", "trial", "--database", server.database_url)
    done = routecast(*words, timeout=PATIENCE)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert server.http.get("/routing/metrics").json()["total_decisions"] == 1
