"""The stateless requests that are being handled now: whom a reload, an operator or a shutdown has to tell.

Lives here: which there are, by server. Not here: sessions (`sessions`), what becomes of one (`stateless`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.exceptions import GatewayError
from gateway.transports.stateless import StatelessCall


class StatelessCalls:
    """The open stateless requests of this process. Used on the host's loop."""

    def __init__(self) -> None:
        self._by_server: dict[str, set[StatelessCall]] = {}

    @contextmanager
    def open(self, call: StatelessCall) -> Iterator[StatelessCall]:
        """Keep `call` within reach inside the block."""
        calls = self._by_server.setdefault(call.server_name, set())
        calls.add(call)
        try:
            yield call
        finally:
            calls.discard(call)

    def announce(self, server_name: str) -> None:
        """Tell those who listen to a server that its lists may have changed."""
        for call in self._of(server_name):
            if call.is_listening:
                call.announce()

    def end(self, server_name: str, error: GatewayError) -> None:
        """End the requests of a server that is not served any more; `error` is their answer."""
        for call in self._of(server_name):
            call.end(error)

    def stop_listening(self) -> None:
        """End the requests that would go on for ever: the host is to stop."""
        for server_name in self._by_server:
            for call in self._of(server_name):
                if call.is_listening:
                    call.stop_listening()

    def _of(self, server_name: str) -> list[StatelessCall]:
        return list(self._by_server.get(server_name, ()))
