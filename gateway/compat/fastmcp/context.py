"""Version 1's `Context`, which a tool, a resource or a prompt gets for a parameter that is annotated with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver.context import Context as Version2Context
from pydantic import AnyUrl

from gateway.compat.context import RequestContext

if TYPE_CHECKING:
    from gateway.compat.fastmcp.server import FastMCP


class Context(Version2Context[Any, Any]):
    """What a function may do with the request that it answers: log, report progress, ask the client.

    Its type parameters are accepted and ignored.
    """

    def __init__(
        self, *, request_context: RequestContext | None = None, fastmcp: FastMCP | None = None, **others: Any
    ) -> None:
        super().__init__(**others)
        self._request_context: Any = request_context
        self._fastmcp = fastmcp

    def __class_getitem__(cls, _parameters: Any) -> type[Context]:
        return cls

    _fastmcp: Any = None

    @property
    def fastmcp(self) -> FastMCP:
        """The server."""
        if self._fastmcp is None:
            raise ValueError("Context is not available outside of a request")
        server: FastMCP = self._fastmcp
        return server

    @property
    def client_id(self) -> str | None:
        """What the client wrote into `_meta` of the request as its id."""
        meta = self.request_context.meta
        return getattr(meta, "client_id", None)

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress to the client, if it asked for that."""
        meta: Any = self.request_context.meta
        if meta is not None and meta.progressToken is not None:
            await self.session.send_progress_notification(
                progress_token=meta.progressToken, progress=progress, total=total, message=message
            )

    async def read_resource(self, uri: str | AnyUrl) -> Iterable[ReadResourceContents]:
        """Read a resource of this server."""
        return await self.fastmcp.read_resource(uri)

    async def log(  # type: ignore[override]
        self, level: Any, message: Any, *, logger_name: str | None = None, **_extra: Any
    ) -> None:
        """Send a log message to the client."""
        await self.session.send_log_message(
            level=level, data=message, logger=logger_name, related_request_id=self.request_id
        )

    async def debug(self, message: Any, **extra: Any) -> None:  # type: ignore[override]
        """Send a log message to the client."""
        await self.log("debug", message, **extra)

    async def info(self, message: Any, **extra: Any) -> None:  # type: ignore[override]
        """Send a log message to the client."""
        await self.log("info", message, **extra)

    async def warning(self, message: Any, **extra: Any) -> None:  # type: ignore[override]
        """Send a log message to the client."""
        await self.log("warning", message, **extra)

    async def error(self, message: Any, **extra: Any) -> None:  # type: ignore[override]
        """Send a log message to the client."""
        await self.log("error", message, **extra)
