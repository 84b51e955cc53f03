"""The files for containers, Kubernetes, systemd, Prometheus and Grafana name only what the code has."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import REGISTRY, generate_latest

from gateway import __version__, metrics
from gateway.conf import GatewaySettings, conf, read_settings
from gateway.endpoints.health import PATHS
from gateway.http.page_metrics import CountAfterMiddleware, CountBeforeMiddleware
from gateway.serving.limits import ServingEvent
from tests.support.processes import ROOT

DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
HOSTS = [name for name, service in SERVICES.items() if "build" in service]
CHART = DEPLOY / "helm" / "gumcp"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
TEMPLATES = "".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))
UNIT = (DEPLOY / "gumcp.service").read_text()
RULES: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
MONITORING = (ROOT / "docs" / "monitoring.md").read_text()
EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]

OF_PROMETHEUS = {"up", "process_resident_memory_bytes"}
"""Names of Prometheus itself and of its client library."""


def exported() -> dict[str, set[str]]:
    """Names of the host's time series, each with its labels."""
    collectors = [
        metric for metric in vars(metrics).values() if hasattr(metric, "_labelnames") and hasattr(metric, "describe")
    ]
    host = metrics.HostCollector([], _NoInstances(), [])
    names: dict[str, set[str]] = {}
    for metric in collectors:
        for family in metric.describe():
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
            names |= {f"{family.name}{end}": {*metric._labelnames, "le"} for end in endings}
    names |= {family.name: set(family._labelnames) for family in host.collect()}
    return names


class _NoInstances:
    calls = ()

    def count_by_server(self) -> dict[str, int]:
        return {}


def named(expression: str) -> Iterator[str]:
    yield from re.findall(r"\b(?:gumcp|process|django)_\w+|\bup\b", re.sub(r'"[^"]*"', '""', expression))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_of_alerts_and_dashboard_exist(expression: str) -> None:
    known = exported()
    assert list(named(expression))
    for name in named(expression):
        assert name in OF_PROMETHEUS or name in known, name


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_labels_of_alerts_and_dashboard_exist(expression: str) -> None:
    known = exported()
    labels = set(re.findall(r"(\w+)\s*[=!]~?\s*\"", expression))
    labels |= {name for group in re.findall(r"by \(([^)]*)\)", expression) for name in re.split(r",\s*", group)}
    of_metrics = set().union(*(known.get(name, set()) for name in named(expression)))
    assert labels <= of_metrics | {"instance", "job"}


def test_refusal_reasons_of_alerts_exist() -> None:
    reasons = {
        reason
        for rule in RULES
        for found in re.findall(r'reason=~"([^"]*)"', rule["expr"])
        for reason in found.split("|")
    }
    assert reasons
    assert reasons <= set(metrics.REFUSAL_REASONS)


@pytest.mark.parametrize(
    ("after", "reasons"),
    [
        ("## Reasons of refusals", metrics.REFUSAL_REASONS),
        ("`gumcp_connection_faults_total{reason}` counts it", get_args(ServingEvent)),
    ],
)
def test_every_reason_is_explained_once(after: str, reasons: tuple[str, ...]) -> None:
    text = MONITORING.split(after)[1]
    table = re.search(r"\n\n(\|.*?)\n\n", text, re.DOTALL)
    assert table
    assert re.findall(r"^\| `(\w+)`", table[1], re.MULTILINE) == sorted(reasons)


def test_every_alert_has_its_section_in_the_runbook() -> None:
    for rule in RULES:
        assert f"\n### {rule['alert']}\n" in MONITORING
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
    assert len(re.findall(r"\n### ", MONITORING)) == len(RULES)


def test_every_metric_of_the_host_is_explained() -> None:
    told = set(re.findall(r"^\| `(gumcp_\w+)", MONITORING, re.MULTILINE))
    counted = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported()}
    assert told == counted
    assert {metric.name for metric in REGISTRY.collect() if metric.name.startswith("gumcp_")} <= {
        name.removesuffix("_total") for name in told
    }


def test_every_metric_of_the_pages_is_explained_and_no_other_is_exported() -> None:
    told = set(re.findall(r"^\| `(django_\w+)", MONITORING, re.MULTILINE))
    middleware = CountBeforeMiddleware(lambda request: None)
    assert middleware.metrics is CountAfterMiddleware(lambda request: None).metrics
    exported = {
        family.name + "_total" * (family.type == "counter")
        for family in REGISTRY.collect()
        if family.name.startswith("django_")
    }
    assert exported == told


