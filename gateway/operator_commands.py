"""Operators' commands to all processes: which there are, and how the admin and the shell send them.

A command travels by the channel layer, which is quick but may lose it. What it asks for also stands in a row, which
every process reads each second. Whichever arrives first takes effect; the other changes nothing. Received by
`gateway.host.control`.
"""

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

GROUP: Final = "gumcp.control"
"""The channel-layer group that every process's listener is in."""


def send_end_sessions(row_ids: Iterable[UUID]) -> None:
    """Tell all processes to end these sessions. Called outside an event loop, as in the admin."""
    layer = get_channel_layer()
    if layer is not None:
        message = {"type": "sessions.end", "row_ids": [str(row_id) for row_id in row_ids]}
        async_to_sync(layer.group_send)(GROUP, message)


def send_keys_changed() -> None:
    """Tell all processes to look at the rows of keys. Called outside an event loop, as in the admin."""
    layer = get_channel_layer()
    if layer is not None:
        async_to_sync(layer.group_send)(GROUP, {"type": "keys.changed"})
