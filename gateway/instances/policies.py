"""How operators want each server to be run: enabled or not, and the limits of its calls.

Kept in the servers' rows, read by the recorder, in force within seconds. Nothing on the request path reads a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.conf import conf


@dataclass(frozen=True, slots=True)
class Policy:
    """One server's limits; 0 stands for no limit."""

    is_enabled: bool = True
    call_timeout_seconds: float = 0.0
    max_concurrent_calls: int = 0
    max_concurrent_calls_per_user: int = 0
    max_threads: int = 32
    """Threads for handlers of version 1 modules; so many calls of a server may be stuck."""


class Policies:
    """The policies of this process, by server. Read from any thread, replaced as a whole."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}
        self._default = default_policy()

    def get(self, server_name: str) -> Policy:
        """The policy of `server_name`; the settings' limits where an operator has set none."""
        return self._policies.get(server_name, self._default)

    def replace(self, policies: Mapping[str, Policy]) -> list[str]:
        """Put `policies` in force; returns the servers that they disable and that were enabled."""
        disabled = [name for name, policy in policies.items() if not policy.is_enabled and self.get(name).is_enabled]
        self._policies = dict(policies)
        return disabled


def default_policy() -> Policy:
    """What the settings say."""
    return Policy(
        call_timeout_seconds=conf.call_timeout_seconds,
        max_concurrent_calls=conf.max_concurrent_calls,
        max_concurrent_calls_per_user=conf.max_concurrent_calls_per_user,
        max_threads=conf.max_threads,
    )
