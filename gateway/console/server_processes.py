"""What a server's page shows of a command, a remote URL, or a folder in a process of its own.

The facts are in the memory of the process that answers. With several workers, each has the children of its own users.
"""

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from django.http import HttpRequest

from gateway.admin_cells import ago
from gateway.apps import GatewayConfig
from gateway.printable import printable
from gateway.records.models import ServerRecord

KINDS: Final = {"command": "Command", "process": "Process of its own", "remote": "Remote server"}


class Child(NamedTuple):
    """One child process or connection, as the page shows it."""

    user: str
    state: str
    pid: str
    starts: int
    started: str
    ending: str


def server_processes(request: HttpRequest, server: ServerRecord) -> dict[str, Any]:
    """The context of the page's section; empty for code in the host's process."""
    config = GatewayConfig.current()
    if config.host is None:
        return {}
    definition = next((found for found in config.registry if str(found.folder) == server.folder), None)
    if definition is None or definition.source is None:
        return {}
    source = definition.source
    shows_users = request.user.has_perm("records.view_sessionrecord")
    return {
        "source_kind": KINDS[source.kind],
        "source_summary": printable(source.summary),
        "source_condition": printable(source.condition()),
        "children": [
            Child(
                printable(state.user_id),
                "running" if state.is_open else "not running",
                "" if state.pid is None else str(state.pid),
                state.starts,
                "" if state.started_at is None else ago(datetime.fromtimestamp(state.started_at, UTC)),
                printable(state.ending),
            )
            for state in (source.states() if shows_users else [])
        ],
    }
