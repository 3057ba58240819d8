"""A PostgreSQL that is restored under nodes whose Redis still has the state before the restore."""

import asyncio
from pathlib import Path

from routecast.adapters.store.postgres.backup import PostgresBackups
from routecast.ports import Checked
from tests.support.command import routecast
from tests.support.postgres import Postgres, dump, put_back
from tests.support.redis import RedisServer
from tests.support.server import Server
from tests.support.waiting import until


def silent(_: Checked) -> None:
    """Ignore progress."""


def send(server: Server, first: int, count: int) -> None:
    one = {"strategy": "s", "provider": "p", "cost": 0.001}
    batch = [{**one, "id": f"d{n}"} for n in range(first, first + count)]
    server.http.post("/v1/decisions", json=batch).raise_for_status()


def total(server: Server) -> int:
    shown: int = server.http.get("/routing/metrics").json()["total_decisions"]
    return shown


def test_restored_totals_are_shown_whatever_redis_has(postgres: Postgres, tmp_path: Path) -> None:
    """Redis still has positions of the earlier epoch, and they are not used."""
    url = postgres.create()
    with RedisServer(tmp_path / "redis") as redis:
        nodes = [
            Server(tmp_path / name, database_url=url, redis_url=redis.url) for name in ("a", "b")
        ]
        for node in nodes:
            node.start()
        send(nodes[0], 0, 30)
        asyncio.run(PostgresBackups(url).backup(tmp_path / "backup", silent))
        send(nodes[1], 30, 20)
        until(lambda: [total(node) for node in nodes] == [50, 50])
        for node in nodes:
            assert node.stop() == 0
        done = asyncio.run(PostgresBackups(url).restore(tmp_path / "backup", silent))
        assert done.decisions == 30
        for node in nodes:
            node.start()
        until(lambda: [total(node) for node in nodes] == [30, 30])
        send(nodes[0], 20, 20)  # of which ten were in the backup
        until(lambda: [total(node) for node in nodes] == [40, 40])
        for node in nodes:
            assert node.stop() == 0


def test_nodes_notice_that_other_tools_put_back_an_older_state(
    postgres: Postgres, tmp_path: Path
) -> None:
    """They notice it at the next commit, because later commits reuse the lost numbers."""
    url = postgres.create()
    with RedisServer(tmp_path / "redis") as redis:
        nodes = [
            Server(tmp_path / name, database_url=url, redis_url=redis.url) for name in ("a", "b")
        ]
        for node in nodes:
            node.start()
        send(nodes[0], 0, 30)
        before = dump(url)
        for first in range(30, 50, 5):
            send(nodes[first % 2], first, 5)
        until(lambda: [total(node) for node in nodes] == [50, 50])
        put_back(url, before)
        for first in range(100, 170):  # more commits than were lost
            send(nodes[first % 2], first, 1)
        until(lambda: [total(node) for node in nodes] == [100, 100])
        for node in nodes:
            assert node.stop() == 0
        logs = [node.log.read_text() for node in nodes]
    assert any("The database went back from seq 5 to " in log for log in logs)
    done = routecast("verify", "--database", url)
    assert done.returncode == 0, done


def test_commands_back_up_and_restore(postgres: Postgres, tmp_path: Path) -> None:
    """`backup` works beside a node; `restore` refuses a database in use."""
    url = postgres.create()
    backup = ["backup", str(tmp_path / "it"), "--database", url]
    restore = ["restore", str(tmp_path / "it"), "--database", url]
    with Server(tmp_path / "node", database_url=url) as node:
        send(node, 0, 30)
        done = routecast(*backup)
        assert (done.returncode, "Backed up 30 decisions" in done.stdout) == (0, True), done
        send(node, 30, 20)
        done = routecast(*restore)
        assert done.returncode == 1
        assert "stop all nodes" in done.stderr
        assert total(node) == 50
    done = routecast(*restore)
    assert (done.returncode, "schema routecast_replaced_" in done.stdout) == (0, True), done
    with Server(tmp_path / "node", database_url=url) as node:
        assert total(node) == 30
    done = routecast("verify", "--database", url)
    assert done.returncode == 0, done
    assert "every sum that holds it" in " ".join(done.stdout.split())
