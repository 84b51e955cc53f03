"""What can go wrong between a request and its server, named by meaning.

`transports/responses.py` turns each into an HTTP answer, in one place. A message is written for the person who reads
the client's error: what happened and what to change, never a key.
"""


class GatewayError(Exception):
    """Base of the errors that a client is told about."""

    headers: tuple[tuple[bytes, bytes], ...] = ()
    """What the answer's head says besides."""


class InvalidSessionKey(GatewayError):
    """The URL's last segment does not name a user."""


class Unauthenticated(GatewayError):
    """There is no key that may be used here. One error for every reason: a caller learns nothing from it."""

    headers = ((b"www-authenticate", b"Bearer"),)

    def __init__(self) -> None:
        super().__init__("A valid key is required: as Authorization: Bearer KEY, or in the URL as {user_id}:{api_key}.")


class OutOfScope(GatewayError):
    """The key is good, and not for this server."""


class AuthenticationUnavailable(GatewayError):
    """It could not be found out whether the key is good."""


class TooManyRequests(GatewayError):
    """A key or an address has used up what it may do for now."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(f"{message} Try again in {retry_after_seconds} seconds.")
        self.headers = ((b"retry-after", str(retry_after_seconds).encode()),)


class NotOpenToNetwork(GatewayError):
    """The host runs without keys and was reached under an address that others can reach too."""


class UnknownServer(GatewayError):
    """No server of this name is being served."""


class ServerDisabled(GatewayError):
    """An operator has switched the server off."""


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


class ToolOutOfScope(InvalidMessage):
    """The key is good, and not for this tool."""


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

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The body is longer than {max_bytes} bytes.")


class ClientDisconnected(Exception):
    """The client left before its request was complete; there is nobody to answer."""


class StreamClosed(Exception):
    """An event stream ended while something was being written to it."""
