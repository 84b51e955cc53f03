"""Handlers that fail in every way a handler fails."""

import pydantic
from mcp import McpError, types
from mcp.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.shared.exceptions import UrlElicitationRequiredError
from mcp.types import ErrorData, FileUrl


class Order(pydantic.BaseModel):
    amount: int


class VendorError(Exception):
    def __str__(self):
        return "vendor says 503"


def fail(kind):
    match kind:
        case "value":
            raise ValueError("no such thing")
        case "key":
            raise KeyError("missing")
        case "silent":
            raise RuntimeError
        case "vendor":
            raise VendorError
        case "group":
            raise ExceptionGroup("two at once", [ValueError("a"), TypeError("b")])
        case "mcp":
            raise McpError(ErrorData(code=-32050, message="said the protocol way", data={"hint": 1}))
        case "pydantic":
            raise pydantic.ValidationError.from_exception_data(
                "Order", [{"type": "int_parsing", "loc": ("amount",), "input": "x"}]
            )
        case "elicit":
            raise UrlElicitationRequiredError(
                [
                    types.ElicitRequestURLParams(
                        mode="url", message="Sign in", url="https://login.example/", elicitationId="sign-in-1"
                    )
                ]
            )
    return str(FileUrl("file:///tmp/no-failure"))


def create_server(user_id, api_key=None):
    server = Server("failures")

    @server.list_tools()
    async def list_tools():
        return [types.Tool(name="fail", inputSchema={"type": "object", "properties": {"kind": {"type": "string"}}})]

    @server.call_tool()
    async def call_tool(name, arguments):
        if name != "fail":
            raise NotImplementedError(f"no tool {name}")
        return [types.TextContent(type="text", text=fail(arguments.get("kind")))]

    @server.read_resource()
    async def read_resource(uri):
        return fail(uri.path.lstrip("/"))

    @server.get_prompt()
    async def get_prompt(name, arguments):
        fail(name)
        return types.GetPromptResult(messages=[])

    @server.list_resources()
    async def list_resources():
        raise ConnectionError("the vendor is down")

    return server


server = create_server


def get_initialization_options(server_instance):
    return InitializationOptions(
        server_name="failures",
        server_version="1.0.0",
        capabilities=server_instance.get_capabilities(NotificationOptions(), {}),
    )
