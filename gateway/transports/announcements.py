"""The messages that tell clients that a server's lists may have changed. The host sends them after a reload."""

import json
from collections.abc import Iterator
from typing import Any, Final

from mcp.shared.subscriptions import (
    SUBSCRIPTION_ID_META_KEY,
    PromptsListChanged,
    ResourcesListChanged,
    ServerEvent,
    ToolsListChanged,
    event_matches,
    event_to_notification,
)
from mcp_types import JSONRPCNotification, JSONRPCRequest, SubscriptionsListenRequestParams
from pydantic import ValidationError

from gateway.transports.event_stream import frame

EVENTS: Final[tuple[ServerEvent, ...]] = (ToolsListChanged(), PromptsListChanged(), ResourcesListChanged())


def list_changed_messages() -> list[JSONRPCNotification]:
    """The notifications for sessions of the handshake era, whose clients get them without asking."""
    return [
        JSONRPCNotification(jsonrpc="2.0", method=f"notifications/{kind}/list_changed")
        for kind in ("tools", "prompts", "resources")
    ]


def listen_frames(body: Any) -> Iterator[bytes]:
    """The events for a client that listens. `body` is its `subscriptions/listen` request as decoded JSON.

    Spec 2026-07-28 server/subscriptions: a client gets only what it asked for, with the id of its request.
    """
    try:
        request = JSONRPCRequest.model_validate(body)
        asked = SubscriptionsListenRequestParams.model_validate(request.params or {}, by_name=False).notifications
    except ValidationError:
        return
    meta: dict[str, Any] = {SUBSCRIPTION_ID_META_KEY: request.id}
    for event in EVENTS:
        if event_matches(asked, frozenset(), event):
            notification = event_to_notification(event, meta)
            message = {"jsonrpc": "2.0", **notification.model_dump(by_alias=True, mode="json", exclude_none=True)}
            yield frame(b"message", json.dumps(message, separators=(",", ":")).encode())
