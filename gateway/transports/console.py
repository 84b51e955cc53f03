"""The transport of the playground: an operator's page in the admin is the client.

It is HTTP+SSE without its URLs: messages for the client go to one event stream, and the client posts its own. Not here:
HTTP and who the operator is (`endpoints.playground`).
"""

import json

from gateway.transports.event_stream import frame
from gateway.transports.sse import SseTransport


class ConsoleTransport(SseTransport):
    """The wire of one playground session."""

    def start(self) -> None:
        """Tell the page its session's id, and start the message loop."""
        self._stream.write(frame(b"session", json.dumps({"id": self._session.id}).encode()))
        super().start()

    def stop(self) -> None:
        """Tell the page why the session ends, and end it."""
        self._stream.write(frame(b"end", json.dumps({"reason": self._session.end_reason}).encode()))
        super().stop()
