"""Hosts that run our Daphne around an application that misbehaves on request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.serving_process import HURRIED, Host, running_host


@pytest.fixture(autouse=True)
def starts_a_host(processes: None) -> None:
    """Mark all tests here: they start a host, by the fixture below or by themselves."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose limits are short, shared by the tests of a module."""
    with running_host(tmp_path_factory.mktemp("host") / "log", **HURRIED) as host:
        yield host
