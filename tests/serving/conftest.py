from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.serving_process import Host, running_host

HURRIED: dict[str, Any] = {
    "limits": {
        "body_bytes": 100_000,
        "header_timeout_seconds": 1.0,
        "body_grace_seconds": 0.6,
        "body_bytes_per_second": 1000,
        "body_timeout_seconds": 2.0,
        "keep_alive_seconds": 1.2,
        "slow_reader_seconds": 1.0,
    },
    "server": {"application_close_timeout": 1},
}
"""A host whose clients and applications have to be quick."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host in a hurry, shared by the tests of a module."""
    with running_host(tmp_path_factory.mktemp("host") / "log", **HURRIED) as host:
        yield host
