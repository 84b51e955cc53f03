"""What authors write with version 1's FastMCP: most public servers are like this one."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from mcp.server.fastmcp import Audio, Context, FastMCP, Icon, Image
from mcp.server.fastmcp.exceptions import ResourceError, ToolError
from mcp.server.fastmcp.prompts import base
from mcp.server.fastmcp.prompts.base import AssistantMessage, UserMessage
from mcp.server.fastmcp.resources import FileResource, TextResource
from mcp.server.session import ServerSession
from mcp.shared.exceptions import McpError
from mcp.types import (
    INVALID_PARAMS,
    CallToolResult,
    Completion,
    ErrorData,
    PromptReference,
    SamplingMessage,
    TextContent,
    ToolAnnotations,
)
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

PIXEL = base64.b64decode("R0lGODlhAQABAAAAACwAAAAAAQABAAA=")


@dataclass
class Shop:
    name: str
    lock: asyncio.Lock
    loop: asyncio.AbstractEventLoop


@asynccontextmanager
async def lifespan(server: FastMCP) -> AsyncIterator[Shop]:
    yield Shop(f"the shop of {server.name}", asyncio.Lock(), asyncio.get_running_loop())


mcp = FastMCP("fastmcp-shop", instructions="Buy things.", lifespan=lifespan, log_level="WARNING", port=9999)
mcp.settings.host = "0.0.0.0"


# -- Tools: arguments


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


class Item(BaseModel):
    """A thing."""

    name: str
    price: float = Field(gt=0, description="In euros")
    tags: list[str] = []


@mcp.tool()
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool(name="described", title="Described", description="All that can be said of a tool")
def with_description(
    query: Annotated[str, Field(description="What to look for", min_length=2)],
    size: Size = Size.SMALL,
    order: Literal["asc", "desc"] = "asc",
    limit: Optional[int] = None,  # noqa: UP045
) -> str:
    return f"{query} {size.value} {order} {limit}"


@mcp.tool(
    annotations=ToolAnnotations(title="Bought", readOnlyHint=False, destructiveHint=True),
    icons=[Icon(src="https://shop.example/icon.png", mimeType="image/png")],
    meta={"shop": {"till": 3}},
)
def buy(item: Item, others: list[Item] = [], notes: dict[str, str] | None = None) -> str:  # noqa: B006
    """Buy something."""
    return f"{item.name} for {item.price} {item.tags}, and {[other.name for other in others]} {notes}"


@mcp.tool()
def anything(value):
    return f"{type(value).__name__} {value}"


# -- Tools: results


class Coordinates(TypedDict):
    latitude: float
    longitude: float


@dataclass
class Person:
    name: str
    age: int | None = None


class Stock(BaseModel):
    item: Item
    amounts: dict[str, int]


class Plain:
    def __str__(self):
        return "as plain as can be"


@mcp.tool()
def no_annotation():
    return {"a": [1, 2], "b": None}


@mcp.tool()
def nothing() -> None:
    return None


@mcp.tool()
def a_list() -> list[str]:
    return ["one", "two"]


@mcp.tool()
def a_dictionary() -> dict[str, int]:
    return {"one": 1}


@mcp.tool()
def any_dictionary() -> dict[str, Any]:
    return {"one": 1, "nested": {"two": [2]}}


@mcp.tool()
def a_typed_dictionary() -> Coordinates:
    return {"latitude": 1.5, "longitude": 2}


@mcp.tool()
def a_dataclass() -> Person:
    return Person("Ada", 36)


@mcp.tool()
def a_model() -> Stock:
    return Stock(item=Item(name="tea", price=3), amounts={"s": 1})


@mcp.tool()
def maybe(found: bool) -> Item | None:
    return Item(name="tea", price=3) if found else None


@mcp.tool(structured_output=False)
def unstructured() -> list[int]:
    return [1, 2]


@mcp.tool()
def of_no_schema() -> Plain:
    return Plain()


@mcp.tool()
def not_what_was_said() -> int:
    return "many"


@mcp.tool()
def a_picture() -> Image:
    return Image(data=PIXEL, format="gif")


@mcp.tool()
def a_sound() -> Audio:
    return Audio(data=PIXEL, format="wav")


@mcp.tool()
def a_mixture() -> list:
    return ["look:", Image(data=PIXEL, format="gif"), {"n": 1}, [TextContent(type="text", text="deep")]]


@mcp.tool()
def content() -> list[TextContent]:
    return [TextContent(type="text", text="said")]


@mcp.tool()
def a_result() -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text="whole")], isError=True, _meta={"mine": 1})


# -- Tools: failures


@mcp.tool()
def fail(kind: str) -> str:
    if kind == "tool":
        raise ToolError("not today")
    if kind == "mcp":
        raise McpError(ErrorData(code=INVALID_PARAMS, message="wrong", data={"a": 1}))
    if kind == "resource":
        raise ResourceError("no such shelf")
    if kind == "silent":
        raise ValueError
    return {}[kind]


# -- Tools: the context


@mcp.tool()
async def shop(ctx: Context[ServerSession, Shop]) -> str:
    context = ctx.request_context.lifespan_context
    async with context.lock:
        same_loop = context.loop is asyncio.get_running_loop()
    return f"{context.name} {same_loop} {ctx.fastmcp is mcp} {mcp.get_context().request_id == ctx.request_id}"


@mcp.tool()
async def talk(ctx: Context) -> str:
    await ctx.debug("a detail")
    await ctx.info("a fact", logger_name="till")
    await ctx.warning("a worry")
    await ctx.error("a problem")
    await ctx.log("info", "logged")
    return "talked"


@mcp.tool()
async def work(steps: int, ctx: Context | None = None) -> str:
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
        await asyncio.sleep(0)
    return f"did {steps}"


@mcp.tool()
def plain_with_context(ctx: Context) -> str:
    loop = asyncio.get_running_loop()
    return f"{ctx.client_id} {loop is ctx.request_context.lifespan_context.loop}"


@mcp.tool()
async def read(uri: str, ctx: Context) -> str:
    contents = await ctx.read_resource(uri)
    return " ".join(f"{item.content} {item.mime_type}" for item in contents)


@mcp.tool()
async def ask_model(ctx: Context) -> str:
    result = await ctx.session.create_message(
        messages=[SamplingMessage(role="user", content=TextContent(type="text", text="a poem"))], max_tokens=10
    )
    return f"{result.content.text} by {result.model}"


class Choice(BaseModel):
    table: int = Field(description="Which table")
    is_by_the_window: bool = False


@mcp.tool()
async def ask_user(ctx: Context) -> str:
    result = await ctx.elicit("Which table?", Choice)
    if result.action == "accept":
        return f"table {result.data.table} {result.data.is_by_the_window}"
    return result.action


@mcp.tool()
def slowly(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


# -- Resources


@mcp.resource("shop://opening-hours")
def opening_hours() -> str:
    """When the shop is open."""
    return "9 to 5"


@mcp.resource("shop://logo", name="logo", title="Logo", description="A pixel", mime_type="image/gif")
async def logo() -> bytes:
    return PIXEL


@mcp.resource("shop://prices", mime_type="application/json")
def prices() -> dict[str, Any]:
    return {"tea": 3}


@mcp.resource("shop://broken")
def broken() -> str:
    raise RuntimeError("out of order")


@mcp.resource("shop://shelves/{shelf}/items/{number}", title="An item")
async def item(shelf: str, number: int) -> str:
    """An item on a shelf."""
    if number > 9:
        raise ValueError("no such item")
    return f"{type(number).__name__} {number} on {shelf}"


@mcp.resource("shop://users/{name}")
async def user(name: str, ctx: Context) -> dict[str, Any]:
    return {"name": name, "shop": ctx.request_context.lifespan_context.name}


mcp.add_resource(TextResource(uri="shop://motto", name="motto", text="Tea!", description="What we say"))
mcp.add_resource(FileResource(uri="shop://source", path=Path(__file__).resolve().with_name("note.txt")))


# -- Prompts


@mcp.prompt()
def review(code: str, language: str = "python") -> str:
    """Review some code."""
    return f"Review this {language}:\n{code}"


@mcp.prompt(title="A talk", description="How to haggle")
async def haggle(price: int) -> list[base.Message]:
    return [
        UserMessage(f"I give you {price - 1}."),
        AssistantMessage("No."),
        base.UserMessage("Please?"),
    ]


@mcp.prompt()
def from_dictionaries() -> list[dict]:
    return [{"role": "user", "content": {"type": "text", "text": "hello"}}, {"role": "assistant", "content": "hi"}]


@mcp.prompt()
def failing() -> str:
    raise RuntimeError("nothing to say")


@mcp.prompt()
async def with_context(ctx: Context) -> str:
    return f"from {ctx.request_context.lifespan_context.name}"


@mcp.completion()
async def complete(ref, argument, context):
    if isinstance(ref, PromptReference) and argument.name == "language":
        return Completion(values=[name for name in ("python", "rust") if name.startswith(argument.value)])
    return None


if __name__ == "__main__":
    mcp.run(transport="stdio")
