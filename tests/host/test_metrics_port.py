"""The metrics page: what Prometheus gets, and who gets nothing."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings
from prometheus_client.core import GaugeMetricFamily

from gateway.host.metrics_port import MetricsPage
from gateway.management.workers import serving_metrics
from tests.support.in_process import Exchange, Reply
from tests.support.processes import free_port


async def ask(target: str = "/metrics", **headers: Any) -> Reply:
    page = MetricsPage(["localhost", "127.0.0.1", "gumcp.internal"])
    exchange = Exchange(page, "GET", target, {name.replace("_", "-"): value for name, value in headers.items()}, "::1")
    exchange.send_body(b"")
    return await exchange.reply()


@pytest.mark.parametrize("host", ["localhost:9091", "127.0.0.1:9091", "10.1.2.3:9091", "[2001:db8::1]:9091"])
async def test_metrics_are_given_to_whoever_asks_by_an_own_name_or_an_address(host: str) -> None:
    reply = await ask(Host=host)
    assert reply.status == 200
    assert b"gumcp_active_connections" in reply.body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9091", "127.0.0.1.evil.example"])
async def test_foreign_name_is_refused(host: str) -> None:
    """DNS rebinding: a web page whose name was made to point here could read the metrics."""
    assert (await ask(Host=host)).status == 421


async def test_format_is_negotiated_and_headers_that_are_not_text_are_ignored() -> None:
    reply = await ask(Accept="application/openmetrics-text; version=1.0.0")
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
    assert (await ask(Accept="\xff")).status == 200


async def test_one_metric_can_be_asked_for() -> None:
    reply = await ask("/metrics?name[]=gumcp_load_failures_servers")
    assert b"gumcp_active_connections" not in reply.body


async def test_other_paths_are_404() -> None:
    assert (await ask("/favicon.ico")).status == 404


class OfTheWorkers:
    """Stands for the sums that a supervisor makes."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("sum_of_workers", "", value=2)


def test_metrics_of_several_workers_are_given_under_the_same_names_only() -> None:
    port = free_port()

    def get(host: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/metrics", headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    with override_settings(GUMCP_METRICS_PORT=port), serving_metrics(OfTheWorkers()):
        status, text = get(f"localhost:{port}")
        assert (status, b"sum_of_workers 2.0" in text, b"gumcp_active_connections" in text) == (200, True, False)
        assert get("evil.example")[0] == 421
