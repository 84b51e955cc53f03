"""What a session needs to go on in another process: what its client has told the server so far.

Lives here: noticing it among the messages. Not here: writing it down (`gateway.records.restorable_sessions`), telling
it to the server again (`link`, `gateway.endpoints.restoring`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from mcp_types import PROTOCOL_VERSION_META_KEY, JSONRPCNotification, JSONRPCRequest, RequestId

from gateway.jsonrpc import INITIALIZE, JSONRPCMessage, json_body, require_json

INITIALIZED: Final = "notifications/initialized"
SET_LEVEL: Final = "logging/setLevel"
SUBSCRIBE: Final = "resources/subscribe"
UNSUBSCRIBE: Final = "resources/unsubscribe"

STATE_METHODS: Final = frozenset({SET_LEVEL, SUBSCRIBE, UNSUBSCRIBE})
"""Requests that change what the server knows of the session, if it accepts them."""

MAX_SUBSCRIPTIONS: Final = 500
"""How many subscriptions of a session are restored. Further ones hold as long as the process lives."""

MAX_URI_LENGTH: Final = 1000
"""The longest URI whose subscription is restored."""

_KEPT_PARAMS: Final = ("capabilities", "clientInfo")
"""What is kept of `initialize`, beside the version that was agreed on."""


@dataclass(eq=False, slots=True)
class SessionState:
    """The state of one session.

    Threads: requests are noted on the host's loop, answers in the lane. The writer's thread reads.
    """

    agent: str = ""
    """What the client's program calls itself in `User-Agent`; empty for sessions that are found by their id."""
    epoch: int = 1
    """Goes up each time that a process takes the session over."""
    initialize: bytes = b""
    """What the client said in `initialize`, as JSON. Empty before that."""
    is_initialized: bool = False
    """Whether the client has sent `notifications/initialized`."""
    log_level: str = ""
    subscriptions: dict[str, None] = field(default_factory=dict)
    """URIs of resources, in the order in which they were subscribed to."""
    _unanswered: dict[RequestId, JSONRPCRequest] = field(default_factory=dict)

    def note_initialize(self, params: dict[str, Any]) -> None:
        """Note what the client says of itself."""
        self.initialize = json_body({name: params[name] for name in _KEPT_PARAMS if name in params})

    def note_request(self, key: RequestId, message: JSONRPCRequest) -> None:
        """Note a request of `STATE_METHODS`, which counts once it has been accepted."""
        self._unanswered[key] = message

    def note_answer(self, key: RequestId, *, is_accepted: bool) -> bool:
        """Note that a request was answered. Returns whether the state has changed."""
        message = self._unanswered.pop(key, None)
        if message is None or not is_accepted:
            return False
        params = message.params or {}
        if message.method == SET_LEVEL:
            level = params.get("level")
            is_changed = isinstance(level, str) and level != self.log_level and len(level) <= 20
            if is_changed:
                self.log_level = str(level)
            return is_changed
        uri = params.get("uri")
        if not isinstance(uri, str) or len(uri) > MAX_URI_LENGTH:
            return False
        if message.method == UNSUBSCRIBE:
            was_subscribed = uri in self.subscriptions
            self.subscriptions.pop(uri, None)
            return was_subscribed
        if uri in self.subscriptions or len(self.subscriptions) >= MAX_SUBSCRIPTIONS:
            return False
        self.subscriptions[uri] = None
        return True

    @property
    def has_unanswered(self) -> bool:
        """Whether a request is noted that has no answer yet."""
        return bool(self._unanswered)

    def messages(self, protocol_version: str) -> Iterator[JSONRPCMessage]:
        """What tells a server all of this again, as the client would."""
        said: dict[str, Any] = require_json(self.initialize)
        yield _request(INITIALIZE, {"protocolVersion": protocol_version, **said})
        if self.is_initialized:
            yield JSONRPCNotification(jsonrpc="2.0", method=INITIALIZED)
        if self.log_level:
            yield _request(SET_LEVEL, {"level": self.log_level})
        for number, uri in enumerate(list(self.subscriptions)):
            yield _request(SUBSCRIBE, {"uri": uri}, number)


def _request(method: str, params: dict[str, Any], number: int = 0) -> JSONRPCRequest:
    return JSONRPCRequest(jsonrpc="2.0", id=f"gumcp-restore-{method}-{number}", method=method, params=params)


def needs_handshake(message: JSONRPCMessage) -> bool:
    """Whether a server answers `message` only after `initialize`."""
    if not isinstance(message, JSONRPCRequest) or message.method in (INITIALIZE, "ping"):
        return False
    # A request of 2026-07-28 says everything in itself (SDK: `_has_modern_envelope`).
    meta = (message.params or {}).get("_meta")
    return not (isinstance(meta, dict) and PROTOCOL_VERSION_META_KEY in meta)
