"""What can go wrong between a request and its server, named by meaning.

`http/refusals.py` turns each into an HTTP response, in one place. A message is for the person who reads the client's
error: what happened and what to change, never a key.
"""


class GatewayError(Exception):
    """Base of the errors that a client is told about."""

    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Extra response headers."""
    note_for_operators = ""
    """What the caller is not told: why it happened, for the recent calls in the admin."""
    user_id = ""
    """Whose key was presented, where the caller is not known otherwise."""
    key = ""
    """The public part of that key."""


class InvalidSessionKey(GatewayError):
    """The URL's last segment does not name a user."""


class Unauthenticated(GatewayError):
    """No valid key was presented. The error is the same for every reason, so that a caller learns nothing from it."""

    headers = ((b"www-authenticate", b"Bearer"),)

    def __init__(self, note_for_operators: str = "", *, user_id: str = "", key: str = "") -> None:
        self.note_for_operators, self.user_id, self.key = note_for_operators, user_id, key
        super().__init__("A valid key is required: as Authorization: Bearer KEY, or in the URL as {user_id}:{api_key}.")


class OutOfScope(GatewayError):
    """The key is valid, but not for this server."""

    note_for_operators = "the key is not for this server"

    def __init__(self, message: str, *, user_id: str = "", key: str = "") -> None:
        self.user_id, self.key = user_id, key
        super().__init__(message)


class NotPermitted(GatewayError):
    """An operator's page asked for something that the operator may not do. The error is the same for every reason."""

    def __init__(self) -> None:
        super().__init__("Not permitted.")


class UnknownKey(GatewayError):
    """No valid key has the public part that an operator named."""


class AuthenticationUnavailable(GatewayError):
    """The host could not find out whether the key is valid: the database cannot be read."""


class TooManyRequests(GatewayError):
    """A key or an address has reached a rate limit."""

    def __init__(self, message: str, retry_after_seconds: int, note_for_operators: str = "") -> None:
        self.note_for_operators = note_for_operators
        super().__init__(f"{message} Try again in {retry_after_seconds} seconds.")
        self.headers = ((b"retry-after", str(retry_after_seconds).encode()),)


class NotOpenToNetwork(GatewayError):
    """The host runs without keys and was reached under an address that other machines can reach."""


class UnknownServer(GatewayError):
    """No server of this name is being served."""


class ServerDisabled(GatewayError):
    """An operator has switched the server off."""


class InstanceUnavailable(GatewayError):
    """The server gave this identity no instance: its factory raised, took too long or returned something else."""


class InstanceLimitReached(InstanceUnavailable):
    """The host keeps its maximum of instances, and all of them are in use."""


class InvalidMessage(GatewayError):
    """The body is not a JSON-RPC message that may be sent here.

    `code` is the JSON-RPC error code. `request_id` is the message's id, if it has a valid one.
    """

    def __init__(self, message: str, code: int, request_id: str | int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class ToolOutOfScope(InvalidMessage):
    """The key is valid, but not for this tool."""

    note_for_operators = "the key is not for this tool"
    tool = ""
    """The tool's name, as the client sent it."""


class DuplicateRequestId(InvalidMessage):
    """A request has the id of another one that is still in flight on the same session."""


class RepeatedInitialize(InvalidMessage):
    """`initialize` was sent twice on one session."""


class SessionLimitReached(GatewayError):
    """The maximum of sessions is open, and all of them are in use."""


class SessionsUnavailable(GatewayError):
    """The host could not find out whether the session is there: the database cannot be read."""


class SessionBacklogFull(GatewayError):
    """A session has its maximum of messages that wait or run."""


class MessageBudgetFull(GatewayError):
    """The messages that are not answered yet hold as much memory as the host allows."""


class BodyTooLarge(GatewayError):
    """The body is longer than the limit."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The body is longer than {max_bytes} bytes.")


class BodyTimeout(GatewayError):
    """The body came too slowly."""

    headers = ((b"connection", b"close"),)

    def __init__(self) -> None:
        super().__init__("The body took too long to arrive.")


class WastefulBody(GatewayError):
    """The body came in too many parts."""

    headers = ((b"connection", b"close"),)

    def __init__(self) -> None:
        super().__init__("The body comes in too many chunks for its size.")


class TooManyConnections(GatewayError):
    """As many requests are being answered as may be, of one address or of all."""

    headers = ((b"connection", b"close"),)

    def __init__(self) -> None:
        super().__init__("This host has as many connections open as it may. Try again later.")


class MessageTooLarge(GatewayError):
    """The message has more JSON values than the host takes, or is an `initialize` that is longer than may be kept."""


class ClientDisconnected(Exception):
    """The client disconnected before its request was complete. Nobody is left to answer."""


class StreamClosed(Exception):
    """An event stream ended while something was being written to it."""
