"""The list handlers of late version 1 releases, which take the request and return a whole result."""

from mcp import types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions

PAGE_SIZE = 2


def page_of(items, cursor):
    start = int(cursor or 0)
    following = start + PAGE_SIZE
    return items[start:following], str(following) if following < len(items) else None


def cursor_of(request):
    return request.params.cursor if request.params is not None else None


def create_server(user_id, api_key=None):
    server = Server("pages")

    @server.list_tools()
    async def list_tools(request: types.ListToolsRequest) -> types.ListToolsResult:
        tools = [types.Tool(name=f"tool-{number}", inputSchema={"type": "object"}) for number in range(5)]
        page, following = page_of(tools, cursor_of(request))
        return types.ListToolsResult(tools=page, nextCursor=following)

    @server.call_tool()
    async def call_tool(name, arguments):
        return [types.TextContent(type="text", text=name)]

    @server.list_resources()
    async def list_resources(request: types.ListResourcesRequest, /) -> types.ListResourcesResult:
        resources = [types.Resource(uri=f"page:///{number}", name=str(number)) for number in range(3)]
        page, following = page_of(resources, cursor_of(request))
        return types.ListResourcesResult(resources=page, nextCursor=following)

    @server.list_prompts()
    async def list_prompts(request: types.ListPromptsRequest) -> types.ListPromptsResult:
        page, following = page_of([types.Prompt(name=name) for name in "abc"], cursor_of(request))
        return types.ListPromptsResult(prompts=page, nextCursor=following)

    return server


server = create_server


def get_initialization_options(server_instance: Server[dict, object]) -> InitializationOptions:
    return InitializationOptions(
        server_name="pages",
        server_version="1.0.0",
        capabilities=server_instance.get_capabilities(NotificationOptions(), {}),
    )
