"""Turning tracing on and off."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from django.test import override_settings
from opentelemetry import trace

from gateway.conf import GatewaySettings, SettingsError, read_settings
from gateway.tracing.providing import exporting_provider
from gateway.tracing.starting import tracing_from_settings
from tests.support.traces import KeptTraces


def test_host_traces_nothing_unless_it_is_told_to() -> None:
    assert tracing_from_settings() is None


def test_setting_without_the_packages_stops_the_start_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def find_spec(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(SettingsError) as refused:
        read_settings(GatewaySettings, {"GUMCP_TRACING": "true"}, tmp_path / ".env")
    assert str(refused.value) == (
        "GUMCP_TRACING is on, and its packages are not installed: pip install 'gumcp[tracing]'"
    )
    assert read_settings(GatewaySettings, {"GUMCP_TRACING": "false"}, tmp_path / ".env").GUMCP_TRACING is False


def test_set_up_of_somebody_else_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    traces = KeptTraces()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: traces.provider)
    with override_settings(GUMCP_TRACING=True):
        tracing = tracing_from_settings()
    assert tracing is not None
    assert "set up before the host started" in caplog.text
    with tracing.middleware("server", str, str)._tracer.start_as_current_span("seen"):
        pass
    assert [span.name for span in traces.spans] == ["seen"]


def test_wrong_variable_of_opentelemetry_stops_the_start_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with (
        override_settings(GUMCP_TRACING=True),
        pytest.raises(SettingsError, match=r"is wrong: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be .* but got many"),
    ):
        tracing_from_settings()


@pytest.mark.parametrize(
    ("variables", "name", "sampler"),
    [
        ({}, "gumcp", "ParentBased"),
        ({"OTEL_SERVICE_NAME": "named", "OTEL_TRACES_SAMPLER": "always_off"}, "named", "AlwaysOffSampler"),
        (
            {
                "OTEL_RESOURCE_ATTRIBUTES": "service.name=attributed",
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "0.25",
            },
            "attributed",
            "TraceIdRatioBased{0.25}",
        ),
    ],
)
def test_variables_of_opentelemetry_are_followed(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str, sampler: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    provider, stop = exporting_provider(10)
    assert stop(5)
    assert provider.resource.attributes["service.name"] == name
    assert sampler in provider.sampler.get_description()