def test_no_series_says_when_another_began() -> None:
    assert b"_created" not in generate_latest(REGISTRY)


@pytest.mark.parametrize(
    "text",
    [DOCKERFILE, UNIT, (ROOT / "compose.yaml").read_text(), TEMPLATES, (CHART / "values.yaml").read_text()],
    ids=["Dockerfile", "gumcp.service", "compose.yaml", "templates", "values.yaml"],
)
def test_settings_of_deployments_exist(text: str) -> None:
    found = set(re.findall(r"\b(?:GUMCP_[A-Z_]+|DATABASE_URL)\b", text))
    assert found
    assert found <= set(GatewaySettings.declared())


def test_hosts_get_more_time_to_stop_than_they_take() -> None:
    needed = conf.shutdown_grace_seconds + 2
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[1]) > needed  # type: ignore[index]
    for name in HOSTS:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > needed
    margin = int(
        re.search(r"terminationGracePeriodSeconds: {{ add .Values.shutdownGraceSeconds (\d+) }}", TEMPLATES)[1]
    )  # type: ignore[index]
    before = int(re.search(r'preStop: .*\[sleep, "(\d+)"\]', TEMPLATES)[1])  # type: ignore[index]
    assert margin > before + 2
    assert VALUES["shutdownGraceSeconds"] == conf.shutdown_grace_seconds


