"""Receives operators' commands for this process from the channel layer. How they are sent: `operator_commands`."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import UUID

from channels.layers import get_channel_layer

from gateway.database_thread import Outage
from gateway.operator_commands import GROUP
from gateway.transports.sessions import Sessions

logger = logging.getLogger(__name__)

ENDED_BY_OPERATOR: Final = "ended by an operator"
"""Why a session ended that an operator ended."""


RETRY_SECONDS: Final = 1.0
"""How long the listener pauses after an error of the channel layer."""


class ControlListener:
    """Receives commands and carries them out. Used on the host's loop."""

    def __init__(self, sessions: Sessions, on_keys_changed: Callable[[], object] = lambda: None) -> None:
        self._sessions = sessions
        self._on_keys_changed = on_keys_changed
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(
            logger,
            "Operators' commands arrive by the database only",
            "Operators' commands arrive by the channel layer again",
        )

    def start(self) -> None:
        """Start listening."""
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def end_sessions(self, row_ids: Iterable[UUID]) -> None:
        """End the sessions with these rows. Sessions of other processes are not affected."""
        for row_id in row_ids:
            session = self._sessions.by_row_id(row_id)
            if session is not None:
                session.end(ENDED_BY_OPERATOR)

    async def _listen(self) -> None:
        layer = get_channel_layer()
        if layer is None:
            return
        channel: str | None = None
        try:
            while True:
                try:
                    if channel is None:
                        new_channel = await layer.new_channel()
                        await layer.group_add(GROUP, new_channel)
                        channel = new_channel
                        self._outage.end()
                    self._apply(await layer.receive(channel))
                except asyncio.CancelledError:
                    raise
                except Exception as error:  # such as a lost Redis. What operators want is also in rows.
                    if channel is None:
                        self._outage.begin(error)
                    else:
                        logger.exception("The channel layer failed")
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            with contextlib.suppress(Exception):
                if channel is not None:
                    await layer.group_discard(GROUP, channel)

    def _apply(self, message: dict[str, Any]) -> None:
        if message.get("type") == "sessions.end":
            self.end_sessions(UUID(row_id) for row_id in message["row_ids"])
        elif message.get("type") == "keys.changed":
            self._on_keys_changed()
