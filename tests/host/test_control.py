"""Commands from the channel layer. How they are sent: `records`, `access`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from channels.layers import get_channel_layer

from gateway.access.identity import Identity
from gateway.host.control import ENDED_BY_OPERATOR, ControlListener
from gateway.operator_commands import GROUP
from gateway.transports.sessions import Session, Sessions


@asynccontextmanager
async def listening(sessions: Sessions, keys_changed: asyncio.Event) -> AsyncIterator[None]:
    listener = ControlListener(sessions, on_keys_changed=keys_changed.set)
    listener.start()
    await asyncio.sleep(0)
    try:
        yield
    finally:
        await listener.stop()


def open_session(sessions: Sessions, ended: asyncio.Event) -> Session:
    session: Session = Session("workshop", Identity("ada"), "sse", "127.0.0.1")
    wire: object = None
    session.open(wire, ended.set)  # type: ignore[arg-type]
    sessions.add(session)
    return session


async def test_sessions_that_a_command_names_end_and_no_others() -> None:
    sessions, first_ended, second_ended, keys_changed = Sessions(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    first, _ = open_session(sessions, first_ended), open_session(sessions, second_ended)
    async with listening(sessions, keys_changed):
        layer = get_channel_layer()
        await layer.group_send(GROUP, {"type": "sessions.end", "row_ids": [str(first.row_id), str(uuid4())]})
        await asyncio.wait_for(first_ended.wait(), 5)
        assert first.end_reason == ENDED_BY_OPERATOR
        assert not second_ended.is_set()


async def test_command_that_keys_changed_is_passed_on() -> None:
    keys_changed = asyncio.Event()
    async with listening(Sessions(), keys_changed):
        await get_channel_layer().group_send(GROUP, {"type": "keys.changed"})
        await asyncio.wait_for(keys_changed.wait(), 5)


async def test_command_that_cannot_be_read_is_logged_and_the_next_one_is_carried_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.host.control.RETRY_SECONDS", 0)
    keys_changed = asyncio.Event()
    async with listening(Sessions(), keys_changed):
        layer = get_channel_layer()
        await layer.group_send(GROUP, {"type": "sessions.end", "row_ids": ["nonsense"]})
        await layer.group_send(GROUP, {"type": "keys.changed"})
        await asyncio.wait_for(keys_changed.wait(), 5)
    assert "channel layer failed" in caplog.text
