"""Commands of operators to all processes, and how the admin and `manage.py` send them.

A command travels by the channel layer, which is quick but may lose it. So the same request is also in a row, and every
process reads these rows about once a second. Whichever arrives first takes effect, and the other changes nothing. The
receiver is `gateway.host.control`.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

logger = logging.getLogger(__name__)

SEND_SECONDS: Final = 1.0
"""How long an operator waits for the channel layer."""

GROUP: Final = "gumcp.control"
"""The channel-layer group in which every process listens."""


def send_end_sessions(row_ids: Iterable[UUID]) -> None:
    """Tell all processes to end these sessions. Not for an event loop: it blocks."""
    _send({"type": "sessions.end", "row_ids": [str(row_id) for row_id in row_ids]})


def send_keys_changed() -> None:
    """Tell all processes to read the rows of keys again. Not for an event loop: it blocks."""
    _send({"type": "keys.changed"})


def _send(message: dict[str, Any]) -> None:
    layer = get_channel_layer()
    if layer is None:
        return

    async def send() -> None:
        async with asyncio.timeout(SEND_SECONDS):
            await layer.group_send(GROUP, message)

    try:
        async_to_sync(send)()
    except Exception as error:  # such as a lost Redis. The row that says the same has been written.
        logger.warning("A command could not be sent and will arrive by its row: %s", type(error).__name__)