def test_image_is_built_from_what_the_build_may_see() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def of_dockerfile() -> dict[str, str]:
    """The environment of the image."""
    block = re.search(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    assert block
    return dict(word.split("=", 1) for word in block[1].replace("\\\n", " ").split())


def test_containers_need_keys_and_run_as_nobody_special() -> None:
    assert of_dockerfile()["GUMCP_AUTH"] == "keys"
    assert re.search(r"^USER 10001$", DOCKERFILE, re.MULTILINE)
    for name in HOSTS:
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert TEMPLATES.count("runAsUser: 10001") == 1
    assert "readOnlyRootFilesystem: true" in TEMPLATES
    assert "capabilities: {drop: [ALL]}" in TEMPLATES


def test_images_and_chart_are_of_this_version() -> None:
    assert {SERVICES[name]["image"] for name in HOSTS} == {f"gumcp:{__version__}"}
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


# -- compose.yaml


@pytest.fixture(scope="module")
def made_secrets(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that make-secrets.sh makes."""
    root = tmp_path_factory.mktemp("checkout")
    script = root / "docs" / "deploy" / "compose" / "make-secrets.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(DEPLOY / "compose" / script.name, script)
    subprocess.run(["sh", script], check=True, capture_output=True, timeout=30)
    again = subprocess.run(["sh", script], capture_output=True, timeout=30, check=False)
    assert again.returncode == 1
    return root / "secrets"


def settings_of(name: str, made_secrets: Path) -> GatewaySettings:
    """The settings with which a host of compose.yaml starts. Raises `SettingsError` if it would not."""
    service = SERVICES[name]
    environ = of_dockerfile()
    for file in service.get("env_file", []):
        lines = (made_secrets.parent / file).read_text().splitlines()
        environ |= dict(line.split("=", 1) for line in lines)
    environ |= {
        variable: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for variable, value in service["environment"].items()
    }
    return GatewaySettings(read_settings(GatewaySettings, environ, made_secrets / "no.env"))


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_of_compose_start_with_their_settings(made_secrets: Path, name: str) -> None:
    settings = settings_of(name, made_secrets)
    assert settings.auth_mode == "keys"
    assert settings.host == "0.0.0.0"
    assert bool(settings.peer_address) == (name != "gumcp")
    if settings.peer_address:
        assert settings.database["ENGINE"] == "django.db.backends.postgresql"
        assert settings.secret_key
        assert settings.redis_url


def test_nodes_of_compose_know_each_other_and_nginx_by_their_addresses(made_secrets: Path) -> None:
    nodes = [settings_of(name, made_secrets) for name in HOSTS if name != "gumcp"]
    addresses = [SERVICES[name]["networks"]["nodes"]["ipv4_address"] for name in HOSTS if name != "gumcp"]
    assert [node.peer_address.partition(":")[0] for node in nodes] == addresses
    nginx = SERVICES["nginx"]["networks"]["nodes"]["ipv4_address"]
    assert [node.trusted_proxies for node in nodes] == [[nginx], [nginx]]
    subnet = ipaddress.ip_network(COMPOSE["networks"]["nodes"]["ipam"]["config"][0]["subnet"])
    assert all(ipaddress.ip_address(address) in subnet for address in [*addresses, nginx])


def test_nginx_of_compose_calls_the_nodes_as_the_ring_does(processes: None, made_secrets: Path) -> None:
    nodes = [settings_of(name, made_secrets) for name in HOSTS if name != "gumcp"]
    edit = re.search(r"sed '(.*)' /etc/gumcp/nginx.conf", SERVICES["nginx"]["command"][2])
    assert edit
    balancer = ROOT / "docs" / "balancers" / "nginx.conf"
    made = subprocess.run(["sed", edit[1], balancer], capture_output=True, text=True, check=True, timeout=30).stdout
    named = re.findall(r"^    server (\S+) max_fails=0;$", made, re.MULTILINE)
    assert named == [f"{node.peer_address.partition(':')[0]}:{node.port}" for node in nodes]


def test_no_secret_is_in_compose_and_the_made_ones_are_private(made_secrets: Path) -> None:
    declared = GatewaySettings.declared()
    for name in HOSTS:
        assert not [it for it in SERVICES[name]["environment"] if declared[it].is_secret]
    assert stat.S_IMODE(made_secrets.stat().st_mode) == 0o700
    assert {f"secrets/{path.name}" for path in made_secrets.iterdir()} == {
        *(secret["file"] for secret in COMPOSE["secrets"].values()),
        *(file for name in HOSTS for file in SERVICES[name].get("env_file", [])),
    }
    password = (made_secrets / "postgres_password").read_text()
    assert f":{password}@postgres:" in (made_secrets / "gumcp.env").read_text()
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_files_that_compose_mounts_exist() -> None:
    mounted = {
        volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", []) if "./" in volume
    }
    assert len(mounted) > 5
    assert [path for path in mounted if not (ROOT / path).exists()] == []
    named = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])} - mounted
    assert named == set(COMPOSE["volumes"])


def test_prometheus_of_compose_asks_nodes_that_answer_to_it(made_secrets: Path) -> None:
    targets = yaml.safe_load((DEPLOY / "compose" / "targets.yml").read_text())[0]["targets"]
    assert {target.partition(":")[0] for target in targets} == {name for name in HOSTS if name != "gumcp"}
    for target in targets:
        name, _, port = target.partition(":")
        settings = settings_of(name, made_secrets)
        assert name in settings.allowed_hosts
        assert int(port) == settings.metrics_port


# -- The Helm chart (tests/evidence/chart.py renders it)


def test_settings_of_the_chart_are_valid() -> None:
    secrets_named = set(re.findall(r'"(DATABASE_URL|GUMCP_\w+)" \.Values\.secrets', TEMPLATES))
    assert secrets_named == {"DATABASE_URL", "GUMCP_REDIS_URL", "GUMCP_SECRET_KEY"}
    assert all(GatewaySettings.declared()[name].is_secret for name in secrets_named)
    for name, value in VALUES["settings"].items():
        GatewaySettings.declared()[name].kind.parse(value)


def test_chart_names_the_ports_paths_and_folders_of_the_image() -> None:
    assert set(re.findall(r"httpGet: {path: (\S+),", TEMPLATES)) <= PATHS
    ports = dict(re.findall(r"{name: (\w+), containerPort: (\d+)}", TEMPLATES))
    assert {ports["http"], ports["metrics"]} == set(re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)[1].split())  # type: ignore[index]
    assert f'"{{{{ .Values.peerHost }}}}:{ports["peers"]}"' in TEMPLATES
    mounted = dict(re.findall(r"{name: (\w+), mountPath: ([^,}]+)", TEMPLATES))
    image = of_dockerfile()
    assert mounted == {"data": image["GUMCP_DATA_DIR"], "servers": image["GUMCP_SERVER_DIRS"], "tmp": "/tmp"}


def test_every_value_of_the_chart_is_used_and_every_used_value_is_there() -> None:
    used = set(re.findall(r"\.Values\.(\w+)", TEMPLATES))
    assert used == set(VALUES)
    for section, key in re.findall(r"\.Values\.(\w+)\.(\w+)", TEMPLATES):
        assert key in VALUES[section]
