"""The figures in all files of `deploy/`, in `docs/deploy.md` and in the server agree."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from routecast.edge.http.http_protocol import MAX_HEAD_BYTES
from routecast.protocol import MAX_BODY_BYTES, MAX_INTERVAL
from routecast.server.config import Settings
from routecast.server.run import STOP_GRACE_SECONDS
from routecast.server.services import DRAIN_SECONDS, STREAMS_CLOSE_SECONDS
from routecast.streaming.heartbeat import PING_SECONDS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes/base"
NGINX = (DEPLOY / "nginx/nginx.conf").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
UNIT = (DEPLOY / "routecast.service").read_text("utf-8")
DOCS = (ROOT / "docs/deploy.md").read_text("utf-8")
KIB, MIB = 2**10, 2**20
# A commit waits at most this number of seconds for its database (docs/deploy.md).
COMMIT_SECONDS = 30
# The default of nginx and its ingress controller.
CONTROLLER_KEEP_ALIVE = 60


def one(kind: str, file: str, name: str = "routecast") -> dict[str, Any]:
    """Return one object of the manifests."""
    objects = yaml.safe_load_all((KUBERNETES / file).read_text("utf-8"))
    (found,) = (
        each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name
    )
    assert isinstance(found, dict)
    return found


INGRESS = one("Ingress", "ingress.yaml")
ANNOTATIONS: dict[str, str] = INGRESS["metadata"]["annotations"]
SETTINGS: dict[str, str] = one("ConfigMap", "settings.yaml")["data"]


def directives(name: str, text: str = NGINX) -> list[str]:
    """Return the arguments of each directive with this name, in order."""
    return re.findall(rf"^\s*{re.escape(name)} ([^;]+);", text, re.MULTILINE)


def seconds(text: str) -> int:
    """Read a time such as `75s`."""
    assert re.fullmatch(r"\d+s", text), text
    return int(text[:-1])


def row(begins: str) -> list[str]:
    """Return the cells of a row of a table in docs/deploy.md, without the first one."""
    (found,) = re.findall(rf"^\| {re.escape(begins)} \|(.*)\|$", DOCS, re.MULTILINE)
    return [cell.strip() for cell in found.split("|")]


def figures(begins: str) -> list[int]:
    """Return the first number of each cell of such a row."""
    return [int(number[0]) for cell in row(begins) if (number := re.findall(r"\d+", cell))]


def upstreams() -> dict[str, str]:
    """Return the text of each `upstream` of nginx.conf, by name."""
    return dict(re.findall(r"^    upstream (\S+) \{(.*?)^    \}", NGINX, re.MULTILINE | re.DOTALL))


def locations() -> dict[str, str]:
    """Return the text of each `location` of nginx.conf, by its pattern."""
    found = re.findall(r"^ +location (.+?) \{(.*?)^        \}", NGINX, re.MULTILINE | re.DOTALL)
    return dict(found)


def test_the_proxy_closes_idle_connections_first() -> None:
    """Nodes close them later than nginx and the controller, so that no request is lost."""
    node = Settings.model_fields["keep_alive"].default
    (nginx,) = map(seconds, directives("keepalive_timeout", upstreams()["routecast"]))
    assert figures("an idle connection to a node is closed after") == [
        node,
        nginx,
        CONTROLLER_KEEP_ALIVE,
    ]
    assert max(nginx, CONTROLLER_KEEP_ALIVE) < node
    assert f"close idle connections to nodes before {node:g} s" in DOCS
    changed = re.compile(r"^[^#\n]*ROUTECAST_KEEP_ALIVE", re.MULTILINE)
    for path in filter(Path.is_file, DEPLOY.rglob("*")):
        assert not changed.search(path.read_text("utf-8")), f"{path.name} sets another time"


def test_connections_of_clients_are_kept_equally_long() -> None:
    """nginx keeps them as long as a node does, and announces the time."""
    (server,) = directives("keepalive_timeout", NGINX.split("    server {")[1])
    kept, announced = map(seconds, server.split())
    node = Settings.model_fields["keep_alive"].default
    assert kept == announced == node
    assert figures("an idle connection of a client is closed after") == [node, kept, kept]


def test_streams_have_connections_of_their_own() -> None:
    """Their upstream has no `keepalive`, and each location uses the right upstream."""
    kept = {name: bool(directives("keepalive", text)) for name, text in upstreams().items()}
    assert kept == {"routecast": True, "routecast_streams": False}
    passed = {
        where: directives("proxy_pass", text)
        for where, text in locations().items()
        if where != "= /metrics"
    }
    streams = {"~ ^/ws/", "~ ^/sse/"}
    for where, to in passed.items():
        expected = "http://routecast_streams" if where in streams else "http://routecast"
        assert to == [expected], where


def test_proxies_allow_the_longest_silence_of_a_stream() -> None:
    """It is longer than the longest interval, and than the time between pings."""
    allowed = {
        seconds(ANNOTATIONS["nginx.org/proxy-read-timeout"]),
        seconds(ANNOTATIONS["nginx.org/proxy-send-timeout"]),
    }
    for where in ("~ ^/ws/", "~ ^/sse/"):
        allowed |= set(map(seconds, directives("proxy_read_timeout", locations()[where])))
    (silence,) = allowed
    assert silence > max(MAX_INTERVAL, PING_SECONDS)
    assert figures("longest silence of a stream") == [PING_SECONDS, silence, silence]


def test_proxies_and_nodes_have_equal_limits_of_requests() -> None:
    """A proxy accepts the bodies that a node accepts, and no head that a node would refuse."""
    bodies = directives("client_max_body_size")
    assert sorted(bodies) == ["1", "1", "16m"]  # 1 byte for streams
    assert ANNOTATIONS["nginx.org/client-max-body-size"] == "16m"
    assert MAX_BODY_BYTES == 16 * MIB
    assert figures("largest body") == [16] * 3
    count, size = directives("large_client_header_buffers")[0].split()
    head = int(count) * int(size.removesuffix("k")) * KIB
    # One KiB is for the first buffer, and the other for the fields that nginx adds.
    assert head + 2 * KIB < MAX_HEAD_BYTES
    assert figures("largest head of a request")[:2] == [MAX_HEAD_BYTES // KIB, head // KIB]


def test_proxies_and_nodes_allow_equal_times_for_a_head() -> None:
    """The documented times are those of nginx and of a node."""
    (head,) = map(seconds, directives("client_header_timeout"))
    assert figures("a request's head must arrive within")[:2] == [10, head]


def test_old_workers_of_nginx_outlive_requests() -> None:
    """They end later than the longest commit, and before compose kills them."""
    (shutdown,) = map(seconds, directives("worker_shutdown_timeout"))
    assert shutdown > COMMIT_SECONDS
    (reading,) = map(seconds, directives("proxy_read_timeout", locations()["= /v1/decisions"]))
    assert reading > COMMIT_SECONDS
    assert seconds(COMPOSE["services"]["nginx"]["stop_grace_period"]) > shutdown
    assert figures("streams end after a reload within") == [shutdown, shutdown]
    controller = f"`worker-shutdown-timeout: {shutdown}s`"
    for text in (DOCS, (KUBERNETES / "ingress.yaml").read_text("utf-8")):
        assert controller in text
    assert f"after {shutdown} s, `worker_shutdown_timeout`" in DOCS


def test_times_to_stop_are_documented() -> None:
    """The page has a node's own longest time, and the time after which it is killed."""
    at_most = STREAMS_CLOSE_SECONDS + STOP_GRACE_SECONDS + DRAIN_SECONDS
    assert at_most <= 15
    (unit,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    node = seconds(COMPOSE["services"]["node-1"]["stop_grace_period"])
    pods = one("Deployment", "node.yaml")["spec"]["template"]["spec"]
    killed = pods["terminationGracePeriodSeconds"]
    assert int(unit) == node
    assert (
        f"That is 15 s at most; systemd and compose kill it after {node} s, "
        f"Kubernetes after {killed} s."
    ) in DOCS


def test_limits_of_open_files_are_equal() -> None:
    """They are those of nginx, of compose and of the systemd unit."""
    (nginx,) = directives("worker_rlimit_nofile")
    limits = {nginx, *re.findall(r"^LimitNOFILE=(\d+)$", UNIT, re.MULTILINE)}
    for name in ("node-1", "nginx"):
        limits |= {str(limit) for limit in COMPOSE["services"][name]["ulimits"]["nofile"].values()}
    assert len(limits) == 1
    assert f"{int(nginx):,}" in DOCS


def test_the_host_is_the_same_everywhere() -> None:
    """It is in the ingress, its certificate, the page's origin and the names of nginx."""
    hosts = {rule["host"] for rule in INGRESS["spec"]["rules"]}
    hosts |= {host for tls in INGRESS["spec"]["tls"] for host in tls["hosts"]}
    hosts.add(SETTINGS["ROUTECAST_ALLOWED_ORIGINS"].removeprefix("https://"))
    (host,) = hosts
    assert f'"~^{re.escape(host)}$"' in NGINX
    assert f"https://{host}" in (DEPLOY / "env.example").read_text("utf-8")


def test_only_streams_get_upgrades_from_the_ingress() -> None:
    """The controller enables upgrades for whole services, and this one has only streams."""
    (rule,) = INGRESS["spec"]["rules"]
    services = {path["path"]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert services == {"/ws": "routecast-stream", "/sse": "routecast-stream", "/": "routecast"}
    assert ANNOTATIONS["nginx.org/websocket-services"] == "routecast-stream"


@pytest.mark.parametrize("where", ["nginx", "ingress"])
def test_proxies_never_repeat_a_decision(where: str) -> None:
    """A 404 for a file is tried at another node; a POST that a node has read is not repeated."""
    rules = {
        "nginx": directives("proxy_next_upstream"),
        "ingress": [ANNOTATIONS["nginx.org/proxy-next-upstream"]],
    }[where]
    assert any("http_404" in rule for rule in rules)
    assert "non_idempotent" not in json.dumps(rules)


def test_compose_mounts_what_nginx_reads() -> None:
    """The configuration includes exactly the mounted files."""
    nginx = COMPOSE["services"]["nginx"]
    there = {volume.split(":")[1] for volume in nginx["volumes"]}
    there |= {config["target"] for config in nginx["configs"]}
    names = {name.replace("[f]", "f") for name in directives("include")}
    assert there == {f"/etc/nginx/routecast/{name}" for name in {*names, "nginx.conf"}}
