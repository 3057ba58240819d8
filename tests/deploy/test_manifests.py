"""Compose, Kubernetes and systemd files: their own tools accept them, and they fit the code."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from routecast.server.config import Settings
from routecast.server.run import STOP_GRACE_SECONDS
from routecast.server.services import DRAIN_SECONDS, STREAMS_CLOSE_SECONDS
from tests.support.needs import skip_without
from tests.support.nginx import Nginx

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
PASSWORD = {"POSTGRES_PASSWORD": "of-a-test"}
# The longest time that a node takes to stop, in seconds, with a reserve for its engines.
STOP_SECONDS = STREAMS_CLOSE_SECONDS + STOP_GRACE_SECONDS + DRAIN_SECONDS + 4

# `make deploy-tools` installs the others.
HOW_TO_GET = {
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "systemd-analyze": "apt install systemd",
}


def tool(name: str) -> str:
    """Return a program's path; skip the test if it is not installed."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if (path := shutil.which(name, path=places)) is None:
        skip_without(name, HOW_TO_GET.get(name, "make deploy-tools"))
    return path


def run(
    *command: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    words = [str(word) for word in command]
    env = {**os.environ, **(env or {})}
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=env)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """`compose.yaml` as Docker Compose reads it."""
    command = [tool("docker-compose"), "-f", str(DEPLOY / "compose.yaml")]
    read = run(*command, "config", "--format", "json", env=PASSWORD)
    assert read.returncode == 0, read.stderr
    assert "level=warning" not in read.stderr
    project: dict[str, Any] = json.loads(read.stdout)
    return project


def built(name: str) -> list[dict[str, Any]]:
    """Return the objects of a kustomization."""
    made = run(tool("kubectl"), "kustomize", KUBERNETES / name)
    assert made.returncode == 0, made.stderr
    return [*yaml.safe_load_all(made.stdout)]


def test_settings_have_names_that_exist() -> None:
    """Every ROUTECAST_ variable in `deploy/` is a setting, or one that only compose reads."""
    known = {f"ROUTECAST_{name.upper()}" for name in Settings.model_fields}
    for path in filter(Path.is_file, DEPLOY.rglob("*")):
        named = set(re.findall(r"ROUTECAST_[A-Z_]+", path.read_text("utf-8")))
        assert named <= known | {"ROUTECAST_HTTP_PORT"}, path.name


def test_the_dockerfile_is_valid() -> None:
    """Hadolint reports nothing."""
    found = run(tool("hadolint"), DEPLOY / "Dockerfile")
    assert found.returncode == 0, found.stdout


def test_compose_asks_for_a_password() -> None:
    """A default password would be known to everyone."""
    command = [tool("docker-compose"), "--env-file", "/dev/null"]
    found = run(*command, "-f", DEPLOY / "compose.yaml", "config", "--quiet")
    assert found.returncode != 0
    assert "set it in deploy/.env" in found.stderr


def test_nodes_of_compose_have_time_to_stop(compose: dict[str, Any]) -> None:
    """They are killed after the longest time that they need."""
    for name in ("node-1", "node-2"):
        grace = compose["services"][name]["stop_grace_period"]
        assert int(grace.removesuffix("s")) > STOP_SECONDS


def test_nginx_of_compose_knows_its_nodes(compose: dict[str, Any], tmp_path: Path) -> None:
    """nginx has the addresses of the nodes, and nodes trust nginx only."""
    services = compose["services"]
    nodes = [services[name] for name in ("node-1", "node-2")]
    addresses = [node["networks"]["front"]["ipv4_address"] for node in nodes]
    listed = compose["configs"]["nodes"]["content"]
    assert re.findall(r"server (\S+):8000 ", listed) == addresses
    trusted = {node["environment"]["ROUTECAST_TRUSTED_PROXIES"] for node in nodes}
    assert trusted == {services["nginx"]["networks"]["front"]["ipv4_address"]}
    nginx = Nginx(tmp_path / "nginx", [8000])
    (tmp_path / "nginx/nodes.conf").write_text(listed)
    found = nginx.test()
    assert found.returncode == 0, found.stderr


def test_compose_can_be_reached_from_this_machine_only(compose: dict[str, Any]) -> None:
    """Only nginx is published, on the loopback, because nodes have no authentication yet."""
    published = {
        name: [port["host_ip"] for port in service["ports"]]
        for name, service in compose["services"].items()
        if "ports" in service
    }
    assert published == {"nginx": ["127.0.0.1"]}
    internal = {name for name, network in compose["networks"].items() if network.get("internal")}
    for name, service in compose["services"].items():
        if name != "nginx":
            assert set(service["networks"]) <= internal, name


def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    """Systemd reports no errors, and little exposure."""
    systemd = tool("systemd-analyze")
    unit = (DEPLOY / "routecast.service").read_text("utf-8")
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > STOP_SECONDS
    copy = tmp_path / "routecast.service"
    # `verify` also checks that the program exists.
    copy.write_text(unit.replace("/opt/routecast/bin/routecast", sys.executable))
    found = run(systemd, "verify", copy)
    assert found.returncode == 0, found.stderr
    assert "routecast" not in found.stderr, found.stderr  # it may warn about other units
    found = run(systemd, "security", "--offline=yes", "--threshold=20", copy)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", ["base", "streams"])
def test_kubernetes_objects_are_valid(tmp_path: Path, name: str) -> None:
    """Each has the fields of its schema, and no others."""
    validate = tool("kubernetes-validate")
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(built(name)))
    found = run(validate, "--strict", path)
    assert found.returncode == 0, found.stdout + found.stderr


def test_pods_have_time_to_stop() -> None:
    """The time includes that of balancers to notice the stop."""
    pods = _pods(built("streams"))
    assert len(pods) == 2
    for pod in pods.values():
        (container,) = pod["containers"]
        first = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > first + STOP_SECONDS


def test_probes_ask_for_the_work_of_a_pod() -> None:
    """A node must accept decisions to be ready; one that only streams never does."""
    pods = _pods(built("streams"))
    probes = {
        name: [pod["containers"][0][f"{kind}Probe"]["httpGet"]["path"] for kind in _PROBES]
        for name, pod in pods.items()
    }
    assert probes == {
        "routecast": ["/ready", "/health"],
        "routecast-stream": ["/health", "/health"],
    }


def test_services_autoscalers_and_budgets_find_their_pods() -> None:
    """Each label selector, and each reference by name, finds exactly one deployment."""
    objects = built("streams")
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in objects
        if each["kind"] == "Deployment"
    }
    for each in objects:
        spec, name = each.get("spec", {}), each["metadata"]["name"]
        if each["kind"] == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] == name
        elif each["kind"] in ("Service", "PodDisruptionBudget"):
            selector = spec["selector"].get("matchLabels", spec["selector"])
            found = [pod for pod, its in labels.items() if selector.items() <= its.items()]
            assert found == [name], each["kind"]


_PROBES = ("readiness", "liveness")


def _pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in objects
        if each["kind"] == "Deployment"
    }
