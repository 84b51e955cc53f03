"""A server is reloaded again and again while it is called: no call to it fails, and none to others."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.eras import ERAS, Session
from tests.evidence.hosts import fresh_host
from tests.support.changing_servers import ChangingServer
from tests.support.host_process import HostProcess

RELOADS = 10
CALLERS = 4
"""Of each era, on each server."""

STYLES = ("version_1", "version_2")


def run(asgi_server: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="gumcp-reload-") as folder:
        servers = [ChangingServer(Path(folder) / "src" / "servers", f"changing-{style}", style) for style in STYLES]
        beside = ChangingServer(servers[0].folder.parent, "beside", "version_1")
        for server in (*servers, beside):
            server.write("w0")
        with fresh_host(asgi_server, server_dirs=str(beside.folder.parent)) as host:
            return asyncio.run(_measure(host, asgi_server, servers, beside))


async def _measure(host: HostProcess, asgi_server: str, servers: list[ChangingServer], beside: ChangingServer) -> bool:
    seen: dict[str, Counter[str]] = {server.name: Counter() for server in (*servers, beside)}
    failures: list[str] = []
    is_over = asyncio.Event()

    async def keep_calling(server: ChangingServer, session: Session) -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            try:
                text, _ = await (session.call("wait", {"delay": 0.02}) if number % 5 == 0 else session.call("word", {}))
            except Exception as error:  # whatever it is, it is what this looks for
                failures.append(f"{server.name}: {error!r}")
                return
            seen[server.name][text] += 1

    sessions = [
        (server, ERAS[era](host.port, server.name, f"{era}-{number}:key"))
        for server in (*servers, beside)
        for era in ERAS
        for number in range(CALLERS)
    ]
    for _, session in sessions:
        await session.open()
    callers = [asyncio.create_task(keep_calling(server, session)) for server, session in sessions]
    for number in range(1, RELOADS + 1):
        for server in servers:
            server.write(f"w{number}")
        await asyncio.to_thread(_ask_for_reload, host, [server.name for server in servers])
        async with asyncio.timeout(20):
            while not failures and any(seen[server.name][f"w{number}"] < 20 for server in servers):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    is_over.set()
    await asyncio.gather(*callers)
    for _, session in sessions:
        session.close()
    total = sum(sum(counts.values()) for counts in seen.values())
    print(
        f"{asgi_server}: {RELOADS} reloads of {len(servers)} servers under {len(sessions)} callers of all eras: "
        f"{total} calls, {sum(seen[beside.name].values())} of them to another server, {len(failures)} failed"
    )
    for failure in failures[:5]:
        print(f"  {failure}")
    return not failures and all(len(seen[server.name]) == RELOADS + 1 for server in servers)


def _ask_for_reload(host: HostProcess, names: list[str]) -> None:
    """What the admin's action does."""
    with closing(sqlite3.connect(host.data_dir / "gumcp.sqlite3", timeout=10)) as database, database:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        for name in names:
            database.execute("UPDATE records_serverrecord SET reload_requested_at = ? WHERE name = ?", (now, name))
