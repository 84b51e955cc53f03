"""Serves one server folder over standard input and output: the program of a folder in a process of its own.

Run by the host as `python -m gateway.isolated FOLDER`; who calls is read from descriptor 3, as a JSON object with
`user_id` and `api_key`. The folder's code is loaded as the host loads it, so every style of module works, version 1 of
the SDK included. A folder with an environment of its own is served by `upstreams/runner.py` instead.
"""

import asyncio
import json
import os
import sys
from io import TextIOWrapper
from pathlib import Path

import anyio
from django.conf import settings
from mcp.server.stdio import stdio_server

from gateway.conf import GatewaySettings, read_settings

IDENTITY_DESCRIPTOR = 3


def main(folder: Path) -> None:
    """Serve the folder until standard input ends. Exits with a sentence where it cannot be served."""
    # The defaults of all settings: nothing of the host's own configuration is for the folder's code.
    settings.configure(**vars(read_settings(GatewaySettings, {}, Path(os.devnull))))
    with os.fdopen(IDENTITY_DESCRIPTOR, encoding="utf-8") as file:
        caller = json.load(file)
    # Only the protocol may be written to standard output. What the folder's code prints goes to standard error.
    protocol_out = TextIOWrapper(os.fdopen(os.dup(1), "wb"), encoding="utf-8")
    os.dup2(2, 1)
    asyncio.run(_serve(folder, caller["user_id"], caller["api_key"], protocol_out))


async def _serve(folder: Path, user_id: str, api_key: str | None, protocol_out: TextIOWrapper) -> None:
    from gateway.catalog.definitions import LoadFailure
    from gateway.catalog.factories import make
    from gateway.catalog.loading import Project

    outcome = Project(folder.parent).load_code(folder)
    if isinstance(outcome, LoadFailure):
        print(outcome.traceback or outcome.reason, file=sys.stderr)
        sys.exit(outcome.reason)
    server, options = await make(outcome.style, user_id, api_key)
    async with stdio_server(stdout=anyio.wrap_file(protocol_out)) as (reader, writer):
        await server.run(reader, writer, options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
