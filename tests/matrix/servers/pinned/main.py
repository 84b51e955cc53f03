"""A server for mcp 1.28, which the host does not have: it is served from an environment of its own."""

from importlib.metadata import version

from mcp.server.fastmcp import Context, FastMCP
from mcp.types import SamplingMessage, TextContent
from pydantic import BaseModel

server = FastMCP("pinned")


class Answer(BaseModel):
    name: str


@server.tool()
def sdk_version() -> str:
    return version("mcp")


@server.tool()
async def progress(ctx: Context) -> str:
    for step in (1, 2, 3):
        await ctx.report_progress(step, 3)
    return "done"


@server.tool()
def fail() -> str:
    raise ValueError("it failed")


@server.tool()
async def sample(ctx: Context) -> str:
    question = SamplingMessage(role="user", content=TextContent(type="text", text="?"))
    answer = await ctx.session.create_message([question], max_tokens=5)
    return answer.content.text


@server.tool()
async def elicit(ctx: Context) -> str:
    answer = await ctx.elicit("Name?", Answer)
    return f"{answer.action} {answer.data.name}"


@server.tool()
async def roots(ctx: Context) -> str:
    return str((await ctx.session.list_roots()).roots[0].uri)
