"""The stateless protocol: every POST is complete in itself.

Spec: 2026-07-28 basic/transports/streamable-http. What happens in the lane: `transports.stateless`.
"""

from contextlib import AbstractContextManager, nullcontext

from gateway import metrics
from gateway.access.tool_scope import require_named_tool
from gateway.endpoints.answering import new_reply, run_reply
from gateway.endpoints.base import McpRequest
from gateway.endpoints.opening import acquire_with_room, require_still_open
from gateway.endpoints.streamable_http import StreamableHttpRequests
from gateway.exceptions import Unauthenticated
from gateway.host.host import Host
from gateway.jsonrpc import message_from, opens_handshake
from gateway.transports.message_reader import Incoming
from gateway.transports.stateless import LISTEN, VERSION, StatelessCall


class StatelessRequests:
    """Answers the POST requests of the stateless protocol."""

    def __init__(self, host: Host, handshake: StreamableHttpRequests) -> None:
        """`handshake` answers `initialize`."""
        self._host = host
        self._handshake = handshake

    async def post(self, request: McpRequest) -> None:
        """Run one request in the caller's instance."""
        incoming = await self._host.message_reader.read(
            request.scope, request.receive, request.identity, request.address
        )
        with incoming.memory:
            if opens_handshake(incoming.json):
                # Spec 2026-07-28 basic/versioning#backward-compatibility-with-initialization-based-versions:
                # `initialize` selects the handshake era. Some clients name a newer version in the header with it.
                await self._handshake.initialize(message_from(incoming.json), incoming.memory, request)
                return
            if incoming.memory.refusal is not None:
                raise incoming.memory.refusal
            await self._handle(incoming, request)

    async def _handle(self, incoming: Incoming, request: McpRequest) -> None:
        host, message = self._host, incoming.json
        method, name = request.header(b"mcp-method"), request.definition.name
        require_named_tool(request.identity, name, method, request.header(b"mcp-name"), message)
        request.definition = require_still_open(host, request)
        is_listening = method == LISTEN
        if is_listening:  # it lasts as long as a session does, so it takes the room of one
            instance = await acquire_with_room(host, request)
        else:
            instance = await host.instances.acquire(request.definition, request.identity, request.address)
        try:
            # Check again: the factory may have taken long.
            require_still_open(host, request)
            reply = new_reply(self._host, request.send)
            call = StatelessCall(
                instance.running,
                name,
                request.scope_for_server,
                message,
                reply,
                is_listening=is_listening,
                memory=incoming.memory,
            )

            def end_revoked() -> None:
                call.end(Unauthenticated())

            with self._listening(call, request), host.stateless_calls.open(call), request.identity.closing(end_revoked):
                version = request.header(VERSION) or ""
                instance.activity.note(message, method == "tools/call", request.address, version)
                metrics.note_stateless_request(name, version)
                call.start()
                if call.is_listening and host.drain.is_begun:
                    call.stop_listening()
                try:
                    is_complete = await run_reply(host, request, reply)
                except BaseException:
                    call.cancel()
                    raise
            if not is_complete or reply.is_stream:
                call.cancel()
        finally:
            host.instances.release(instance)

    def _listening(self, call: StatelessCall, request: McpRequest) -> AbstractContextManager[None]:
        if not call.is_listening:
            return nullcontext()
        return self._host.doorkeeper.session_room.listening(request.identity, request.address)
