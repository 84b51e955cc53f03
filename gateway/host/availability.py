"""Which servers clients may use now, and what happens to their sessions when that changes."""

from typing import Final

from gateway.access.redaction import PathRedactor
from gateway.catalog.definitions import ServerDefinition
from gateway.catalog.registry import NOT_SERVED, Registry
from gateway.exceptions import GatewayError, ServerDisabled, UnknownServer
from gateway.instances.instances import Instances
from gateway.instances.policies import Policies
from gateway.transports.sessions import Sessions
from gateway.transports.stateless_calls import StatelessCalls

REMOVED: Final = "the server was removed"
"""The reason given for ending a session when its server's folder is gone."""

DISABLED: Final = "the server was switched off"
"""Why a session ended whose server an operator disabled."""

SWITCHED_OFF: Final = "An operator has switched this server off. Try again later."
"""What clients of a disabled server are told."""


class Availability:
    """The servers of one host that clients may use. Used on the host's loop."""

    def __init__(
        self,
        registry: Registry,
        policies: Policies,
        instances: Instances,
        sessions: Sessions,
        stateless_calls: StatelessCalls,
        redactor: PathRedactor,
    ) -> None:
        self._registry = registry
        self._policies = policies
        self._instances = instances
        self._sessions = sessions
        self._stateless_calls = stateless_calls
        self._redactor = redactor

    def find(self, name: str) -> ServerDefinition:
        """The server called `name`, if clients may use it now.

        Raises:
            UnknownServer, ServerDisabled
        """
        definition = self._registry.get(name)
        if not self._policies.get(name).is_enabled:
            raise ServerDisabled(SWITCHED_OFF)
        return definition

    def announce_new_code(self, server_name: str) -> None:
        """Tell the clients of a server that its lists may have changed."""
        self._redactor.learn(self._registry.names)
        for session in self._sessions:
            if session.server_name == server_name:
                session.announce()
        self._stateless_calls.announce(server_name)

    def end_removed(self, server_name: str) -> None:
        """End all use of a server whose folder is gone."""
        self._end_use(server_name, REMOVED, UnknownServer(NOT_SERVED))

    def end_disabled(self, server_name: str) -> None:
        """End all use of a server that an operator disabled."""
        self._end_use(server_name, DISABLED, ServerDisabled(SWITCHED_OFF))

    def end_unavailable_sessions(self) -> None:
        """End sessions of servers that may not be used: requests that were admitted just before opened them."""
        # This is called every second, and sessions may be many.
        for server_name in self._sessions.servers:
            if reason := self._reason_to_end(server_name):
                for session in self._sessions:
                    if session.server_name == server_name:
                        session.end(reason)

    def _reason_to_end(self, server_name: str) -> str:
        """Why sessions of a server may not go on; empty if they may."""
        if not self._policies.get(server_name).is_enabled:
            return DISABLED
        return "" if self._registry.serves(server_name) else REMOVED

    def _end_use(self, server_name: str, reason: str, error: GatewayError) -> None:
        """End the sessions, stateless requests and instances of a server; `error` answers the stateless requests."""
        for session in self._sessions:
            if session.server_name == server_name:
                session.end(reason)
        self._stateless_calls.end(server_name, error)
        self._instances.drop(server_name)
