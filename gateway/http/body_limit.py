"""Limits the body of a request for an application that does not limit it itself.

Django (5.2) writes a whole body to disk before it looks at it. Our Daphne refuses long bodies by itself; other ASGI
servers take bodies of any length.
"""

from typing import Any

from gateway.exceptions import BodyTimeout, BodyTooLarge, ClientDisconnected, WastefulBody
from gateway.http.asgi import Message, Receive, Scope, Send
from gateway.http.refusals import refuse_error
from gateway.http.requests import check_announced_length, discard_body


class BodyLimit:
    """An ASGI application whose requests have bodies of at most `max_bytes`; 413 beyond it."""

    def __init__(self, application: Any, max_bytes: int) -> None:
        self._application = application
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        body = _LimitedBody(receive, self._max_bytes)
        try:
            await check_announced_length(scope, receive, self._max_bytes)
            await self._application(scope, body, send)
            if body.is_too_long:
                raise BodyTooLarge(self._max_bytes)
        except (BodyTooLarge, BodyTimeout, WastefulBody) as error:
            await refuse_error(send, error)
        except ClientDisconnected:
            return


class _LimitedBody:
    """A `receive` that says the client has left when its body grows too long. Applications then answer nothing."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._left_bytes = max_bytes
        self.is_too_long = False

    async def __call__(self) -> Message:
        if self.is_too_long:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            self._left_bytes -= len(message.get("body", b""))
            if self._left_bytes < 0:
                self.is_too_long = True
                if message.get("more_body", False):
                    await discard_body(self._receive)
                return {"type": "http.disconnect"}
        return message
