"""Hosts under evidence: fresh ones, on the ASGI servers asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.eras import ERAS, Session
from tests.support.host_process import PLAIN_SERVERS, ROOT, HostProcess, manage, running_host

CENSUS_SERVERS = ROOT / "tests" / "servers" / "evidence"


@contextmanager
def fresh_host(asgi_server: str, **options: Any) -> Iterator[HostProcess]:
    """A host with a database of its own and, unless told otherwise, all fixture servers."""
    with tempfile.TemporaryDirectory(prefix="gumcp-evidence-") as folder:
        data_dir = Path(folder)
        done = manage("migrate", "--verbosity", "0", data_dir=data_dir)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        options.setdefault("server_dirs", f"{PLAIN_SERVERS}:{CENSUS_SERVERS}")
        with running_host(data_dir, None, asgi_server=asgi_server, **options) as host:
            yield host


async def open_session(host: HostProcess, server: str, key: str) -> Session:
    """An initialized HTTP+SSE session that checks every answer."""
    session = ERAS["sse"](host.port, server, key)
    await session.open()
    return session


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
