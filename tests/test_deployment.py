"""The files for containers, systemd, Prometheus and Grafana name only what the code has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, generate_latest

from gateway import metrics
from gateway.conf import GatewaySettings, conf
from gateway.http.page_metrics import CountAfterMiddleware, CountBeforeMiddleware
from tests.support.processes import ROOT

DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
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
    "text", [DOCKERFILE, UNIT, (ROOT / "compose.yaml").read_text()], ids=["Dockerfile", "gumcp.service", "compose.yaml"]
)
def test_settings_of_deployments_exist(text: str) -> None:
    found = set(re.findall(r"\b(?:GUMCP_[A-Z_]+|DATABASE_URL)\b", text))
    assert found
    assert found <= set(GatewaySettings.declared())


def test_hosts_get_more_time_to_stop_than_they_take() -> None:
    needed = conf.shutdown_grace_seconds + 2
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[1]) > needed  # type: ignore[index]
    assert int(COMPOSE["services"]["gumcp"]["stop_grace_period"].removesuffix("s")) > needed


def test_image_is_built_from_what_the_build_may_see() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_container_needs_keys_and_runs_as_nobody_special() -> None:
    assert "GUMCP_AUTH=keys" in DOCKERFILE
    assert re.search(r"^USER 10001$", DOCKERFILE, re.MULTILINE)
    assert COMPOSE["services"]["gumcp"]["read_only"] is True
