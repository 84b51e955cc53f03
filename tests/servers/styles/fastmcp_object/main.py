"""A `FastMCP` object of the FastMCP package that all users share. Needs `pip install fastmcp`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastmcp import Context, FastMCP

lifespans: list[str] = []
"""What happened to the lifespan, in order."""


@asynccontextmanager
async def lifespan(app: FastMCP[Any]) -> AsyncIterator[dict[str, str]]:
    lifespans.append("entered")
    try:
        yield {"set up": f"{lifespans.count('entered')} times"}
    finally:
        lifespans.append("left")


server = FastMCP("fastmcp_object", version="1.0", lifespan=lifespan)


@server.tool
async def whoami(ctx: Context) -> str:
    assert ctx.request_context is not None
    return f"one of many, {ctx.request_context.lifespan_context}"
