"""The stateless requests that are being handled now. A reload, an operator or a shutdown may have to tell or end them.

Lives here: the open requests by server. Not here: handling one (`stateless`), and sessions (`sessions`).
"""

from contextlib import AbstractContextManager

from gateway.exceptions import GatewayError
from gateway.set_members import MemberWhile
from gateway.transports.stateless import StatelessCall


class StatelessCalls:
    """The open stateless requests of this process. Used on the host's loop."""

    def __init__(self) -> None:
        self._by_server: dict[str, set[StatelessCall]] = {}

    def open(self, call: StatelessCall) -> AbstractContextManager[None]:
        """Count `call` as open inside the block."""
        return MemberWhile(self._by_server.setdefault(call.server_name, set()), call)

    def announce(self, server_name: str) -> None:
        """Tell the clients that listen to a server that its lists may have changed."""
        for call in self._of(server_name):
            if call.is_listening:
                call.announce()

    def end(self, server_name: str, error: GatewayError) -> None:
        """End the requests of a server that is no longer served, and answer them with `error`."""
        for call in self._of(server_name):
            call.end(error)

    def stop_listening(self) -> None:
        """End the requests that listen, because the host is stopping. They would never end by themselves."""
        for server_name in self._by_server:
            for call in self._of(server_name):
                if call.is_listening:
                    call.stop_listening()

    def _of(self, server_name: str) -> list[StatelessCall]:
        return list(self._by_server.get(server_name, ()))
