"""What servers list: the names of their tools, resources and prompts, asked once of the first instance.

A factory may make a different `Server` for every user. What is kept here is shown to operators and gives metrics their
labels, so the first instance's answer stands for all. Later calls of tools that it did not name count as "(other)".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from mcp.server import Server
from mcp.server.connection import Connection
from mcp.server.runner import serve_one
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.message import MessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import CLIENT_CAPABILITIES_META_KEY, PROTOCOL_VERSION_META_KEY, RequestId
from mcp_types.version import LATEST_MODERN_VERSION

MAX_PAGES: Final = 20
MAX_NAMES: Final = 1000
"""Bounds on what one server may list: its tools become metric labels."""

_SHOWN_FIELDS: Final = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
"""What operators see of a tool's definition."""

MAX_DEFINITION_BYTES: Final = 16 * 1024
MAX_DEFINITIONS_BYTES: Final = 256 * 1024
"""How long the definition of one tool, and those of all tools of a server, may be as JSON to be shown to operators."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The names that one server lists, in its order."""

    version: str = ""
    tools: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    tool_definitions: str = ""
    """The tools in wire form, for operators, as ASCII JSON. One that is too long has its name only."""


class Listings:
    """The listings of a host's servers.

    Threads: `learn` is called in lanes; everything else in any thread. A listing is replaced as a whole.
    """

    def __init__(self) -> None:
        self._by_server: dict[str, Listing] = {}

    def get(self, server_name: str) -> Listing | None:
        """The listing of server `server_name`, or None if it has not been asked yet."""
        return self._by_server.get(server_name)

    def all(self) -> dict[str, Listing]:
        """All listings known now, by server name."""
        return dict(self._by_server)

    def learn(self, server_name: str, listing: Listing) -> None:
        """Keep `listing` in place of the previous one."""
        self._by_server[server_name] = listing


async def ask_listing(server: Server[Any], lifespan_state: Any) -> Listing:
    """Ask `server` for its lists, as a client of the current protocol would. Call it in the server's lane.

    A list that has no handler is empty. Raises whatever a list handler raises.
    """
    tools = await list_items(server, lifespan_state, "tools")
    return Listing(
        version=server.version,
        tools=_names(tools, "name"),
        resources=await _list_names(server, lifespan_state, "resources", "uri"),
        prompts=await _list_names(server, lifespan_state, "prompts", "name"),
        tool_definitions=_definitions(tools),
    )


async def list_items(server: Server[Any], lifespan_state: Any, kind: str) -> list[dict[str, Any]]:
    """The items that `server` returns for `{kind}/list`, in wire form, up to `MAX_PAGES` pages.

    It asks for no further page once it has `MAX_NAMES` items.
    """
    method = f"{kind}/list"
    if server.get_request_handler(method) is None:
        return []
    items: list[dict[str, Any]] = []
    params: dict[str, Any] = {
        "_meta": {PROTOCOL_VERSION_META_KEY: LATEST_MODERN_VERSION, CLIENT_CAPABILITIES_META_KEY: {}}
    }
    for _ in range(MAX_PAGES):
        connection = Connection.from_envelope(LATEST_MODERN_VERSION, None, {})
        result = await serve_one(
            server, _InternalRequest(), method, params, connection=connection, lifespan_state=lifespan_state
        )
        items += result.get(kind, [])
        cursor = result.get("nextCursor")
        if not cursor or len(items) >= MAX_NAMES:
            break
        params = {**params, "cursor": cursor}
    return items


async def _list_names(server: Server[Any], lifespan_state: Any, kind: str, key: str) -> tuple[str, ...]:
    return _names(await list_items(server, lifespan_state, kind), key)


def _names(items: list[dict[str, Any]], key: str) -> tuple[str, ...]:
    return tuple(str(item[key]) for item in items[:MAX_NAMES] if key in item)


def _definitions(tools: list[dict[str, Any]]) -> str:
    left = MAX_DEFINITIONS_BYTES
    texts = []
    for tool in tools[:MAX_NAMES]:
        try:
            text = json.dumps({field: tool[field] for field in _SHOWN_FIELDS if field in tool})
        except (TypeError, ValueError, RecursionError):
            text = ""
        if not text or len(text) > min(left, MAX_DEFINITION_BYTES):
            text = json.dumps({"name": str(tool.get("name", ""))})
        left -= len(text)
        texts.append(text)
    return f"[{', '.join(texts)}]"


@dataclass
class _InternalRequest:
    """The `DispatchContext` of a request that the host makes itself: there is no client to notify or to ask."""

    transport: TransportContext = field(
        default_factory=lambda: TransportContext(kind="internal", can_send_request=False)
    )
    request_id: RequestId | None = 0
    message_metadata: MessageMetadata = None
    cancel_requested: anyio.Event = field(default_factory=anyio.Event)
    can_send_request: bool = False

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        return None

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        return None
