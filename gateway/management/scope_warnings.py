"""What a key's scope names that is not there: servers by their folders, tools by asking the server in memory.

Only a warning: a key may be made before its server is.
"""

import asyncio
import difflib
from collections.abc import Collection, Iterator, Mapping

from django.core.management.base import CommandError

from gateway.access.identity import Identity
from gateway.catalog.definitions import LoadFailure
from gateway.catalog.discovery import load_server, server_folders
from gateway.conf import conf
from gateway.exceptions import GatewayError
from gateway.management.answers import Respondent
from gateway.management.client_options import HANDSHAKE
from gateway.management.in_memory_client import all_tools, connected
from gateway.management.single_server import OneServer
from gateway.records.models import ServerRecord


def scope_warnings(scope: Mapping[str, Collection[str] | None], user_id: str) -> Iterator[str]:
    """Yield a sentence for every server and tool of a scope that is not found."""
    names = {folder.name for server_dir in conf.server_dirs for folder in server_folders(server_dir)}
    # Those of a running host too: not every server is a folder.
    names |= set(ServerRecord.objects.filter(status=ServerRecord.Status.LOADED).values_list("name", flat=True))
    for server, tools in scope.items():
        if server not in names:
            yield f"There is no server called {server} at present.{_suggestion(server, names)}"
        elif tools:
            try:
                known = _tools_of(server, user_id)
            except (CommandError, GatewayError):
                yield f"The tools of {server} could not be listed, so they were not checked."
                continue
            for tool in tools:
                if tool not in known:
                    yield f"{server} has no tool {tool} at present.{_suggestion(tool, known)}"


def _tools_of(server: str, user_id: str) -> list[str]:
    """Ask an instance of the server for its tools.

    Raises:
        CommandError: it did not load, or gave no list.
    """
    definition = load_server(server, conf.server_dirs, conf.load_timeout_seconds)
    if isinstance(definition, LoadFailure):
        raise CommandError(definition.reason)
    identity = Identity(user_id)

    async def list_tools() -> list[str]:
        async with (
            asyncio.timeout(conf.factory_timeout_seconds),
            connected(definition, identity, Respondent([]), HANDSHAKE) as client,
        ):
            return [tool.name for tool in await all_tools(client)]

    with OneServer(identity, shows_whole_tracebacks=False).running():
        return asyncio.run(list_tools())


def _suggestion(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f" Did you mean {close[0]}?" if close else ""
