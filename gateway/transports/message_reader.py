"""Reads what clients post: within the limits of size, of the number of values and of memory.

Large bodies are decoded in a thread of their own, one at a time, so that those of one client do not hold up the others.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from gateway.access.identity import Identity
from gateway.conf import conf
from gateway.exceptions import MessageTooLarge
from gateway.http.asgi import Receive, Scope
from gateway.http.requests import read_body
from gateway.json_size import measure
from gateway.jsonrpc import is_initialize, require_json
from gateway.transports.message_budget import MessageBudget, MessageMemory

SMALL_BYTES: Final = 1024
"""Up to here a body is not measured: it takes less memory than the call that it starts."""

SMALL_MESSAGE_BYTES: Final = 16 * 1024
"""What a small message counts for, with its tasks, contexts and headers."""

LARGE_BYTES: Final = 64 * 1024
"""Larger bodies are decoded in the thread. The decoder holds the interpreter's lock until it is done."""


class Incoming(NamedTuple):
    """What a client posted."""

    json: Any
    """The decoded body."""
    memory: MessageMemory
    """What it holds. Release it, best by a `with` block."""


class MessageReader:
    """Reads request bodies. Used on the host's loop."""

    def __init__(self, budget: MessageBudget, on_read: Callable[[Scope, Any], object] | None = None) -> None:
        """`on_read` is called with the request's scope and the decoded body."""
        self._budget = budget
        self._on_read = on_read
        self._executor = ThreadPoolExecutor(1, "large-messages")
        self._rests_until = 0.0
        """When the thread goes on (monotonic seconds). Used in the thread only."""

    async def read(self, scope: Scope, receive: Receive, identity: Identity, address: str) -> Incoming:
        """Read and decode the body of a request.

        Raises:
            BodyTooLarge, MessageTooLarge, InvalidMessage, TooManyRequests, MessageBudgetFull: it is refused.
            ClientDisconnected: the client left before its end.
        """
        memory: MessageMemory | None = None

        def count(size_bytes: int) -> None:
            nonlocal memory
            if memory is None:
                memory = self._budget.hold(identity, address, size_bytes)
            else:
                memory.resize(size_bytes)

        try:
            body = await read_body(scope, receive, conf.max_body_bytes, count)
            size = len(body)
            if size <= SMALL_BYTES:
                count(SMALL_MESSAGE_BYTES)
                json = require_json(body)
            elif size <= LARGE_BYTES:
                count(SMALL_MESSAGE_BYTES + _decoded_bytes(body))
                json = require_json(body)
            else:
                count(SMALL_MESSAGE_BYTES + 2 * size)
                json = await asyncio.get_running_loop().run_in_executor(self._executor, self._decode_large, body, count)
            if is_initialize(json):
                _require_small(body)
        except BaseException:
            if memory is not None:
                memory.release()
            raise
        assert memory is not None
        if self._on_read is not None:
            self._on_read(scope, json)
        return Incoming(json, memory)

    def close(self) -> None:
        """Let the thread go."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _decode_large(self, body: bytes, count: Callable[[int], None]) -> Any:
        """Decode a large body. Runs in the thread.

        After each body the thread rests for as long as it worked: the decoder holds the interpreter's lock, so that a
        thread which decodes without a break would take it from the others again and again.
        """
        time.sleep(max(0.0, self._rests_until - time.monotonic()))
        started = time.monotonic()
        try:
            count(SMALL_MESSAGE_BYTES + _decoded_bytes(body))
            return require_json(body)
        finally:
            ended = time.monotonic()
            self._rests_until = ended + (ended - started)


def _decoded_bytes(body: bytes) -> int:
    """What the body takes with everything that decoding makes of it. Raises `MessageTooLarge` for too many values."""
    limit = conf.max_message_values
    size = measure(body, limit)
    if size.values > limit:
        raise MessageTooLarge(f"The message has more than {limit} JSON values.")
    return size.decoded_bytes(len(body))


def _require_small(initialize: bytes) -> None:
    """Check the size of `initialize`, which the SDK keeps as long as the session. Raises `MessageTooLarge`."""
    max_bytes, max_values = conf.max_initialize_bytes, conf.max_initialize_values
    if len(initialize) > max_bytes:
        raise MessageTooLarge(f"The initialize message is longer than {max_bytes} bytes.")
    if measure(initialize, max_values).values > max_values:
        raise MessageTooLarge(f"The initialize message has more than {max_values} JSON values.")
