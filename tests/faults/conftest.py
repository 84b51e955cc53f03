"""Figures that fault tests record, printed after the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.figures import Record
from tests.support.host_process import HostProcess, StartHost

FIGURES = pytest.StashKey[list[tuple[str, str, str]]]()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Note a figure of this test: `record("time to exit", "1.2 s")`."""
    figures = request.config.stash.setdefault(FIGURES, [])
    return lambda what, figure: figures.append((request.node.name, what, str(figure)))


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def probed_host(start_host: StartHost, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    """A host with the pages of `tests.faults.probe`, on both ASGI servers."""
    options = getattr(request.module, "HOST_OPTIONS", {})
    with start_host(asgi_server=request.param, application="tests.faults.probe:application", **options) as host:
        yield host


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, [])
    if figures:
        terminalreporter.section("figures")
        for test, what, figure in figures:
            terminalreporter.write_line(f"{test}: {what}: {figure}")
