"""Commands of operators to all processes, and how the admin and `manage.py` send them.

A command travels by the channel layer, which is quick but may lose it. So the same request is also in a row, and every
process reads these rows about once a second. Whichever arrives first takes effect, and the other changes nothing. The
receiver is `gateway.host.control`.
"""

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

GROUP: Final = "gumcp.control"
"""The channel-layer group in which every process listens."""


def send_end_sessions(row_ids: Iterable[UUID]) -> None:
    """Tell all processes to end these sessions. Not for an event loop: it blocks."""
    layer = get_channel_layer()
    if layer is not None:
        message = {"type": "sessions.end", "row_ids": [str(row_id) for row_id in row_ids]}
        async_to_sync(layer.group_send)(GROUP, message)


def send_keys_changed() -> None:
    """Tell all processes to read the rows of keys again. Not for an event loop: it blocks."""
    layer = get_channel_layer()
    if layer is not None:
        async_to_sync(layer.group_send)(GROUP, {"type": "keys.changed"})
