"""Servers whose code a test changes while they are served: one source for each version of the SDK.

A server answers with the word in its code, and writes to a file when its lifespan begins and ends.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Final

VERSION_1: Final = """
    import asyncio
    import time
    from contextlib import asynccontextmanager

    from mcp.server import NotificationOptions, Server
    from mcp.server.models import InitializationOptions
    from mcp.types import TextContent, Tool

    WORD = "{word}"
    {extra}

    @asynccontextmanager
    async def lifespan(server):
        with open("{journal}", "a") as journal:
            journal.write(f"enter {word} {{server.user_id}}\\n")
        try:
            yield {{"word": WORD}}
        finally:
            with open("{journal}", "a") as journal:
                journal.write(f"leave {word} {{server.user_id}}\\n")

    def create_server(user_id, api_key=None):
        if WORD == "picky" and user_id == "unloved":
            raise RuntimeError("no token for this user")
        server = Server("changing", lifespan=lifespan)
        server.user_id = user_id

        @server.list_tools()
        async def list_tools():
            return [Tool(name=name, inputSchema={{"type": "object"}}) for name in ("word", "wait", WORD)]

        @server.call_tool()
        async def call_tool(name, arguments):
            if name == "wait":
                time.sleep(arguments["delay"])
            state = server.request_context.lifespan_context["word"]
            return [TextContent(type="text", text=WORD if state == WORD else f"{{WORD}} with the state of {{state}}")]

        return server

    server = create_server

    def get_initialization_options(instance):
        return InitializationOptions(
            server_name="changing",
            server_version=WORD,
            capabilities=instance.get_capabilities(NotificationOptions(tools_changed=True), {{}}),
        )
"""

VERSION_2: Final = """
    import asyncio
    from contextlib import asynccontextmanager

    from mcp import types
    from mcp.server import Server
    from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler

    WORD = "{word}"
    {extra}

    def server(user_id, api_key=None):
        if WORD == "picky" and user_id == "unloved":
            raise RuntimeError("no token for this user")

        async def list_tools(ctx, params):
            schema = {{"type": "object"}}
            tools = [types.Tool(name=name, input_schema=schema) for name in ("word", "wait", WORD)]
            return types.ListToolsResult(tools=tools)

        async def call_tool(ctx, params):
            if params.name == "wait":
                await asyncio.sleep(params.arguments["delay"])
            state = ctx.lifespan_context["word"]
            text = WORD if state == WORD else f"{{WORD}} with the state of {{state}}"
            return types.CallToolResult(content=[types.TextContent(text=text)])

        @asynccontextmanager
        async def lifespan(server):
            with open("{journal}", "a") as journal:
                journal.write(f"enter {word} {{user_id}}\\n")
            try:
                yield {{"word": WORD}}
            finally:
                with open("{journal}", "a") as journal:
                    journal.write(f"leave {word} {{user_id}}\\n")

        return Server(
            "changing",
            version=WORD,
            on_list_tools=list_tools,
            on_call_tool=call_tool,
            on_subscriptions_listen=ListenHandler(InMemorySubscriptionBus()),
            lifespan=lifespan,
        )

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""

SOURCES: Final = {"version_1": VERSION_1, "version_2": VERSION_2}


class ChangingServer:
    """One folder in a servers directory."""

    def __init__(self, server_dir: Path, name: str, style: str, journal: Path | None = None) -> None:
        self.name = name
        self.folder = server_dir / name
        self._source = textwrap.dedent(SOURCES[style])
        self._journal = journal or server_dir.parent / f"journal-{name}"

    def write(self, word: str, *, extra: str = "") -> None:
        """Write `main.py`, as editors do: aside, and then into its place."""
        self.write_text(self._source.format(word=word, journal=self._journal, extra=extra))

    def write_text(self, text: str, name: str = "main.py") -> None:
        """Write any file of the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{name}.draft"
        draft.write_text(text)
        os.replace(draft, self.folder / name)

    def journal(self) -> list[str]:
        """What lifespans wrote down, in order."""
        return self._journal.read_text().splitlines() if self._journal.exists() else []
