"""What a server offers: the names of its tools, resources and prompts, asked once of its first instance.

A factory may make a different `Server` for every user; what is kept here is what operators are shown and what metrics
use as labels, so the first instance's answer stands for all, and later calls of tools it did not name are "(other)".
"""

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


@dataclass(frozen=True, slots=True)
class Offer:
    """Names in the order in which the server lists them."""

    version: str = ""
    tools: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


class Offers:
    """What is known of each server's offer."""

    def __init__(self) -> None:
        self._offers: dict[str, Offer] = {}

    def get(self, server_name: str) -> Offer | None:
        """The offer of server `server_name`, or None while nobody has asked it."""
        return self._offers.get(server_name)

    def all(self) -> dict[str, Offer]:
        """What is known by now: server name -> offer. Any thread."""
        return dict(self._offers)

    def learn(self, server_name: str, offer: Offer) -> None:
        """Keep `offer`."""
        self._offers[server_name] = offer


async def ask_offer(server: Server[Any], lifespan_state: Any) -> Offer:
    """Ask `server` for its lists, as a client of the current protocol would. Call it in the server's lane.

    Raises whatever a list handler raises; a list without a handler is empty.
    """
    return Offer(
        version=server.version,
        tools=await _list_names(server, lifespan_state, "tools", "name"),
        resources=await _list_names(server, lifespan_state, "resources", "uri"),
        prompts=await _list_names(server, lifespan_state, "prompts", "name"),
    )


async def list_items(server: Server[Any], lifespan_state: Any, kind: str) -> list[dict[str, Any]]:
    """What `server` lists under `{kind}/list`, in wire form; bounded by `MAX_PAGES` and about `MAX_NAMES`."""
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
    items = await list_items(server, lifespan_state, kind)
    return tuple(str(item[key]) for item in items[:MAX_NAMES] if key in item)


@dataclass
class _InternalRequest:
    """The `DispatchContext` of a request that the host makes itself: nobody is there to be told or asked anything."""

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
