"""Serves one server folder with the packages of its own environment, whatever version of the MCP SDK is in there.

Executed as a script, `python runner.py FOLDER`, by the interpreter of the folder's environment: it imports the standard
library and `mcp` only, and works with mcp 1.x and 2.x. Who calls is read from descriptor 3, as a JSON object with
`user_id` and `api_key`.
"""

import asyncio
import importlib.util
import inspect
import json
import os
import sys

IDENTITY_DESCRIPTOR = 3
MAX_LINE_BYTES = 16 * 1024 * 1024
NAMES = ("server", "mcp", "app", "mcp_server")
"""What a module may call its server."""


def load(folder):
    """Execute the folder's `main.py`, as a package that finds its siblings."""
    for path in (os.path.dirname(os.path.dirname(folder)), folder):
        if path not in sys.path:
            sys.path.insert(0, path)
    spec = importlib.util.spec_from_file_location(
        "gumcp_isolated_server", os.path.join(folder, "main.py"), submodule_search_locations=[folder]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def low_level(made):
    """The low-level server of an object, or None."""
    from mcp.server import Server

    if isinstance(made, Server):
        return made
    for name in ("_mcp_server", "_lowlevel_server"):
        inner = getattr(made, name, None)
        if isinstance(inner, Server):
            return inner
    return None


async def make(module, user_id, api_key):
    """The author's object for one caller, and its low-level server."""
    found = next((getattr(module, name) for name in NAMES if hasattr(module, name)), None)
    if found is None:
        sys.exit("main.py has no server, and no object called mcp, app or mcp_server.")
    server = low_level(found)
    if server is not None:
        return found, server
    parameters = len(inspect.signature(found).parameters)
    made = found(*(user_id, api_key)[:parameters])
    made = await made if inspect.isawaitable(made) else made
    server = low_level(made)
    if server is None:
        sys.exit("The factory returned " + type(made).__name__ + ", which is not a server.")
    return made, server


class Input:
    """Standard input as the SDK's `stdio_server` reads it: lines of text. The SDK's own hands each line to a thread."""

    def __init__(self, lines):
        self.lines = lines

    def __aiter__(self):
        return self

    async def __anext__(self):
        line = await self.lines.readline()
        if not line:
            raise StopAsyncIteration
        return line.decode("utf-8", "replace")


class Output:
    """Standard output as the SDK's `stdio_server` writes it."""

    def __init__(self, pipe):
        self.pipe = pipe

    async def write(self, text):
        """Write a text."""
        self.pipe.write(text.encode("utf-8", "surrogatepass"))

    async def flush(self):
        """Wait while the host does not read."""
        await self.pipe.drain()


async def open_streams(protocol_in, protocol_out):
    """Connect the pipes with the running loop."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), protocol_in)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, protocol_out)
    return Input(lines), Output(asyncio.StreamWriter(transport, protocol, None, loop))


async def serve(folder, caller, protocol_in, protocol_out):
    """Serve the folder until standard input ends."""
    from mcp.server.stdio import stdio_server

    module = load(folder)
    made, server = await make(module, caller["user_id"], caller["api_key"])
    get_options = getattr(module, "get_initialization_options", None)
    options = get_options(made) if get_options is not None else server.create_initialization_options()
    options = await options if inspect.isawaitable(options) else options
    async with stdio_server(*await open_streams(protocol_in, protocol_out)) as (reader, writer):
        await server.run(reader, writer, options)


def main():
    """Read who calls, keep standard input and output for the protocol, and serve."""
    with os.fdopen(IDENTITY_DESCRIPTOR, encoding="utf-8") as file:
        caller = json.load(file)
    protocol_in, protocol_out = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    asyncio.run(serve(os.path.abspath(sys.argv[1]), caller, protocol_in, protocol_out))


if __name__ == "__main__":
    main()
