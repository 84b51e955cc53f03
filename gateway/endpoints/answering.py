"""Makes event streams and replies with the host's limits, and counts the open streams."""

import asyncio
from functools import partial

from gateway.conf import conf
from gateway.endpoints.base import McpRequest
from gateway.host.host import Host
from gateway.http.asgi import Headers, Send
from gateway.transports.event_stream import EventStream
from gateway.transports.reply import Reply


def new_stream(host: Host, send: Send, loop: asyncio.AbstractEventLoop | None = None) -> EventStream:
    """An event stream to the client of `send`. `loop` is the host's, if this is called elsewhere."""
    return EventStream(
        send,
        buffer_bytes=conf.stream_buffer_bytes,
        slow_reader_seconds=conf.slow_reader_seconds,
        loop=loop,
        wakeups=host.loop.wakeups,
    )


def new_reply(host: Host, send: Send, headers: Headers = ()) -> Reply:
    """A reply to the client of `send`, undecided at first. `headers` are added to the response."""
    return Reply(
        partial(new_stream, host, send, asyncio.get_running_loop()),
        send,
        headers,
        wakeups=host.loop.wakeups,
        alarms=host.loop.alarms,
        step_bytes=conf.stream_buffer_bytes,
        step_seconds=conf.slow_reader_seconds,
    )


async def run_reply(host: Host, request: McpRequest, reply: Reply) -> bool:
    """Answer `request` with `reply`. Returns what `Reply.run` returns."""
    try:
        return await reply.run(
            request.receive,
            silence_seconds=conf.ping_seconds,
            counted=lambda: host.streams.open(reply.stream, request.definition.name),
        )
    finally:
        reply.abandon()
