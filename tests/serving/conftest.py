"""Hosts that run our Daphne around an application that misbehaves on request.

Modules that start one by themselves use the fixture `processes`. The others test parts of our Daphne in this process.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.serving_process import HURRIED, Host, running_host


@pytest.fixture(scope="module")
def host(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose limits are short, shared by the tests of a module."""
    with running_host(tmp_path_factory.mktemp("host") / "log", **HURRIED) as host:
        yield host
