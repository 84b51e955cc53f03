"""Everything that `call_tool` and `read_resource` were allowed to return."""

import base64

import mcp.types as types
from mcp.server import NotificationOptions, Server
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.models import InitializationOptions

PIXEL = base64.b64encode(b"\x89PNG-not-really").decode()


def text(value):
    return types.TextContent(type="text", text=value)


def make_result(form):
    forms = {
        "list": lambda: [text("one"), text("two")],
        "empty": list,
        "tuple_of_blocks": lambda: (text("one"), text("two"), text("three")),
        "generator": lambda: (text(f"line {number}") for number in range(3)),
        "broken_generator": lambda: (text(str(1 // number)) for number in (1, 0)),
        "bare": lambda: text("alone"),
        "structured": lambda: {"answer": 42, "words": ["a", "b"], "nothing": None},
        "both": lambda: ([text("forty-two")], {"answer": 42}),
        "content_only": lambda: ([text("forty-two")], None),
        "result": lambda: types.CallToolResult(content=[text("made it")], structuredContent={"ok": True}),
        "error_result": lambda: types.CallToolResult(content=[text("did not make it")], isError=True),
        "image": lambda: [types.ImageContent(type="image", data=PIXEL, mimeType="image/png")],
        "audio": lambda: [types.AudioContent(type="audio", data=PIXEL, mimeType="audio/wav")],
        "embedded": lambda: [
            types.EmbeddedResource(
                type="resource",
                resource=types.TextResourceContents(
                    uri=types.AnyUrl("files:///a.txt"), mimeType="text/plain", text="inside"
                ),
            ),
            types.EmbeddedResource(
                type="resource",
                resource=types.BlobResourceContents(uri="files:///a.bin", mimeType="image/png", blob=PIXEL),
                annotations=types.Annotations(audience=["user"], priority=0.5),
            ),
        ],
        "link": lambda: [
            types.ResourceLink(type="resource_link", uri="files:///a.txt", name="a", mimeType="text/plain")
        ],
        "dictionaries": lambda: [{"type": "text", "text": "from a dictionary"}],
        "none": lambda: None,
        "number": lambda: 7,
    }
    return forms[form]()


def create_server(user_id, api_key=None):
    server = Server("result-forms")
    server.user_id = user_id

    @server.list_tools()
    async def list_tools() -> list[types.Tool]:
        schema = {"type": "object", "properties": {"form": {"type": "string"}}, "required": ["form"]}
        return [types.Tool(name="make", description="Return a result of some form", inputSchema=schema)]

    @server.call_tool()
    async def call_tool(name: str, arguments: dict):
        return make_result(arguments["form"])

    @server.list_resources()
    async def list_resources() -> list[types.Resource]:
        return [types.Resource(uri="forms:///text", name="text"), types.Resource(uri="forms:///bytes", name="bytes")]

    @server.read_resource()
    async def read_resource(uri):
        match str(uri).rpartition("/")[2]:
            case "text":
                return "plain text"
            case "bytes":
                return b"\x00\xff\xfe bytes"
            case "generator":
                return (ReadResourceContents(content=part, mime_type=None) for part in ("a", b"b"))
            case "none":
                return []
            case _:
                return 3.5

    return server


server = create_server


def get_initialization_options(server_instance: Server) -> InitializationOptions:
    return InitializationOptions(
        server_name="result-forms",
        server_version="0.3.1",
        capabilities=server_instance.get_capabilities(NotificationOptions(), {}),
    )
