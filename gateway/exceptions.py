"""What can go wrong between a request and its server, named by meaning.

`transports/responses.py` turns each into an HTTP answer, in one place. A message is written for the person who reads
the client's error: what happened and what to change, never a key.
"""


class GatewayError(Exception):
    """Base of the errors that a client is told about."""


class InvalidSessionKey(GatewayError):
    """The URL's last segment does not name a user."""


class UnknownServer(GatewayError):
    """No server of this name is being served."""


class InstanceUnavailable(GatewayError):
    """The server did not give this identity an instance: its factory raised, took too long or returned nonsense."""


class InstanceLimitReached(InstanceUnavailable):
    """The host keeps as many instances as it may."""


class InvalidMessage(GatewayError):
    """The body is no JSON-RPC message that may be sent here.

    `code` is the JSON-RPC error code, `request_id` the message's id where it has a valid one.
    """

    def __init__(self, message: str, code: int, request_id: str | int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class DuplicateRequestId(InvalidMessage):
    """A request's id is that of one which is still in flight on the same session."""


class RepeatedInitialize(InvalidMessage):
    """`initialize` was sent on a session that has it behind it."""


class SessionLimitReached(GatewayError):
    """The host has as many sessions open as it may."""


class SessionBacklogFull(GatewayError):
    """A session has as many messages waiting or running as it may."""


class BodyTooLarge(GatewayError):
    """The body is longer than the host takes."""


class ClientDisconnected(Exception):
    """The client left before its request was complete; there is nobody to answer."""


class StreamClosed(Exception):
    """An event stream ended while something was being written to it."""
