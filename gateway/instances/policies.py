"""How operators want each server to run: enabled or not, and the limits of its calls.

Operators set policies in the servers' rows. The recorder reads the rows, and a change is in force within seconds.
Nothing on the request path reads a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.compat.handler_threads import WhenBlocked
from gateway.conf import conf

LIMIT_FIELDS: Final = (
    "call_timeout_seconds",
    "max_call_seconds",
    "max_concurrent_calls",
    "max_concurrent_calls_per_user",
    "max_threads",
    "when_blocked",
)
"""The limits that operators set for one server. Its row, `Policy` and the settings have them by these names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits of one server; 0 means no limit. What an operator has not set comes from the settings."""

    is_enabled: bool = True
    call_timeout_seconds: float
    """Renewed by each progress notification, up to `max_call_seconds` in all."""
    max_call_seconds: float
    max_concurrent_calls: int
    max_concurrent_calls_per_user: int
    max_threads: int
    """How many threads run handlers of a version 1 module, and how many of its calls may be stuck. At least 1."""
    max_computing_threads: int
    """How many of these threads may compute at once; the others wait for their turn. At least 1."""
    when_blocked: WhenBlocked
    """What calls of a version 1 module do while another one blocks its event loop."""
    isolates: bool | None = None
    """Whether a folder is to run in a process of its own; None where no operator has chosen."""


class Policies:
    """The policies of this process, by server. Any thread may use them; they are replaced as a whole."""

    def __init__(self, own_call_timeout: Callable[[str], float | None] = lambda name: None) -> None:
        """`own_call_timeout` returns the time limit for calls that a server's manifest sets."""
        self._policies: dict[str, Policy] = {}
        self._own_call_timeout = own_call_timeout
        self.isolation: dict[str, bool] | None = None
        """Which servers operators want in a process of their own, or in the host's; None before rows were read."""

    def get(self, server_name: str) -> Policy:
        """The policy of server `server_name`, or the limits of its manifest and the settings if it has no row yet."""
        policy = self._policies.get(server_name)
        return default_policy(self._own_call_timeout(server_name)) if policy is None else policy

    def replace(self, policies: Mapping[str, Policy]) -> list[str]:
        """Put `policies` in force. Returns the servers that were enabled and no longer are."""
        disabled = [name for name, policy in policies.items() if not policy.is_enabled and self.get(name).is_enabled]
        self._policies = dict(policies)
        self.isolation = {name: policy.isolates for name, policy in policies.items() if policy.isolates is not None}
        return disabled


def default_policy(own_call_timeout: float | None = None) -> Policy:
    """The limits from the settings, and from a server's manifest where it sets one."""
    return Policy(
        call_timeout_seconds=conf.call_timeout_seconds if own_call_timeout is None else own_call_timeout,
        max_call_seconds=conf.max_call_seconds,
        max_concurrent_calls=conf.max_concurrent_calls,
        max_concurrent_calls_per_user=conf.max_concurrent_calls_per_user,
        max_threads=conf.max_threads,
        max_computing_threads=conf.max_computing_threads,
        when_blocked=conf.when_blocked,
    )
