"""The input schemas of an instance's tools, remembered: what the SDK checks `Mcp-Param-*` headers against.

Without them the SDK (mcp 2.3) runs the server's whole `tools/list` for every 2026-07-28 `tools/call`.

Spec: 2026-07-28 basic/transports/streamable-http, parameters in headers.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mcp.server import Server

from gateway.access.redaction import traceback_text
from gateway.instances.offers import list_items

logger = logging.getLogger(__name__)

MAX_AGE_SECONDS: Final = 30.0
"""How long a listing is relied on. A server that changes a tool tells its clients, who list again: that is seen too."""

MISS_AGE_SECONDS: Final = 1.0
"""How long a listing is relied on for not having a tool."""


class ToolSchemas:
    """The schemas of one instance. Used in its lane."""

    def __init__(self, server: Server[Any], lifespan_state: Any, api_key: str | None) -> None:
        """`api_key` is the instance's, which no log may say."""
        self.server = server
        """What is asked for its tools."""
        self._lifespan_state = lifespan_state
        self._api_key = api_key
        self._schemas: dict[str, Mapping[str, Any]] = {}
        self._listed_at = float("-inf")
        self._lock = asyncio.Lock()

    def get(self, name: str) -> Mapping[str, Any] | None:
        """The input schema of tool `name`, or None if it is not known."""
        return self._schemas.get(name)

    def learn(self, tools: Iterable[Mapping[str, Any]], *, is_complete: bool) -> None:
        """Remember the tools of a listing, in wire form. A complete one replaces what was known."""
        schemas = {str(tool.get("name")): tool.get("inputSchema") or {} for tool in tools}
        self._schemas = schemas if is_complete else {**self._schemas, **schemas}
        if is_complete:
            self._listed_at = time.monotonic()

    def _is_known(self, name: str) -> bool:
        age = time.monotonic() - self._listed_at
        return age < (MAX_AGE_SECONDS if name in self._schemas else MISS_AGE_SECONDS)

    async def prepare(self, name: str) -> None:
        """List the tools if what is remembered is too old, or has no tool `name`."""
        if self._is_known(name):
            return
        async with self._lock:
            if self._is_known(name):  # somebody else was quicker
                return
            try:
                self.learn(await list_items(self.server, self._lifespan_state, "tools"), is_complete=True)
            except Exception as error:  # the server's own failure: its call goes on unchecked, as in the SDK
                text = traceback_text(error, self._api_key)
                logger.warning("A server's tools could not be listed: %s", text)
                self._listed_at = time.monotonic()
