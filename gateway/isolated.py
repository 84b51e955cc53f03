"""Serves one server folder over standard input and output: the program of a folder in a process of its own.

Run by the host as `python -m gateway.isolated FOLDER`; who calls is read from descriptor 3, as a JSON object with
`user_id` and `api_key`. The folder's code is loaded as the host loads it, so every style of module works, version 1 of
the SDK included. A folder with an environment of its own is served by `upstreams/runner.py` instead.
"""

import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import BinaryIO

from django.conf import settings
from mcp.server.runner import serve_loop

from gateway.conf import GatewaySettings, read_settings
from gateway.upstreams.pipes import MAX_LINE_BYTES, MessageReader, MessageWriter, open_reader, open_writer

IDENTITY_DESCRIPTOR = 3


def main(folder: Path) -> None:
    """Serve the folder until standard input ends. Exits with a sentence where it cannot be served."""
    # The defaults of all settings: nothing of the host's own configuration is for the folder's code.
    settings.configure(**vars(read_settings(GatewaySettings, {}, Path(os.devnull))))
    with os.fdopen(IDENTITY_DESCRIPTOR, encoding="utf-8") as file:
        caller = json.load(file)
    # Only the protocol may be written to standard output. What the folder's code prints goes to standard error.
    protocol_in, protocol_out = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    asyncio.run(_serve(folder, caller["user_id"], caller["api_key"], protocol_in, protocol_out))


async def _serve(
    folder: Path, user_id: str, api_key: str | None, protocol_in: BinaryIO, protocol_out: BinaryIO
) -> None:
    from gateway.catalog.definitions import LoadFailure
    from gateway.catalog.factories import make
    from gateway.catalog.loading import Project

    outcome = Project(folder.parent).load_code(folder)
    if isinstance(outcome, LoadFailure):
        print(outcome.traceback or outcome.reason, file=sys.stderr)
        sys.exit(outcome.reason)
    server, options = await make(outcome.style, user_id, api_key)
    lines, transport = await open_reader(protocol_in, MAX_LINE_BYTES)
    reader = MessageReader(lines, _complain, partial(_complain, "The host sent a line that is too long."))
    writer = MessageWriter(await open_writer(protocol_out))
    try:
        async with server.lifespan(server) as state:
            # Not `server.run`: the host always begins with `initialize`, and a loop for both eras costs more.
            await serve_loop(server, reader, writer, lifespan_state=state, init_options=options)
    finally:
        transport.close()


def _complain(text: str) -> None:
    print(f"gumcp: {text}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
