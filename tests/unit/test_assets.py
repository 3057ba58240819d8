"""Tests of the hashed addresses of the dashboard's files."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from routecast.edge.http.assets import Assets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page with a script, a style and a folder."""
    (tmp_path / "index.html").write_text("<html>")
    (tmp_path / "main.js").write_text('import "./client/a.js";')
    (tmp_path / "theme.css").write_text("body {}")
    (tmp_path / "client").mkdir()
    (tmp_path / "client/a.js").write_text("1;")
    return tmp_path


def test_addresses_change_with_any_file(folder: Path) -> None:
    """The hash changes with any file's content or name; files that are no assets do not count."""
    first = Assets(folder)
    assert first.addresses == [
        f"dashboard/{first.version}/{name}" for name in ("client/a.js", "main.js", "theme.css")
    ]
    versions = {first.version}
    for change in (
        lambda: (folder / "client/a.js").write_text("2;"),
        lambda: (folder / "client/a.js").rename(folder / "client/b.js"),
        lambda: (folder / "more.svg").write_text("<svg/>"),
    ):
        change()
        versions.add(Assets(folder).version)
    assert len(versions) == 4
    (folder / "notes.txt").write_text("nothing")
    assert Assets(folder).version in versions


def client_of(assets: Assets) -> TestClient:
    return TestClient(Starlette(routes=[Route("/dashboard/{path:path}", assets.answer)]))


def test_files_are_read_at_the_start(folder: Path) -> None:
    """A running server sends the files of its start, although a package on disk was upgraded."""
    assets = Assets(folder)
    client = client_of(assets)
    (folder / "theme.css").write_text("other {}")
    (folder / "main.js").unlink()
    for base in (assets.base, "dashboard"):
        assert client.get(f"/{base}/theme.css").text == "body {}"
        assert client.get(f"/{base}/main.js").status_code == 200


def test_only_addresses_with_a_hash_are_cached(folder: Path) -> None:
    """Others are asked for each time, and answered with 304 if they are unchanged."""
    assets = Assets(folder)
    client = client_of(assets)
    answer = client.get(f"/{assets.base}/client/a.js")
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/javascript")
    answer = client.get("/dashboard/client/a.js")
    assert answer.headers["cache-control"] == "no-cache"
    tag = answer.headers["etag"]
    for tags in (tag, f'W/{tag}, "other"'):
        again = client.get("/dashboard/client/a.js", headers={"If-None-Match": tags})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/dashboard/main.js", headers={"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("0123456789abcdef/main.js", "{version}/none.js", "{version}", "{version}/", ""),
        *("index.html", "{version}/index.html", "client", "client/", "{version}/{version}/main.js"),
        *("{version}/../main.js", "..%2fmain.js", "{version}/client/../main.js", "/main.js"),
    ],
)
def test_other_addresses_are_not_found(folder: Path, path: str) -> None:
    """A 404 is not cached, because another node may have the file."""
    assets = Assets(folder)
    path = path.replace("{version}", assets.version)
    answer = client_of(assets).get(f"/dashboard/{path}".replace("..", "%2e%2e"))
    assert answer.status_code == 404
    assert answer.headers["cache-control"] == "no-store"
