"""Batches of messages in one body, which only sessions of one protocol version may send.

Spec: 2025-03-26 basic#batching. It costs a limit as much as its messages would, one by one.
"""

from typing import Any

from gateway.conf import conf
from gateway.endpoints.base import McpRequest
from gateway.exceptions import MessageTooLarge
from gateway.host.host import Host
from gateway.jsonrpc import Batch, batch_from


async def admit_batch(host: Host, request: McpRequest, raw: list[Any]) -> Batch:
    """Check a decoded batch and count its messages.

    Raises:
        MessageTooLarge: it has more messages than allowed.
        InvalidMessage: it is empty.
        TooManyRequests: the key or the address has used up a limit.
    """
    limit = conf.max_batch_messages
    if len(raw) > limit:
        raise MessageTooLarge(f"The batch has more than {limit} messages.")
    # The first message was counted with the request.
    await host.doorkeeper.authenticator.count_requests(request.identity, request.address, len(raw) - 1)
    return batch_from(raw)
