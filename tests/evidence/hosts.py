"""Hosts under evidence: fresh ones, on the ASGI servers asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.benchmarks.eras import ERAS, Session
from tests.support import host_process
from tests.support.host_process import HostProcess
from tests.support.processes import PLAIN_SERVERS, ROOT

CENSUS_SERVERS = ROOT / "tests" / "servers" / "evidence"


@contextmanager
def fresh_host(asgi_server: str, **options: Any) -> Iterator[HostProcess]:
    """Run a host with a database of its own and, unless told otherwise, all fixture servers."""
    options.setdefault("server_dirs", f"{PLAIN_SERVERS}:{CENSUS_SERVERS}")
    with host_process.fresh_host(asgi_server=asgi_server, **options) as host:
        yield host


async def open_session(host: HostProcess, server: str, key: str) -> Session:
    """An initialized HTTP+SSE session that checks every answer."""
    session = ERAS["sse"](host.port, server, key)
    await session.open()
    return session


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
