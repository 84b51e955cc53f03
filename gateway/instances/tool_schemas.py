"""The input schemas of an instance's tools, remembered. The SDK checks `Mcp-Param-*` headers against them.

Without them the SDK (mcp 2.3) runs the server's whole `tools/list` for every `tools/call` of 2026-07-28.

Spec: 2026-07-28 basic/transports/streamable-http, parameters in headers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from mcp.shared.inbound import x_mcp_header_map

from gateway.access.redaction import traceback_text

logger = logging.getLogger(__name__)

MAX_AGE_SECONDS: Final = 30.0
"""How long a listing is used. A server that changes a tool tells its clients, who list again; that is learnt too."""

MISS_AGE_SECONDS: Final = 1.0
"""How long a listing is used to say that a tool does not exist."""

ListTools = Callable[[], Awaitable[Iterable[Mapping[str, Any]]]]
"""Asks the server for all of its tools, in wire form."""


class ToolSchemas:
    """The tool schemas of one generation. Used in its lane."""

    __slots__ = ("_listed_at", "_listing", "_schemas")

    def __init__(self) -> None:
        self._schemas: dict[str, Mapping[str, Any] | None] = {}
        """By tool; None if the schema names no headers, as most do: the SDK would look through it at each call."""
        self._listed_at = float("-inf")
        self._listing: asyncio.Lock | None = None
        """Made on first use: most instances never need it."""

    def get(self, name: str) -> Mapping[str, Any] | None:
        """The input schema of tool `name`, or None if it is not known or names no headers."""
        return self._schemas.get(name)

    def learn(self, tools: Iterable[Mapping[str, Any]], *, is_complete: bool) -> None:
        """Remember the tools of a listing, in wire form. A complete listing replaces what was known."""
        schemas = {str(tool.get("name")): _if_it_names_headers(tool.get("inputSchema")) for tool in tools}
        self._schemas = schemas if is_complete else {**self._schemas, **schemas}
        if is_complete:
            self._listed_at = time.monotonic()

    async def prepare(self, name: str, list_tools: ListTools, api_key: str | None) -> None:
        """List the tools if the last listing is too old or has no tool `name`.

        `api_key` is the caller's key, which must not appear in the log.
        """
        if self._is_known(name):
            return
        self._listing = self._listing or asyncio.Lock()
        async with self._listing:
            if self._is_known(name):  # another request listed them meanwhile
                return
            try:
                self.learn(await list_tools(), is_complete=True)
            except Exception as error:  # the server's own failure: the call goes on unchecked, as in the SDK
                logger.warning("A server's tools could not be listed: %s", traceback_text(error, api_key))
                self._listed_at = time.monotonic()

    def _is_known(self, name: str) -> bool:
        age = time.monotonic() - self._listed_at
        return age < (MAX_AGE_SECONDS if name in self._schemas else MISS_AGE_SECONDS)


def _if_it_names_headers(schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return schema if x_mcp_header_map(schema) else None
